describe("the reference backend", function()
  local core = require "kigo.core"
  local build = require "spec.gguf_build"
  local model_fixtures = require "spec.model_fixtures"
  local support = require "spec.support"
  local REFERENCE = { device = "reference" }

  -- Exact arithmetic, quantized files too. The fixtures' tolerance for float32 is 1e-3 and 1e-4.
  model_fixtures.declare(REFERENCE, 1e-4, 1e-5)

  it("continues stories260K from BOS alone with the published text", function()
    local path = support.fixture("models/stories260K.gguf")
    local gguf <close> = assert(core.open_gguf(path))
    local pieces, bos = gguf:array("tokenizer.ggml.tokens"), gguf:get("tokenizer.ggml.bos_token_id")
    local model <close> = model_fixtures.open(path, REFERENCE)
    local text = {}
    for i, id in ipairs(model_fixtures.greedy(model, { bos }, 100)) do text[i] = pieces[id + 1] end
    text = table.concat(text):gsub("\u{2581}", " "):gsub("^ ", "")
    local published = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
      .. "One day, she saw a big, red ball. She wanted to play with it, but it was too high."
    assert.equal(published, text:sub(1, #published))
  end)

  describe("on a small model", function()
    local tensors = {
      { name = "embd", shape = { 32, 40 } }, { name = "q", shape = { 32, 32 } }, { name = "kv", shape = { 32, 16 } },
      { name = "router", shape = { 32, 8 } }, { name = "experts", shape = { 32, 24, 8 } },
      { name = "down", shape = { 24, 32, 8 } },
    }
    local file = build.random({ ["general.architecture"] = "none" }, tensors)
    local attention = { heads = 4, kv_heads = 2, head_dim = 8, window = 20 }
    local freqs = { 1, 0.1, 0.01, 0.001 }
    local rope = { style = "halves", heads = 4, head_dim = 8, inverse_freqs = freqs }
    local model

    -- Two layers of attention, experts behind them.
    local function open(options)
      local gguf <close> = assert(core.parse_gguf(file, "spec"))
      local plan <close> = assert(core.plan(gguf))
      local function weight(name) return assert(plan:weight(name)) end
      local x = plan:embed("x", weight "embd")
      for i = 1, 2 do
        local k = plan:linear("k" .. i, x, weight "kv")
        local q = plan:rope("q" .. i, plan:linear("flat" .. i, x, weight "q"), rope)
        x = plan:add("x" .. i, x, plan:attention("a" .. i, q, k, k, nil, attention))
      end
      local experts = { gate = weight "experts", up = weight "experts", down = weight "down" }
      x = plan:moe("moe", x, plan:linear("router", x, weight "router"), experts,
        { experts = 8, used = 3, gate = "sigmoid", normalize = true, act = "gelu_erf" })
      assert(plan:finish(plan:linear("logits", plan:act("relu", x, "relu"), weight "embd"), 256))
      local all = { device = "reference" }
      for key, value in pairs(options or {}) do all[key] = value end
      return assert(core.model(plan, all))
    end

    local ids = {}
    for i = 1, 150 do ids[i] = math.floor(core.uniform(1, i, 0) * 40) end

    before_each(function() model = open() end)
    after_each(function() model:close() end)

    it("gives the same bits however the prompt is cut", function()
      local logits <close> = assert(model:logits(ids))
      local whole = logits:bytes()
      for _, chunk in ipairs { 1, 3, 64, 149 } do
        local other <close> = open { chunk = chunk }
        local cut <close> = assert(other:logits(ids))
        assert.is_true(whole == cut:bytes(), "chunks of " .. chunk)
      end
    end)

    it("computes traced values for every row, and the same logits", function()
      local logits <close> = assert(model:logits(ids))
      local trace = assert(model:trace(ids, { "x", "moe", "logits" }))
      assert.same({ 150, 32 }, { trace.moe:shape() })
      assert.is_true(logits:bytes() == trace.logits:bytes())
      local gguf <close> = assert(core.parse_gguf(file, "spec"))
      local embedding = assert(gguf:values("embd"))
      for c = 0, 31 do assert.equal(embedding[ids[7] * 32 + c + 1], trace.x:row(6):totable()[c + 1]) end
    end)

    it("forgets what left the window", function()
      -- two layers of window 20 reach back 38 positions: the last row cannot know row 100
      local changed = table.move(ids, 1, #ids, 1, {})
      changed[101] = (changed[101] + 1) % 40
      local a <close>  = assert(model:logits(ids))
      local b <close> = assert(model:logits(changed))
      assert.is_true(a:row(99):bytes() == b:row(99):bytes())
      assert.is_false(a:row(100):bytes() == b:row(100):bytes())
      assert.is_false(a:row(138):bytes() == b:row(138):bytes())
      assert.is_true(a:row(139):bytes() == b:row(139):bytes())
    end)

    it("computes with its own copy of damaged weights and leaves the file alone", function()
      local before <close> = assert(model:logits(ids))
      assert.equal(1, model:scramble("experts", 7))
      local after <close> = assert(model:logits(ids))
      assert.is_false(before:bytes() == after:bytes())
      local fresh <close> = open()
      local again <close> = assert(fresh:logits(ids))
      assert.is_true(before:bytes() == again:bytes())
    end)

    it("says what it holds", function()
      local stats = model:stats()
      assert.equal("reference", stats.device)
      assert.equal(1, stats.n_threads)
      assert.equal(4 * (32 * (40 + 32 + 16 + 8) + 2 * 32 * 24 * 8), stats.weight_bytes)
    end)

    it("reports a model file that changed while it is open", function()
      local path = support.temporary(file)
      finally(function() os.remove(path) end)
      local gguf <close> = assert(core.open_gguf(path))
      local plan <close> = assert(core.plan(gguf))
      local x = plan:embed("x", assert(plan:weight "embd"))
      assert(plan:finish(plan:linear("logits", x, assert(plan:weight "embd")), 16))
      local changed <close> = assert(core.model(plan, REFERENCE))
      assert(changed:logits { 1 })
      local handle = assert(io.open(path, "ab"))
      handle:write("more")
      handle:close()
      local logits, _, code = changed:logits { 1 }
      assert.is_nil(logits)
      assert.equal(core.err.IO, code)
    end)

    it("cancels a load when the progress function says so", function()
      local gguf <close> = assert(core.parse_gguf(file, "spec"))
      local plan <close> = assert(core.plan(gguf))
      assert(plan:finish(plan:embed("x", assert(plan:weight "embd")), 16))
      local loaded, _, code = core.model(plan, { device = "reference", progress = function() return true end })
      assert.is_nil(loaded)
      assert.equal(core.err.CANCELLED, code)
    end)
  end)
end)
