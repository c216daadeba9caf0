-- Models whose tokens see each other both ways: a sequence is one piece, and nobody else's business all the same.
describe("bidirectional attention", function()
  local core = require "kigo.core"
  local arch = require "kigo.arch"
  local kigo = require "kigo"
  local build = require "spec.gguf_build"
  local model_fixtures = require "spec.model_fixtures"
  local tiny = require "spec.tiny"
  local err = core.err

  local VOCAB, CONTEXT = 40, 700

  local bytes
  local function plan()
    local metadata = {
      ["general.architecture"] = "bert", ["bert.context_length"] = CONTEXT, ["bert.embedding_length"] = 32,
      ["bert.block_count"] = 2, ["bert.attention.head_count"] = 2, ["bert.attention.layer_norm_epsilon"] = 1e-12,
    }
    local tensors = {
      { name = "token_embd.weight", shape = { 32, VOCAB } }, { name = "token_types.weight", shape = { 32, 2 } },
      { name = "position_embd.weight", shape = { 32, CONTEXT } }, { name = "token_embd_norm.weight", shape = { 32 } },
      { name = "token_embd_norm.bias", shape = { 32 } },
    }
    for i = 0, 1 do
      for _, w in ipairs { { "attn_q", 32, 32 }, { "attn_k", 32, 32 }, { "attn_v", 32, 32 }, { "attn_output", 32, 32 },
        { "attn_output_norm", 32 }, { "ffn_up", 32, 48 }, { "ffn_down", 48, 32 }, { "layer_output_norm", 32 } } do
        tensors[#tensors + 1] = { name = ("blk.%d.%s.weight"):format(i, w[1]), shape = { w[2], w[3] } }
        if not w[3] then tensors[#tensors + 1] = { name = ("blk.%d.%s.bias"):format(i, w[1]), shape = { w[2] } } end
      end
    end
    bytes = bytes or build.random(metadata, tensors)
    local gguf <close> = assert(core.parse_gguf(bytes, "spec"))
    return assert(arch.build(gguf))
  end

  local function open(device, options)
    local all = { device = device, ctx = CONTEXT, chunk = 1024 }
    for name, value in pairs(options or {}) do all[name] = value end
    return assert(core.model(plan(), all))
  end

  local function some_ids(n, seed)
    local dice, ids = tiny.dice(seed), {}
    for i = 1, n do ids[i] = dice(VOCAB) - 1 end
    return ids
  end

  local function alone(model, ids)
    local seq <close> = model:sequence()
    assert(seq:feed(ids))
    return seq.logits:bytes()
  end

  it("says what the plan is", function()
    local info = plan():info()
    assert.same({ VOCAB, 32, false }, { info.tokens, info.vocab_size, info.has_head })
    local model <close> = open "reference"
    assert.equal(VOCAB, model.vocab_size)
    assert.is_false(model.has_head)
  end)

  local devices = { "reference", "cpu", tiny.has_gpu and "cuda" or nil }

  for i = 2, #devices do
    it(("the %s computes what the reference computes, over several splits"):format(devices[i]), function()
      local reference <close> = open "reference"
      local exact <close> = open(devices[i], { kv = "f32" })
      local half <close> = open(devices[i], { kv = "f16" })
      for _, n in ipairs { 1, 2, 17, 300, 600 } do
        local ids = some_ids(n, n)
        local wanted <close> = reference:logits(ids)
        for model, tolerance in pairs { [exact] = 1e-4, [half] = 1e-2 } do
          local got <close> = model:logits(ids)
          local max = model_fixtures.difference(got:bytes(), wanted:bytes())
          assert.is_true(max < tolerance, ("%d tokens: %g"):format(n, max))
        end
      end
    end)
  end

  for _, device in ipairs(devices) do
    describe("on " .. device, function()
      it("gives a sequence the same bits in any company", function()
        local model <close> = open(device, { chunk = 64 })
        local wanted, seqs, ids = {}, {}, {}
        for i, n in ipairs { 5, 40, 1, 64, 30, 33 } do
          ids[i] = some_ids(n, i)
          wanted[i] = alone(model, ids[i])
          seqs[i] = model:sequence()
          assert(seqs[i]:feed(ids[i]))
        end
        assert(model:step(seqs))
        for i, seq in ipairs(seqs) do
          assert.is_true(wanted[i] == seq.logits:bytes())
          seq:close()
        end
      end)

      it("computes a sequence again when it grows, is rewound or forked", function()
        local model <close> = open(device)
        local ids = some_ids(90, 7)
        local seq <close> = model:sequence()
        for n = 1, 90, 17 do
          assert(seq:feed(table.move(ids, seq:pos() + 1, n, 1, {})))
          assert.is_true(alone(model, table.move(ids, 1, n, 1, {})) == seq.logits:bytes())
        end
        assert(seq:rewind(70))
        local fork <close> = seq:fork {}
        assert(fork:feed { 3, 4, 5 })
        local branch = table.move(ids, 1, 70, 1, {})
        assert.is_true(alone(model, branch) == seq.logits:bytes())
        assert.is_true(alone(model, table.move({ 3, 4, 5 }, 1, 3, 71, branch)) == fork.logits:bytes())
        assert.is_true(alone(model, table.move(ids, 1, 70, 1, {})) == seq.logits:bytes())
      end)

      it("comes back from a file, whatever its ids", function()
        local model <close> = open(device)
        local ids, path = { 3, VOCAB - 1, 7 }, os.tmpname() -- there are more ids than numbers in a row
        local seq <close> = model:sequence()
        assert(seq:feed(ids))
        assert(seq:save(path))
        local again <close> = assert(model:restore(path))
        os.remove(path)
        assert.same(ids, again:tokens())
        assert.is_true(alone(model, ids) == again.logits:bytes())
      end)

      it("shows every value of a long sequence, with the same numbers", function()
        local model <close> = open(device, { kv = "f16" })
        local ids = some_ids(200, 3)
        local logits <close> = assert(model:logits(ids))
        local trace = assert(model:trace(ids, { "blk.1.out", "blk.1.attn_q" }))
        assert.is_true(logits:bytes() == trace["blk.1.out"]:bytes())
        local seq <close>, n = model:sequence(), 0
        local _ <close> = seq:hook("blk.1.attn_q", function(x) n = n + #x end)
        assert(seq:feed(ids))
        assert.is_true(trace["blk.1.out"]:row(199):bytes() == seq.logits:bytes())
        assert.equal(200, n)
      end)

      it("refuses what does not fit a pass, and goes on", function()
        local model <close> = open(device, { chunk = 16 })
        local seq <close> = model:sequence()
        local other <close> = model:sequence()
        assert(seq:feed(some_ids(17, 1)))
        assert(other:feed(some_ids(16, 2)))
        local done, message, code = model:step { seq, other }
        assert.is_nil(done)
        assert.equal(err.FULL, code)
        assert.truthy(message:find("chunk", 1, true))
        assert(other:step())
        assert(seq:rewind(16))
        assert(seq:step())
      end)

      it("draws nothing", function()
        local model <close> = open(device)
        local seq <close> = model:sequence()
        local chain <close> = kigo.chain { kigo.greedy() }
        assert(seq:feed { 1, 2, 3 })
        local id, _, code = seq:draw(chain)
        assert.is_nil(id)
        assert.equal(err.UNSUPPORTED, code)
        id, _, code = seq:generate { max = 3, sample = function() return 0 end }
        assert.is_nil(id)
        assert.equal(err.UNSUPPORTED, code)
        assert.error(function() seq:feed { VOCAB } end)
      end)
    end)
  end

  it("cannot stand beside attention that looks back, nor have a window", function()
    local function refused(first, second)
      local gguf <close> = tiny.gguf()
      local p <close> = core.plan(gguf)
      local x = p:embed("x", p:weight("token_embd.weight", tiny.hidden, tiny.vocab))
      local params = { heads = 2, kv_heads = 2, head_dim = 16 }
      local function with(more)
        local all = {}
        for _, t in ipairs { params, more } do for k, v in pairs(t) do all[k] = v end end
        return all
      end
      local made, message, code = p:attention("a", x, x, x, nil, with(first))
      if second then made, message, code = p:attention("b", made, made, made, nil, with(second)) end
      assert.is_nil(made)
      assert.equal(err.UNSUPPORTED, code, message)
    end
    refused({ bidirectional = true }, {})
    refused({}, { bidirectional = true })
    refused({ bidirectional = true, window = 5 })
  end)
end)
