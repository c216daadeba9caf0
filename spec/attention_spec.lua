-- Attention of heads of every kind: wide ones and narrow ones, values that are not as wide as keys or a part of them,
-- with everything that a family may ask of it. Each device computes what the reference computes, and the same bits
-- however rows are cut and whoever is beside them.
describe("attention", function()
  local core = require "kigo.core"
  local build = require "spec.gguf_build"
  local model_fixtures = require "spec.model_fixtures"
  local tiny = require "spec.tiny"

  local HIDDEN = 16

  -- value_dim without values: they are a part of the keys
  local SHAPES = {
    { name = "latent", heads = 16, kv_heads = 1, head_dim = 576, value_dim = 512, in_keys = true },
    { name = "latent, in parts", heads = 40, kv_heads = 1, head_dim = 72, value_dim = 40, in_keys = true,
      sinks = true },
    { name = "latent, odd", heads = 6, kv_heads = 1, head_dim = 44, value_dim = 36, in_keys = true, window = 30 },
    { name = "two latent rows", heads = 6, kv_heads = 2, head_dim = 40, value_dim = 16, in_keys = true, softcap = 2 },
    { name = "narrow values", heads = 4, kv_heads = 4, head_dim = 192, value_dim = 128, window = 70 },
    { name = "broad values", heads = 4, kv_heads = 2, head_dim = 32, value_dim = 88, sinks = true, softcap = 3 },
    { name = "wide", heads = 2, kv_heads = 1, head_dim = 512, value_dim = 512, turned = true },
    { name = "wide, with all", heads = 9, kv_heads = 3, head_dim = 328, value_dim = 328, window = 67, softcap = 3,
      sinks = true, turned = true },
    { name = "very wide", heads = 1, kv_heads = 1, head_dim = 1024, value_dim = 1000 },
    { name = "both ways", heads = 6, kv_heads = 2, head_dim = 64, value_dim = 64, bidirectional = true, turned = true },
    { name = "both ways, narrow", heads = 6, kv_heads = 2, head_dim = 48, value_dim = 24, bidirectional = true },
  }
  for _, dim in ipairs { 40, 72, 80, 96, 112, 120, 20 } do
    table.insert(SHAPES, { name = dim .. " channels", heads = 4, kv_heads = 2, head_dim = dim, value_dim = dim,
      turned = true })
  end

  local function make_plan(s)
    local widths = { q = s.heads * s.head_dim, k = s.kv_heads * s.head_dim, v = s.kv_heads * s.value_dim }
    local tensors = { { name = "embd", shape = { HIDDEN, tiny.vocab } }, { name = "sinks", shape = { s.heads } },
      { name = "o", shape = { s.heads * s.value_dim, HIDDEN } } }
    for _, name in ipairs { "q", "k", "v" } do
      table.insert(tensors, { name = name, shape = { HIDDEN, widths[name] } })
    end
    s.file = s.file or build.random({ ["general.architecture"] = "none" }, tensors)
    local gguf <close> = assert(core.parse_gguf(s.file, s.name))
    local p = assert(core.plan(gguf))
    local x = p:embed("x", p:weight "embd")
    local function head(name, heads)
      local y = p:linear(name, x, p:weight(name))
      if not s.turned then return y end
      return p:rope(name .. "_turned", y, { style = "halves", heads = heads, head_dim = s.head_dim,
        dims = 8, inverse_freqs = { 1, 0.5, 0.1, 0.01 } })
    end
    local q, k = head("q", s.heads), head("k", s.kv_heads)
    local a = p:attention("a", q, k, not s.in_keys and p:linear("v", x, p:weight "v") or nil,
      s.sinks and p:weight "sinks" or nil,
      { heads = s.heads, kv_heads = s.kv_heads, head_dim = s.head_dim, value_dim = s.value_dim, window = s.window,
        softcap = s.softcap, bidirectional = s.bidirectional, scale = 2 / s.head_dim ^ 0.5 })
    local out = p:add("out", x, p:linear("o_out", a, p:weight "o"))
    assert(p:finish(p:linear("logits", out, p:weight "embd"), 8192))
    return p
  end

  local function open(s, options, changes)
    local all = { ctx = 4096 }
    for _, source in ipairs { options, changes or {} } do
      for key, value in pairs(source) do all[key] = value end
    end
    local plan <close> = make_plan(s)
    return assert(core.model(plan, all))
  end

  local function logits_of(model, ids)
    local logits <close> = assert(model:logits(ids))
    return logits:bytes()
  end

  -- The logits behind all of the ids, of sequences that step together.
  local function together(model, lists)
    local seqs, rows = {}, {}
    for i, ids in ipairs(lists) do
      seqs[i] = model:sequence()
      assert(seqs[i]:feed(ids))
    end
    assert(model:step(seqs))
    for i, seq in ipairs(seqs) do
      rows[i] = seq.logits:bytes()
      seq:close()
    end
    return rows
  end

  local function last_row(bytes) return bytes:sub(-4 * tiny.vocab) end

  for _, s in ipairs(SHAPES) do
    local ids, wanted = tiny.ids(140, 3), nil

    for _, device in ipairs(tiny.devices) do
      if device.options.device ~= "reference" then
        it(("%s: %s computes what the reference does, in any company"):format(s.name, device.name), function()
          if not wanted then
            local reference <close> = open(s, { device = "reference" })
            wanted = logits_of(reference, ids)
          end
          local model <close> = open(s, device.options)
          local got = logits_of(model, ids)
          local _, relative = model_fixtures.difference(got, wanted)
          local is_half = device.options.kv == "f16"
          assert.is_true(relative < (is_half and 3e-3 or 1e-5), ("relative difference %g"):format(relative))
          local lists, alone = {}, {}
          for i, n in ipairs { 3, 140, 1, 17, 90, 16, 64 } do
            lists[i] = table.move(ids, 1, n, 1, {})
            alone[i] = last_row(logits_of(model, lists[i]))
          end
          assert.same(alone, together(model, lists))
          if s.bidirectional then return end
          for _, chunk in ipairs { 1, 7, 19, 64, 130 } do
            local other <close> = open(s, device.options, { chunk = chunk })
            assert.is_true(got == logits_of(other, ids), "chunks of " .. chunk)
          end
        end)
      end
    end
  end

  if tiny.has_gpu then
    -- Where rows are many, or few with a long past, other kernels or more blocks share the work.
    for _, s in ipairs(SHAPES) do
      it(("%s: the same bits on a GPU over thousands of positions and in large batches"):format(s.name), function()
        local model <close> = open(s, { device = "cuda", kv = "f16", ctx = 4096 }, { chunk = 2500 })
        local ids = tiny.ids(2400, 9)
        local whole = logits_of(model, ids)
        local exact <close> = open(s, { device = "cuda", kv = "f32", ctx = 4096 }, { chunk = 2500 })
        local _, relative = model_fixtures.difference(whole, logits_of(exact, ids))
        assert.is_true(relative < 5e-3, ("relative difference %g"):format(relative))
        local lists, alone = {}, {}
        for i = 1, 150 do
          lists[i] = table.move(ids, i, i + 40 + i % 3, 1, {})
          alone[i] = together(model, { lists[i] })[1]
        end
        assert.same(alone, together(model, lists))
        if s.bidirectional then return end
        for _, chunk in ipairs { 100, 511, 16 } do
          local other <close> = open(s, { device = "cuda", kv = "f16", ctx = 4096 }, { chunk = chunk })
          assert.is_true(whole == logits_of(other, ids), "chunks of " .. chunk)
        end
        -- one by one, from a few forks at a time to many
        for _, n in ipairs { 1, 5, 140 } do
          local base <close> = model:sequence()
          assert(base:feed(table.move(ids, 1, 2395, 1, {})))
          assert(base:step())
          local seqs = {}
          for i = 1, n do seqs[i] = base:fork {} end
          for at = 2396, 2400 do
            for _, seq in ipairs(seqs) do assert(seq:feed { ids[at] }) end
            assert(model:step(seqs))
          end
          for _, seq in ipairs(seqs) do
            assert.is_true(last_row(whole) == seq.logits:bytes(), n .. " rows")
            seq:close()
          end
        end
      end)
    end
  end
end)
