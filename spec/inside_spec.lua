-- How likely texts are, texts as vectors, directions in a model: on top of hooks, traces and logits of many positions.
describe("a look inside:", function()
  local kigo = require "kigo"
  local core = kigo.core
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local err = kigo.err

  local TEXT = support.read "spec/fixtures/story.txt"

  local function stories(options)
    return assert(kigo.load(support.fixture "models/stories260K.gguf", options or { device = "cpu", threads = 1 }))
  end

  local function haiku() return assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 })) end

  ---The largest difference between some numbers of a tensor and others.
  local function distance(tensor, wanted)
    local most = 0
    for i, x in ipairs(wanted) do most = math.max(most, math.abs(tensor[i - 1] - x)) end
    return most
  end

  describe("logprobs", function()
    for _, device in ipairs(tiny.variants) do
      it("are those of the rows of model:logits on " .. device.name, function()
        local options = { chunk = 5 }
        for key, value in pairs(device.options) do options[key] = value end
        local model <close> = tiny.model(options)
        local ids = tiny.ids(300, 5) -- more than go through at once
        local rows = assert(model:logits(ids)):log_softmax()
        local result = assert(model:logprobs(ids, { top = 3 }))
        assert.equal(#ids - 1, result.n)
        assert.is_false(result.logprobs[1])
        assert.is_false(result.top[1])
        local sum = 0
        for i = 2, #ids do
          assert.equal(rows[i - 2][ids[i]], result.logprobs[i])
          local best, values = rows:row(i - 2):topk(3)
          for j, one in ipairs(result.top[i]) do assert.same({ id = best[j], logprob = values[j] }, one) end
          sum = sum + result.logprobs[i]
        end
        assert.equal(3, #result.top[2])
        assert.near(sum, result.sum, 1e-9)
        assert.near(sum / 299, result.mean, 1e-9)

        local seq <close> = model:sequence {}
        assert(seq:feed(table.move(ids, 1, 100, 1, {})))
        local rest = assert(seq:logprobs(table.move(ids, 101, 300, 1, {})))
        for i, value in ipairs(rest.logprobs) do assert.equal(result.logprobs[100 + i], value) end
        assert.equal(300, seq:pos())
        assert.equal(0, seq:pending())
        local some = assert(model:logprobs(ids, { from = 290 }))
        assert.equal(11, some.n)
        for i = 1, 300 do assert.equal(i >= 290 and result.logprobs[i], some.logprobs[i]) end
        assert.equal(0, assert(model:logprobs(ids, { from = 301 })).n)
        assert.same({ 0, 0 }, { assert(model:logprobs {}).n, assert(model:logprobs { 3 }).n })
        seq:logprobs {}
        assert.equal(300, seq:pos())
      end)
    end

    it("leave a sequence as it was when they fail", function()
      local model <close> = tiny.model { pool = 1, chunk = 40 } -- one page
      local seq <close> = model:sequence { seed = 3 }
      local ids = tiny.ids(40, 1)
      assert(seq:feed(ids))
      local before = seq.logits:bytes()
      for _, n in ipairs { 30, 290 } do
        local result, message, code = seq:logprobs(tiny.ids(n, 2))
        assert.is_nil(result)
        assert.equal(err.FULL, code)
        assert.is_string(message)
        assert.same(ids, seq:tokens())
        assert.equal(before, seq.logits:bytes())
      end
      assert.equal(err.FULL, (select(3, seq:logprobs(tiny.ids(tiny.context, 2)))))
      for _, bad in ipairs { { { 1 }, { from = 0 } }, { { 1 }, { from = 3 } }, { { 1 }, { top = 0 } },
        { { 1 }, { top = 49 } }, { { 1 }, { upto = 3 } }, { { 48 } }, { 3 }, { "text" } } do
        assert.has_error(function() seq:logprobs(table.unpack(bad)) end)
        assert.same(ids, seq:tokens())
      end
    end)

    it("share the passes of a batch, where bodies wait for them", function()
      local model <close> = tiny.model { chunk = 16 }
      local lists, alone = {}, {}
      for i = 1, 4 do
        lists[i] = tiny.ids(10 + 5 * i, i)
        alone[i] = assert(model:logprobs(lists[i])).logprobs
      end
      local together = assert(model:batch({ max = 4 }, lists, function(seq, ids)
        return assert(seq:logprobs(ids)).logprobs
      end))
      for i = 1, 4 do assert.same(alone[i], together[i]) end
    end)

    it("come with generated tokens, and alternatives", function()
      local model <close> = stories()
      local seq <close> = model:sequence { seed = 2 }
      assert(seq:feed "Once")
      local mark = seq:mark()
      local result = assert(seq:generate { max = 9, temp = 0.9, logprobs = 3 })
      assert.equal(#result.logprobs, #result.top_logprobs)
      seq:rewind(mark)
      local again = assert(seq:logprobs(result.ids, { top = 3 }))
      for i = 1, #result.ids do
        assert.near(again.logprobs[i], result.logprobs[i], 1e-6)
        assert.same(again.top[i], result.top_logprobs[i])
      end
      assert.is_nil(assert(seq:generate { max = 2, logprobs = true }).top_logprobs)
      assert.has_error(function() seq:generate { max = 2, logprobs = 0 } end)
      assert.has_error(function() seq:generate { max = 2, logprobs = 513 } end)
      assert.has_error(function() seq:generate { max = 2, logprobs = "3" } end)
    end)

    it("survive the failure of every allocation", function()
      local ids = tiny.ids(12)
      local expected = tiny.reference(ids)
      tiny.fail_each_allocation(function()
        local model = tiny.model { chunk = 7 }
        local seq = model:sequence {}
        seq:feed { ids[1] }
        return { model = model, seq = seq }
      end, function(t) return t.seq:logprobs(table.move(ids, 2, 12, 1, {}), { top = 2 }) end, function(t)
        if t.seq:pos() == 1 then t.seq:feed(table.move(ids, 2, 12, 1, {})) end
        assert.equal(expected[12], t.seq.logits:bytes())
        t.seq:close()
        t.model:close()
      end)
    end)
  end)

  describe("kigo.perplexity", function()
    -- llama.cpp (llama-cpp-python 0.3.36, float32 cache) over the same windows, its logits summed up in float64.
    it("is llama.cpp's over the same windows", function()
      local model <close> = stories()
      local ids = model.tokenizer:encode(TEXT)
      for _, case in ipairs { { 256, 128, 3.111032, 0.242740, 3 }, { 64, 16, 3.166744, 0.239476, 22 } } do
        local result = assert(kigo.perplexity(model, ids, { ctx = case[1], stride = case[2] }))
        assert.near(case[3], result.perplexity, 2e-5)
        assert.near(case[4], result.error, 2e-5)
        assert.equal(392, result.n_tokens)
        assert.equal(case[5], result.n_windows)
      end
    end)

    it("counts every token once, whatever the windows", function()
      local model <close> = tiny.model {}
      local ids = tiny.ids(100, 8)
      local whole = assert(model:logprobs(ids))
      local all = assert(kigo.perplexity(model, ids))
      assert.near(math.exp(-whole.mean), all.perplexity, 1e-9)
      assert.equal(99, all.n_tokens)
      for _, case in ipairs { { 100, 1, 1 }, { 99, 98, 2 }, { 10, 9, 11 }, { 10, 1, 91 }, { 2, 1, 99 } } do
        local result = assert(kigo.perplexity(model, ids, { ctx = case[1], stride = case[2] }))
        assert.equal(case[3], result.n_windows)
        assert.equal(99, result.n_tokens)
      end
      local seen
      assert.equal(err.CANCELLED, (select(3, kigo.perplexity(model, ids, { ctx = 10, progress = function(_, done, total)
        seen = { done, total }
        return done > 30
      end }))))
      assert.same({ 35, 100 }, seen)
      for _, bad in ipairs { { ctx = 1 }, { ctx = 2000 }, { stride = 0 }, { ctx = 10, stride = 10 }, { window = 3 } } do
        assert.has_error(function() kigo.perplexity(model, ids, bad) end)
      end
      assert.has_error(function() kigo.perplexity(model, { 1 }) end)
    end)
  end)

  describe("model:embed", function()
    -- llama.cpp (llama-cpp-python 0.3.36), vectors of length 1: their first numbers.
    it("makes llama.cpp's vectors", function()
      local model <close> = stories()
      for pooling, wanted in pairs {
        mean = { { -0.016442, -0.073026, -0.028515, -0.123024, 0.088200 },
          { 0.138218, 0.042748, -0.036932, -0.085951, -0.003310 } },
        cls = { { 0.060695, -0.078293, 0.010624, -0.101496, 0.006148 },
          { 0.060695, -0.078293, 0.010624, -0.101496, 0.006148 } }, -- BOS comes first
        last = { { 0.022701, -0.060171, -0.110585, -0.113832, 0.034603 },
          { 0.100182, -0.144273, 0.034456, 0.012072, -0.078214 } },
      } do
        local texts = { "Once upon a time", "Lily saw a big red ball" }
        local vectors = assert(model:embed(texts, { pooling = pooling }))
        for i, vector in ipairs(vectors) do
          assert.is_true(distance(vector, wanted[i]) < 2e-6, pooling)
          assert.equal(vector:bytes(), assert(model:embed(texts[i], { pooling = pooling })):bytes())
          assert.near(1, vector:clone():mul_(vector):sum(), 1e-5)
        end
      end
    end)

    for _, device in ipairs(tiny.variants) do
      it("makes the same of a text alone and among others on " .. device.name, function()
        local options = { chunk = 11 }
        for key, value in pairs(device.options) do options[key] = value end
        local model <close> = tiny.model(options)
        local texts, dice = {}, tiny.dice(4)
        for i = 1, 70 do texts[i] = tiny.ids(dice(20), i) end -- more than share a pass
        local before = model:stats().n_steps
        local vectors = assert(model:embed(texts, { pooling = "last", normalize = false }))
        assert.is_true(model:stats().n_steps - before < 80)
        for i = 1, 70, 9 do
          local hidden = assert(model:trace(texts[i], "output_norm")).output_norm
          assert.equal(hidden:row(#texts[i] - 1):bytes(), vectors[i]:bytes())
          local mean = hidden:row(0):clone()
          for j = 1, #texts[i] - 1 do mean:add_(hidden:row(j)) end
          mean:mul_(1 / #texts[i])
          assert.is_true(distance(assert(model:embed(texts[i], { normalize = false })), mean:totable()) < 1e-6)
        end
        assert.equal(0, model:stats().n_pages_used)
        assert.same({}, assert(model:embed {}))
      end)
    end

    it("takes models without a head, whose tokens see each other", function()
      for _, device in ipairs { "reference", "cpu" } do
        local model <close> = assert(kigo.load("spec/fixtures/families/bert.gguf",
          { device = device, threads = 1, chunk = 16, tokenizer = false }))
        local texts, dice = {}, tiny.dice(6)
        for i = 1, 20 do texts[i] = tiny.ids(dice(16), i) end -- not every one fits behind those before it
        local vectors = assert(model:embed(texts, { pooling = "cls" }))
        for i, ids in ipairs(texts) do
          assert.equal(vectors[i]:bytes(), assert(model:embed(ids, { pooling = "cls" })):bytes())
        end
      end
    end)

    it("pools as the file says", function()
      local build = require "spec.gguf_build"
      local arch = require "kigo.arch"
      local ids, bytes = tiny.ids(9), {}
      for kind = 0, 4 do
        local gguf <close> = assert(core.parse_gguf(build.random({ ["general.architecture"] = "tiny",
          ["tiny.pooling_type"] = kind }, { { name = "x", shape = { 2 } } }), "spec"))
        local model <close> = tiny.model {}
        model.gguf = gguf
        local vector, _, code = model:embed(ids)
        bytes[kind] = vector and vector:bytes() or code
        if kind == 4 then assert(model:embed(ids, { pooling = "cls" })) end
      end
      assert(arch)
      local model <close> = tiny.model {}
      for kind, name in pairs { [0] = "mean", "mean", "cls", "last" } do
        assert.equal(model:embed(ids, { pooling = name }):bytes(), bytes[kind])
      end
      assert.equal(err.UNSUPPORTED, bytes[4])
    end)

    it("refuses what is no text", function()
      local model <close> = tiny.model {}
      for _, bad in ipairs { false, 3, { false }, { {} }, { { "x" } }, "text", { { 48 } } } do
        assert.has_error(function() model:embed(bad) end)
      end
      assert.has_error(function() model:embed({ 1 }, { pooling = "rank" }) end)
      assert.has_error(function() model:embed({ 1 }, { pool = "mean" }) end)
      assert.equal(0, model:stats().n_sequences)
      local full <close> = tiny.model { pool = 1 }
      assert.equal(err.FULL, (select(3, full:embed(tiny.ids(100)))))
      assert.equal(0, full:stats().n_sequences)
    end)

    it("survives the failure of every allocation", function()
      tiny.fail_each_allocation(function() return tiny.model { chunk = 7 } end, function(model)
        return model:embed { tiny.ids(3), tiny.ids(5) }
      end, function(model)
        assert(model:embed { tiny.ids(3), tiny.ids(5) })
        collectgarbage() -- a sequence that was made but never returned
        assert.equal(0, model:stats().n_sequences)
        model:close()
      end)
    end)
  end)

  it("model:trace keeps what a function makes, by name and by block", function()
    local model <close> = tiny.model {}
    local seen = {}
    local kept, names = assert(model:trace({ 1, 2, 3 }, "blk.*.out", function(x, name, layer)
      seen[name] = layer
      return #x + 10 * layer
    end))
    assert.same({ ["blk.0.out"] = 3, ["blk.1.out"] = 13, [0] = 3, [1] = 13 }, kept)
    assert.same({ "blk.0.out", "blk.1.out" }, names)
    assert.same({ ["blk.0.out"] = 0, ["blk.1.out"] = 1 }, seen)
    assert.is_nil(assert(model:trace({ 1 }, { "blk.*.out", "blk.*.attn" }))[0])
    assert.error_matches(function() model:trace({ 1 }, "blk.0.atn_q") end, "nearest are blk.0.attn_q")
  end)

  describe("kigo.steering", function()
    local function last(model, list, block)
      return assert(model:trace(list, "blk.*.out"))[block]:row(#list - 1)
    end

    it("finds the difference between two sets of texts", function()
      local model <close> = haiku()
      local function ids(text) return model.tokenizer:encode(text) end
      local with, without = { ids "snow and ice", ids "a cold night" }, { ids "the hot sun" }
      local vector = assert(kigo.steering.contrast(model, with, without))
      assert.matches("3 blocks from 1 on", tostring(vector))
      for block = 1, 3 do
        local wanted = last(model, with[1], block):clone():add_(last(model, with[2], block)):mul_(0.5)
          :add_(last(model, without[1], block), -1)
        local difference = vector.directions[block]:clone():add_(wanted, -1)
        assert.is_true(math.max(difference:max(), -difference:min()) < 1e-4)
      end
      assert.is_nil(vector.directions[0])
      local unit = assert(kigo.steering.contrast(model, with, without, { normalize = true, pooling = "mean" }))
      assert.near(1, unit.directions[2]:clone():mul_(unit.directions[2]):sum(), 1e-5)
      for _, bad in ipairs { { {}, with }, { with, {} }, { with, 3 }, { with, without, { pooling = "max" } },
        { with, without, { layers = 3 } } } do
        assert.has_error(function() kigo.steering.contrast(model, table.unpack(bad)) end)
      end
    end)

    it("adds directions while its hook is there", function()
      local model <close> = haiku()
      local ids = model.tokenizer:encode "Write a haiku about the sea."
      local vector = assert(kigo.steering.contrast(model, { "snow" }, { "fire" }))
      local seq <close> = model:sequence {}
      assert(seq:feed(ids))
      local plain = seq.logits:bytes()
      local function steered(apply)
        seq:rewind(0)
        seq:feed(ids)
        local hook <close> = apply()
        return hook and seq.logits:bytes()
      end
      local wanted = steered(function()
        return seq:hook("blk.2.out", function(x) x:add_(vector.directions[2], 0.5) end)
      end)
      assert.not_equal(plain, wanted)
      assert.equal(wanted, steered(function() return vector:apply(seq, 0.5, { first = 2, last = 2 }) end))
      assert.not_equal(wanted, steered(function() return vector:apply(seq, 0.5) end))
      assert.equal(plain, steered(function() return vector:apply(seq, 0) end))
      seq:rewind(0)
      seq:feed(ids)
      assert.equal(plain, seq.logits:bytes())
      assert.has_error(function() vector:apply(seq, 1, { first = 4 }) end)
      assert.has_error(function() vector:apply(seq, 1, { block = 4 }) end)
    end)

    -- The file of these directions, applied with llama.cpp's llama_set_adapter_cvec (llama-cpp-python 0.3.36) to the
    -- same text: its four likeliest next tokens, and their logits.
    it("steers as llama.cpp does", function()
      for _, device in ipairs { "reference", "cpu" } do
        local model <close> = stories { device = device, threads = 1 }
        local vector = assert(kigo.steering.contrast(model, { "Lily was so happy" }, { "Tom was very sad" }))
        local seq <close> = model:sequence {}
        assert(seq:feed "Once upon a time there was a dog.")
        local _ <close> = vector:apply(seq, 1.5)
        local ids, logits = seq.logits:topk(4)
        assert.same({ 388, 332, 465, 389 }, ids)
        for i, wanted in ipairs { 11.95158, 10.83582, 10.53164, 10.24196 } do assert.near(wanted, logits[i], 1e-3) end
      end
    end)

    describe("files", function()
      local path = os.tmpname()
      teardown(function() os.remove(path) end)

      it("hold the same numbers, as other programs write them", function()
        local model <close> = haiku()
        local vector = assert(kigo.steering.contrast(model, { "snow" }, { "fire" }))
        assert.equal(path, vector:save(path))
        local gguf <close> = assert(kigo.open_gguf(path))
        assert.equal("controlvector", gguf:get "general.architecture")
        assert.equal("qwen2", gguf:get "controlvector.model_hint")
        assert.equal(3, gguf:get "controlvector.layer_count")
        assert.same({ "direction.1", "direction.2", "direction.3" },
          { gguf:tensors()[1].name, gguf:tensors()[2].name, gguf:tensors()[3].name })
        local again = assert(kigo.steering.load(path, model))
        for block = 1, 3 do assert.equal(vector.directions[block]:bytes(), again.directions[block]:bytes()) end
        assert.equal(err.IO, (select(3, vector:save "/nonexistent/file")))
        assert.equal(err.IO, (select(3, kigo.steering.load("/nonexistent/file", model))))
        vector.directions[0] = vector.directions[1]
        assert.has_error(function() vector:save(path) end)
      end)

      it("are not trusted", function()
        local model <close> = haiku()
        local width = model.gguf:get "qwen2.embedding_length"
        local good, none = kigo.zeros(width), {}
        local function load(entries, tensors)
          local all = { { "general.architecture", "controlvector" } }
          for _, entry in ipairs(entries or none) do all[#all + 1] = entry end
          assert(core.write_gguf(path, all, tensors))
          local vector, message, code = kigo.steering.load(path, model)
          assert(vector or message:find(path, 1, true), message)
          return vector, code
        end
        assert(load(none, { { "direction.3", good } }))
        for _, name in ipairs { "direction.0", "direction.4", "direction.01", "direction.-1", "direction.1.5",
          "direction.99999999999999999999999", "direction.", "direction.1x", "Direction.1", "direction.0x1" } do
          assert.equal(err.FORMAT, (select(2, load(none, { { name, good } }))), name)
        end
        for _, bad in ipairs { kigo.zeros(width - 1), kigo.zeros(width, 1), kigo.zeros(width + 1),
          kigo.zeros(width):fill_(0 / 0), kigo.zeros(width):fill_(math.huge),
          kigo.zeros(width):fill_(-math.huge, { 3 }) } do
          assert.equal(err.FORMAT, (select(2, load(none, { { "direction.1", bad } }))))
        end
        assert.equal(err.FORMAT, (select(2, load(none, { { "direction.1", good }, { "other", good } }))))
        assert.equal(err.FORMAT, (select(2, load(none, none))))
        assert.equal(err.UNSUPPORTED, (select(2, load({ { "controlvector.model_hint", "llama" } },
          { { "direction.1", good } }))))
        assert(core.write_gguf(path, { { "general.architecture", "qwen2" } }, { { "direction.1", good } }))
        assert.equal(err.FORMAT, (select(3, kigo.steering.load(path, model))))
      end)
    end)
  end)

  describe("core.write_gguf", function()
    it("writes what reads back", function()
      local path = os.tmpname()
      local x = kigo.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
      assert.equal(path, core.write_gguf(path, { { "a.s", "text" }, { "a.i", 7 }, { "a.f", 0.5 }, { "a.b", true } },
        { { "x", x }, { "y", kigo.zeros(5000):fill_(2) } }))
      local gguf <close> = assert(kigo.open_gguf(path))
      assert.same({ "text", 7, 0.5, true },
        { gguf:get "a.s", gguf:get "a.i", gguf:get "a.f", gguf:get "a.b" })
      assert.same({ 1, 2, 3, 4, 5, 6 }, gguf:values "x")
      assert.same({ 3, 2 }, gguf:tensor "x".shape)
      assert.equal(2, gguf:values "y"[5000])
      os.remove(path)
    end)

    it("refuses before it writes", function()
      local path = os.tmpname()
      os.remove(path)
      local x = kigo.zeros(1)
      for _, bad in ipairs {
        { { 3 }, {} }, { { { "k" } }, {} }, { { { 3, 3 } }, {} }, { { { "k", -1 } }, {} }, { { { "k", 1 << 32 } }, {} },
        { { { "k\0", 1 } }, {} }, { { { "k", "\0" } }, {} }, { {}, { { "x", 3 } } }, { {}, { { "", x } } }, { {} },
        { {}, { { "x" } } },
      } do
        assert.has_error(function() core.write_gguf(path, table.unpack(bad)) end)
        assert.is_nil(io.open(path))
      end
    end)

    it("leaves no file behind when memory or disk fail", function()
      local path = os.tmpname()
      os.remove(path)
      local x = kigo.zeros(3)
      local n = tiny.fail_each_allocation(function() return path end, function()
        return core.write_gguf(path, { { "k", "v" } }, { { "x", x } })
      end, function()
        local file = io.open(path)
        if file then file:close() end
        os.remove(path)
      end)
      assert.is_true(n > 2)
      core.system_inject("write", 1, "ENOSPC", true)
      assert.equal(err.IO, (select(3, core.write_gguf(path, {}, { { "x", x } }))))
      core.system_inject("write", 0)
      assert.is_nil(io.open(path))
    end)
  end)
end)
