local core = require "kigo.core"
local support = require "spec.support"

describe("make_model", function()
  local err = core.err
  local path
  before_each(function()
    path = os.tmpname()
    os.remove(path)
  end)
  after_each(function() os.remove(path) end)

  -- Names in the folder that begin with the path: the file itself and whatever was left beside it.
  local function left_behind()
    local pipe = io.popen("ls " .. path .. "* 2>/dev/null | wc -l")
    local n = pipe:read("n")
    pipe:close()
    return n
  end

  describe("tiny", function()
    for _, type_name in ipairs { "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0" } do
      it("is written with matrices of " .. type_name, function()
        assert.equal(path, core.make_model(path, { like = "tiny", type = type_name }))
        local gguf <close> = assert(core.open_gguf(path))
        assert.equal("qwen2", gguf:get("general.architecture"))
        assert.equal(2, gguf:get("qwen2.block_count"))
        assert.equal(64, gguf:get("qwen2.embedding_length"))
        assert.equal(2 + 2 * 12, #gguf:tensors())
        for _, tensor in ipairs(gguf:tensors()) do
          assert.equal(#tensor.shape == 2 and type_name:upper() or "F32", tensor.type)
        end
        assert.same({ 128, 64 }, gguf:tensor("blk.1.ffn_down.weight").shape)
        assert.same({ 64, 32 }, gguf:tensor("blk.1.attn_k.weight").shape)
        assert.same({ 32 }, gguf:tensor("blk.1.attn_v.bias").shape)
        assert.is_nil(gguf:tensor("output.weight"))
        for _, value in ipairs(gguf:values("blk.0.attn_norm.weight")) do assert.equal(1, value) end
        local sum, squares, values = 0, 0, gguf:values("token_embd.weight")
        for _, value in ipairs(values) do
          sum, squares = sum + value, squares + value * value
        end
        assert.near(0, sum / #values, 0.005)
        assert.near(1 / 8, math.sqrt(squares / #values), 0.005) -- 1 / sqrt(64)
      end)
    end

    it("has a whole vocabulary", function()
      assert(core.make_model(path, { like = "tiny" }))
      local gguf <close> = assert(core.open_gguf(path))
      local tokens, types, seen = gguf:array("tokenizer.ggml.tokens"), gguf:array("tokenizer.ggml.token_type"), {}
      assert.equal(384, #tokens)
      assert.equal(384, #types)
      for id, token in ipairs(tokens) do
        assert.is_nil(seen[token], token)
        seen[token] = id - 1
      end
      for _, merge in ipairs(gguf:array("tokenizer.ggml.merges")) do
        local left, right = merge:match("^(%S+) (%S+)$")
        assert.truthy(seen[left] and seen[right] and seen[left .. right], merge)
      end
      assert.equal(0, seen["!"])
      assert.equal(220, seen["\u{120}"]) -- a space
      assert.equal(381, seen["<|endoftext|>"])
      assert.equal(383, seen["<|im_end|>"])
      assert.equal(3, types[384])
      assert.equal(383, gguf:get("tokenizer.ggml.eos_token_id"))
      assert.truthy(gguf:get("tokenizer.chat_template"):find("<|im_start|>", 1, true))
    end)

    it("depends on the seed alone", function()
      local function bytes(seed)
        assert(core.make_model(path, { like = "tiny", type = "q4_0", seed = seed }))
        return support.read(path)
      end
      local one = bytes(1)
      assert.is_true(one == bytes(1))
      assert.is_true(one == bytes(nil))
      assert.is_false(one == bytes(2))
      assert.is_false(one == bytes(-1))
    end)
  end)

  it("tells how far it is", function()
    local last, total
    assert(core.make_model(path, { like = "tiny", progress = function(what, done, of)
      assert(what == "write" and done > (last or 0) and (not total or of == total))
      last, total = done, of
    end }))
    assert.equal(total, last)
  end)

  it("leaves what was there when it is cancelled or its callback fails", function()
    assert(io.open(path, "wb")):write("old"):close()
    local made, _, code = core.make_model(path, { like = "tiny", progress = function() return true end })
    assert.is_nil(made)
    assert.equal(err.CANCELLED, code)
    local token = {}
    local ok, raised = pcall(core.make_model, path, { like = "tiny", progress = function() error(token) end })
    assert.is_false(ok)
    assert.equal(token, raised)
    assert.equal("old", support.read(path))
    assert.equal(1, left_behind())
  end)

  it("names unknown models, types and places", function()
    assert.error(function() core.make_model(path, { like = "gpt-5" }) end)
    assert.error(function() core.make_model(path, { like = "tiny", type = "q9_z" }) end)
    assert.error(function() core.make_model(path, { like = "tiny", type = "q4_k" }) end)
    assert.error(function() core.make_model(path, { like = "tiny", progress = 1 }) end)
    local made, message, code = core.make_model("/nowhere/model.gguf", { like = "tiny" })
    assert.is_nil(made)
    assert.equal(err.IO, code)
    assert.truthy(message:find("/nowhere/model.gguf", 1, true))
    assert.equal(err.IO, select(3, core.make_model("/", { like = "tiny" })))
    assert.equal(0, left_behind())
  end)

  it("reports a failed write and leaves nothing", function()
    -- A limit on file sizes stands in for a full disk.
    local script = support.temporary(([[
      local core = require "kigo.core"
      local made, _, code = core.make_model(%q, { like = "tiny", type = "f32" })
      print(made, code == core.err.IO)
    ]]):format(path))
    local renamed = script .. ".lua"
    os.rename(script, renamed)
    local program = arg and arg[-1] or "build/kigo"
    local pipe = io.popen("trap '' XFSZ; ulimit -f 64; " .. program .. " " .. renamed .. " 2>&1")
    local output = pipe:read("a")
    pipe:close()
    os.remove(renamed)
    assert.equal("nil\ttrue\n", output)
    assert.equal(0, left_behind())
  end)

  it("survives any allocation failing", function()
    local refused, n, reached = 0, 0, true
    while reached do
      n = n + 1
      core.alloc_inject(n)
      local calls = select(2, core.alloc_counts())
      local made, _, code = core.make_model(path, { like = "tiny", type = "q4_0" })
      reached = select(2, core.alloc_counts()) - calls >= n
      core.alloc_inject(0)
      if not made then
        assert.equal(err.MEMORY, code)
        refused = refused + 1
        assert.equal(0, left_behind())
      end
      os.remove(path)
    end
    assert.is_true(refused > 20)
  end)

  it("leaves nothing behind when there is no memory to call the progress function", function()
    local function progress() end
    local before = left_behind()
    local refused, n, reached = 0, 0, true
    while reached do
      n = n + 1
      core.alloc_inject(n)
      local calls = select(2, core.alloc_counts())
      local ok, made = pcall(core.make_model, path, { like = "tiny", type = "q4_0", progress = progress })
      reached = select(2, core.alloc_counts()) - calls >= n
      core.alloc_inject(0)
      if not (ok and made) then
        refused = refused + 1
        assert.equal(before, left_behind())
      end
      os.remove(path)
    end
    assert.is_true(refused > 20)
  end)

  it("has the exact shape of Qwen2.5-0.5B #slow", function()
    assert(core.make_model(path, { like = "qwen2.5-0.5b", type = "q4_0" }))
    local gguf <close> = assert(core.open_gguf(path))
    assert.equal(494032768, gguf:parameters())
    assert.equal(290, #gguf:tensors())
    assert.equal(151936, #gguf:array("tokenizer.ggml.tokens"))
    assert.equal("<|im_end|>", gguf:array("tokenizer.ggml.tokens")[151646])
    assert.equal(151645, gguf:get("tokenizer.ggml.eos_token_id"))
    assert.equal(32768, gguf:get("qwen2.context_length"))
  end)
end)
