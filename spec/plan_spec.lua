describe("kigo.core.plan", function()
  local core = require "kigo.core"
  local gguf_build = require "spec.gguf_build"
  local FORMAT, UNSUPPORTED = core.err.FORMAT, core.err.UNSUPPORTED

  local tensors = {
    { name = "embd", shape = { 32, 40 } }, { name = "positions", shape = { 32, 10 } },
    { name = "vector", shape = { 32 } }, { name = "head", shape = { 8 } }, { name = "square", shape = { 32, 32 } },
    { name = "narrow", shape = { 32, 16 } }, { name = "wide", shape = { 48, 32 } },
    { name = "bias16", shape = { 16 } }, { name = "sinks", shape = { 4 } },
    { name = "router", shape = { 32, 4 } }, { name = "experts", shape = { 32, 24, 4 } },
    { name = "down", shape = { 24, 32, 4 } }, { name = "expert_bias", shape = { 24, 4 } },
    { name = "down_bias", shape = { 32, 4 } }, { name = "choice_bias", shape = { 4 } },
    { name = "deep", shape = { 4, 2, 2, 2 } },
    { name = "heads", shape = { 8, 6, 4 } }, { name = "head_norms", shape = { 8, 4 } },
    { name = "taps", shape = { 4, 32 } }, { name = "one_tap", shape = { 1, 32 } },
    { name = "many_taps", shape = { 65, 32 } },
    { name = "integers", shape = { 32 }, type = 26, bytes = ("\0"):rep(128) },
  }
  local file = gguf_build.random({ ["general.architecture"] = "none" }, tensors)
  local gguf, plan, x, w

  before_each(function()
    gguf = assert(core.parse_gguf(file, "spec"))
    plan = assert(core.plan(gguf))
    w = setmetatable({}, { __index = function(_, name) return assert(plan:weight(name)) end })
    x = assert(plan:embed("x", w.embd))
  end)

  after_each(function()
    plan:close()
    gguf:close()
  end)

  -- A call that the file is to blame for: the code, and what the message must name.
  local function refused(code, names, ...)
    local result, message, got = ...
    assert.is_nil(result)
    assert.equal(code, got)
    for _, name in ipairs(names) do assert.truthy(message:find(name, 1, true), message .. " does not name " .. name) end
  end

  -- A call that only code can get wrong.
  local function raises(text, method, ...)
    local ok, message = pcall(plan[method], plan, ...)
    assert.is_false(ok)
    assert.truthy(message:find(text, 1, true), message .. " does not say " .. text)
  end

  local rope = { style = "halves", heads = 4, head_dim = 8, inverse_freqs = { 1, 0.1, 0.01, 0.001 } }
  local attention = { heads = 4, kv_heads = 2, head_dim = 8 }

  local function with(params, changes)
    local copy = {}
    for key, value in pairs(params) do copy[key] = value end
    for key, value in pairs(changes) do copy[key] = value end
    return copy
  end

  describe("weight_stack", function()
    it("makes planes of matrices of one kind, and is called after the first", function()
      local stack = assert(plan:weight_stack { "square", "square" })
      local info = plan:weights()[stack + 1]
      assert.same({ "square", 32, 32, 2, 2 * 32 * 32 * 4 }, { info.name, info.cols, info.rows, info.planes,
        info.bytes })
    end)

    it("refuses what does not fit together, and leaves the plan as it was", function()
      refused(FORMAT, { "nothing" }, plan:weight_stack { "nothing", "square" })
      refused(FORMAT, { "nothing" }, plan:weight_stack { "square", "nothing" })
      refused(FORMAT, { "narrow", "[32, 32]" }, plan:weight_stack { "square", "narrow" })
      refused(FORMAT, { "experts" }, plan:weight_stack { "experts", "experts" })
      raises("in the plan already", "weight_stack", { "embd", "embd" })
      raises("too few", "weight_stack", { "square" })
      raises("tensor name", "weight_stack", { "square", {} })
      local n = #plan:weights()
      for nth = 1, 3 do
        core.alloc_inject(nth, false)
        local stack, _, code = plan:weight_stack { "square", "square" }
        core.alloc_inject(0, false)
        if stack then break end
        assert.equal(core.err.MEMORY, code)
        assert.equal(n, #plan:weights())
      end
    end)
  end)

  describe("weight", function()
    it("finds a tensor, the same one each time", function()
      assert.equal(w.square, w.square)
      assert.equal(w.square, plan:weight("square", 32, 32, 1))
      assert.not_equal(w.square, w.narrow)
    end)

    it("names a missing tensor", function()
      refused(FORMAT, { "blk.9.attn_q.weight" }, plan:weight("blk.9.attn_q.weight"))
    end)

    it("names a misshaped tensor and both shapes", function()
      refused(FORMAT, { "narrow", "[32, 16]", "[32, 32]" }, plan:weight("narrow", 32, 32))
      assert(plan:weight("narrow")) -- known tensors are checked too
      refused(FORMAT, { "narrow", "[32, 16]", "[any, 20]" }, plan:weight("narrow", 0, 20, 1))
    end)

    it("refuses types that cannot be computed with, and four dimensions", function()
      refused(UNSUPPORTED, { "integers", "I32" }, plan:weight("integers"))
      refused(FORMAT, { "deep" }, plan:weight("deep"))
    end)

    it("refuses names that are no strings or hold a NUL", function()
      raises("tensor name", "weight", 5)
      raises("NUL", "weight", "embd\0x")
    end)

    it("answers has_weight", function()
      assert.is_true(plan:has_weight("embd"))
      assert.is_false(plan:has_weight("emb"))
    end)
  end)

  describe("values", function()
    it("have unique names and known ids", function()
      raises('"x" is taken', "add", "x", x, x)
      raises("no value of this plan", "add", "y", x, 7)
      raises("no weight of this plan", "linear", "y", x, 99)
      raises("1 to", "add", "", x, x)
      raises("1 to", "add", ("n"):rep(201), x, x)
      raises("name", "add", nil, x, x)
      raises("b: integer expected", "add", "y", x)
    end)

    it("remember who made them and who reads them last", function()
      local y = plan:linear("y", x, w.square)
      local z = plan:add("z", x, y)
      local unread = plan:scale("unread", y, 2)
      assert(plan:finish(plan:linear("logits", z, w.embd), 10))
      assert.same({ name = "x", width = 32, producer = 0, last_use = 2 }, plan:value(x))
      assert.same({ name = "y", width = 32, producer = 1, last_use = 3 }, plan:value(y))
      assert.same({ name = "unread", width = 32, producer = 3, last_use = 3 }, plan:value(unread))
      assert.same({ name = "logits", width = 40, producer = 4, last_use = 5 }, plan:value(4))
      assert.same({ "x", "y", "z", "unread", "logits" }, plan:value_names())
      raises("value", "value", 5)
    end)

    it("can be renamed", function()
      assert.equal(x, plan:rename(x, "other"))
      assert.same({ "other" }, plan:value_names())
      raises("taken", "rename", x, "other")
      raises("no value", "rename", 3, "third")
      assert(plan:scale("x", x, 2)) -- the old name is free again
      for i = 1, 200 do assert(plan:scale("v" .. i, x, 2)) end
      raises("taken", "scale", "other", x, 2)
      raises("taken", "scale", "v77", x, 2)
    end)
  end)

  describe("operations", function()
    it("check widths against weights, with the names", function()
      refused(FORMAT, { "wide", "[48, 32]", "y", "x" }, plan:linear("y", x, w.wide))
      refused(FORMAT, { "vector", "[32]", "narrow" }, plan:linear("y", x, w.narrow, w.vector))
      refused(FORMAT, { "experts" }, plan:linear("y", x, w.experts))
      refused(FORMAT, { "narrow" }, plan:norm("y", x, w.narrow, nil, { epsilon = 1e-5 }))
      refused(FORMAT, { "bias16" }, plan:norm("y", x, w.vector, w.bias16, { epsilon = 1e-5 }))
      refused(FORMAT, { "wide", "embd" }, plan:embed("y", w.embd, w.wide))
      assert.same({ "x" }, plan:value_names())
    end)

    it("check the widths of values against each other", function()
      local narrow = assert(plan:linear("narrow", x, w.narrow))
      refused(FORMAT, { "narrow", "16", "32" }, plan:add("y", x, narrow))
      refused(FORMAT, { "narrow" }, plan:glu("y", x, narrow, "silu"))
      refused(FORMAT, { "narrow", "heads" }, plan:attention("y", narrow, narrow, narrow, nil, attention))
      refused(FORMAT, { "kv_heads" }, plan:attention("y", x, x, narrow, nil, attention))
      refused(FORMAT, { "heads" }, plan:rope("y", narrow, rope))
      refused(FORMAT, { "x", "30" }, plan:slice("y", x, 30, 3))
      refused(FORMAT, { "x" }, plan:slice("y", x, -1, 3))
      refused(FORMAT, { "x" }, plan:slice("y", x, 2, 0))
      refused(FORMAT, { "x" }, plan:slice("y", x, 2147483647, 2147483647))
    end)

    it("check parts, planes and groups", function()
      local narrow = assert(plan:linear("narrow", x, w.narrow))
      refused(FORMAT, { "x", "30", "a group" }, plan:slice("y", x, 30, 1, 2))
      refused(FORMAT, { "x", "3 equal groups" }, plan:slice("y", x, 0, 1, 3))
      refused(FORMAT, { "groups" }, plan:slice("y", x, 0, 1, 0))
      refused(FORMAT, { "x", "3 equal groups" }, plan:concat("y", x, narrow, 3))
      refused(FORMAT, { "narrow", "32 equal groups" }, plan:concat("y", x, narrow, 32))
      refused(FORMAT, { "groups" }, plan:concat("y", x, narrow, -1))
      refused(FORMAT, { "heads", "[8, 6, 4]", "[4, any, 4]", "narrow" }, plan:linear_each("y", narrow, w.heads))
      local odd = assert(plan:slice("odd", x, 0, 31))
      refused(FORMAT, { "heads", "odd", "4 planes" }, plan:linear_each("y", odd, w.heads))
      refused(FORMAT, { "head_norms" }, plan:norm("y", x, w.head_norms, nil, { epsilon = 1, groups = 2 }))
      refused(FORMAT, { "head", "[8, 4]" }, plan:norm("y", x, w.head_norms, w.head, { epsilon = 1, groups = 4 }))
      raises("no value", "concat", "y", x, 99)
      raises("no weight", "linear_each", "y", x, 99)
      raises("v: integer", "attention", "y", x, x, "x", nil, attention)
      assert(plan:norm("n", x, w.head_norms, w.head_norms, { epsilon = 1, groups = 4 }))
      assert.equal(24, plan:value(plan:linear_each("each", x, w.heads)).width)
      assert.equal(4 * (8 + 16), plan:value(plan:concat("shared", x, narrow, 4, true)).width)
      assert.equal(32 + 16, plan:value(plan:concat("sums", x, narrow, 4)).width)
      assert.equal(6, plan:value(plan:slice("columns", x, 5, 3, 2)).width)
      local ops = plan:ops()
      assert.same({ kind = "linear_each", out = "each", width = 24, inputs = { "x" }, weights = { "heads" } },
        ops[#ops - 3])
      assert.same({ kind = "concat", out = "shared", width = 96, inputs = { "x", "narrow" }, weights = {}, groups = 4,
        shared = true }, ops[#ops - 2])
      assert.same({ kind = "slice", out = "columns", width = 6, inputs = { "x" }, weights = {}, first = 5,
        groups = 2 }, ops[#ops])
    end)

    it("convolve channels over positions, gated or not", function()
      local narrow = assert(plan:linear("narrow", x, w.narrow))
      local parts = assert(plan:concat("parts", plan:concat("two", x, x), x))
      refused(FORMAT, { "taps", "[4, 32]", "[any, 16]", "narrow" }, plan:conv("y", narrow, w.taps))
      refused(FORMAT, { "taps", "[4, 32]", "[any, 96]" }, plan:conv("y", parts, w.taps))
      refused(FORMAT, { "value x", "3 equal groups" }, plan:conv("y", x, w.taps, nil, true))
      refused(FORMAT, { "one_tap", "2 to 64" }, plan:conv("y", x, w.one_tap))
      refused(FORMAT, { "many_taps", "2 to 64" }, plan:conv("y", x, w.many_taps))
      refused(FORMAT, { "taps", "bias" }, plan:conv("y", x, w.taps, w.taps))
      raises("no value", "conv", "y", 99, w.taps)
      raises("no weight", "conv", "y", x, 99)
      raises("weight: integer", "conv", "y", x)
      assert(plan:conv("plain", x, w.taps))
      assert.equal(32, plan:value(plan:conv("gated", parts, w.taps, nil, true)).width)
      local ops = plan:ops()
      assert.same({ kind = "conv", out = "plain", width = 32, inputs = { "x" }, weights = { "taps" }, taps = 4,
        gated = false }, ops[#ops - 1])
      assert.is_true(ops[#ops].gated)
      refused(core.err.UNSUPPORTED, { "y", "recurrent" },
        plan:attention("y", x, narrow, narrow, nil, with(attention, { bidirectional = true })))
      local other <close> = assert(core.plan(gguf))
      local e = assert(other:embed("e", other:weight "embd"))
      local n = assert(other:linear("n", e, other:weight "narrow"))
      assert(other:attention("a", e, n, n, nil, with(attention, { bidirectional = true })))
      refused(core.err.UNSUPPORTED, { "y", "recurrent" }, other:conv("y", e, other:weight "taps"))
    end)

    it("take values that are narrower than keys, or parts of them", function()
      local k, v = assert(plan:linear("k", x, w.narrow)), assert(plan:slice("v", x, 0, 6))
      local narrow = with(attention, { value_dim = 3 })
      refused(FORMAT, { "v", "value_dim = 8" }, plan:attention("y", x, k, v, nil, attention))
      refused(FORMAT, { "value_dim" }, plan:attention("y", x, k, nil, nil, with(attention, { value_dim = 9 })))
      raises("value_dim", "attention", "y", x, k, nil, nil, with(attention, { value_dim = 0 }))
      assert.equal(12, plan:value(plan:attention("y", x, k, v, nil, narrow)).width)
      assert.equal(12, plan:value(plan:attention("z", x, k, nil, nil, narrow)).width)
      local ops = plan:ops()
      assert.same({ "x", "k", "v" }, ops[#ops - 1].inputs)
      assert.same({ "x", "k" }, ops[#ops].inputs)
      assert.equal(3, ops[#ops].value_dim)
    end)

    it("check parameters, naming the field", function()
      refused(FORMAT, { "epsilon" }, plan:norm("y", x, w.vector, nil, { epsilon = -1 }))
      refused(FORMAT, { "5 equal groups" }, plan:norm("y", x, w.vector, nil, { epsilon = 0, groups = 5 }))
      refused(FORMAT, { "cap" }, plan:softcap("y", x, 0))
      refused(FORMAT, { "factor" }, plan:scale("y", x, 1e30))
      refused(FORMAT, { "magnitude" }, plan:rope("y", x, with(rope, { magnitude = 0 })))
      refused(FORMAT, { "growth" }, plan:rope("y", x, with(rope, { growth = -1 })))
      refused(FORMAT, { "inverse_freqs" }, plan:rope("y", x, with(rope, { inverse_freqs = { 1, 1, 1, 1e9 } })))
      refused(FORMAT, { "dims" }, plan:rope("y", x, with(rope, { dims = 3, inverse_freqs = { 1 } })))
      refused(FORMAT, { "kv_heads" }, plan:attention("y", x, x, x, nil, with(attention, { kv_heads = 3 })))
      local k = plan:linear("k", x, w.narrow)
      refused(FORMAT, { "scale" }, plan:attention("y", x, k, k, nil, with(attention, { scale = 0 })))
      refused(FORMAT, { "softcap" }, plan:attention("y", x, k, k, nil, with(attention, { softcap = -1 })))
      refused(FORMAT, { "head", "[8]" }, plan:attention("y", x, k, k, w.head, attention))
      raises("epsilon: parameter is missing", "norm", "y", x, w.vector, nil, {})
      raises("eps: no such option", "norm", "y", x, w.vector, nil, { epsilon = 1e-5, eps = 1 })
      raises("epsilon", "norm", "y", x, w.vector, nil, { epsilon = 0 / 0 })
      raises("epsilon", "norm", "y", x, w.vector, nil, { epsilon = "small" })
      raises("subtract_mean", "norm", "y", x, w.vector, nil, { epsilon = 1, subtract_mean = 1 })
      raises("groups", "norm", "y", x, w.vector, nil, { epsilon = 1, groups = 0 })
      raises("table expected", "norm", "y", x, w.vector)
      raises("factor", "scale", "y", x, math.huge)
      raises("factor", "scale", "y", x, 0 / 0)
      raises("style", "rope", "y", x, with(rope, { style = "thirds" }))
      raises("heads: parameter is missing", "rope", "y", x, { style = "pairs", head_dim = 8 })
      raises("inverse_freqs", "rope", "y", x, with(rope, { inverse_freqs = { 1 } }))
      raises("inverse_freqs", "rope", "y", x, with(rope, { inverse_freqs = { 1, 1, 1, "x" } }))
      raises("dims", "rope", "y", x, with(rope, { dims = 10 }))
      raises("growth", "rope", "y", x, with(rope, { growth = 0 / 0 }))
      raises("growth_length", "rope", "y", x, with(rope, { growth = 1, growth_length = 0 }))
      raises("window", "attention", "y", x, k, k, nil, with(attention, { window = -1 }))
      raises("act: no such thing", "act", "y", x, "tanh")
      raises("kind", "act", "y", x, {})
      raises("swiglu_clamped", "act", "y", x, { kind = "swiglu_clamped", limit = 7, alpha = 1 })
    end)

    it("check the clamped activation", function()
      refused(FORMAT, { "limit" }, plan:glu("y", x, x, { kind = "swiglu_clamped", alpha = 1 }))
      refused(FORMAT, { "alpha" }, plan:glu("y", x, x, { kind = "swiglu_clamped", limit = 1 }))
      assert(plan:glu("y", x, x, { kind = "swiglu_clamped", limit = 7, alpha = 1.702 }))
    end)

    it("check mixtures of experts", function()
      local router = plan:linear("router", x, w.router)
      local weights = { gate = w.experts, up = w.experts, down = w.down }
      local params = { experts = 4, used = 2, gate = "softmax", act = "silu" }
      local function moe(weight_changes, changes, logits)
        return plan:moe("y", x, logits or router, with(weights, weight_changes), with(params, changes))
      end
      refused(FORMAT, { "used" }, moe({}, { used = 5 }))
      refused(FORMAT, { "router", "4" }, moe({}, { experts = 3 }))
      refused(FORMAT, { "x", "one logit per expert" }, moe({}, {}, x))
      refused(FORMAT, { "down" }, moe({ up = w.down }, {}))
      refused(FORMAT, { "experts" }, moe({ down = w.experts }, {}))
      refused(FORMAT, { "square" }, moe({ gate = w.square }, {}))
      refused(FORMAT, { "down_bias" }, moe({ gate_bias = w.down_bias }, {}))
      refused(FORMAT, { "scale" }, moe({}, { scale = 1e30 }))
      refused(FORMAT, { "choice_bias" }, moe({ choice_bias = w.head }, {}))
      refused(FORMAT, { "3 equal groups" }, moe({}, { groups = 3 }))
      refused(FORMAT, { "groups", "5" }, moe({}, { groups = 5 }))
      refused(FORMAT, { "groups_used" }, moe({}, { groups = 2, groups_used = 3 }))
      refused(FORMAT, { "group_top" }, moe({}, { groups = 4, group_top = 2 }))
      refused(FORMAT, { "used" }, moe({}, { groups = 4, groups_used = 1 }))
      assert.has_error(function() moe({}, { group_top = 3 }) end)
      assert.has_error(function() moe({ gate = false }, {}) end)
      assert.has_error(function() moe({}, { used = 0 }) end)
      assert.has_error(function() moe({ extra = 1 }, {}) end)
      local biases = { gate_bias = w.expert_bias, up_bias = w.expert_bias, down_bias = w.down_bias,
        choice_bias = w.choice_bias }
      assert(moe(biases, { gate = "sigmoid", normalize = true, scale = 2.5, groups = 2, groups_used = 1,
        group_top = 2 }))
      assert.same({
        kind = "moe", out = "y", width = 32, inputs = { "x", "router" }, experts = 4, used = 2, gate = "sigmoid",
        normalize = true, scale = 2.5, act = "silu", groups = 2, groups_used = 1, group_top = 2,
        weights = { "experts", "experts", "down", "expert_bias", "expert_bias", "down_bias", "choice_bias" },
      }, plan:ops()[3])
    end)

    it("are listed with their parameters", function()
      local q = plan:rope("q", x, with(rope, { dims = 4, inverse_freqs = { 1, 0.5 }, growth = 0.25,
        growth_length = 9 }))
      local k = plan:linear("k", x, w.narrow, w.bias16)
      plan:attention("a", q, k, k, w.sinks, with(attention, { window = 5, softcap = 8 }))
      plan:norm("n", x, w.head, nil, { epsilon = 0.5, groups = 4, subtract_mean = true })
      plan:slice("s", x, 3, 4)
      local ops = plan:ops()
      assert.same({ kind = "embed", out = "x", width = 32, inputs = {}, weights = { "embd" } }, ops[1])
      assert.same({ kind = "rope", out = "q", width = 32, inputs = { "x" }, weights = {}, style = "halves", heads = 4,
        head_dim = 8, dims = 4, inverse_freqs = { 1, 0.5 }, magnitude = 1, growth = 0.25, growth_length = 9 }, ops[2])
      assert.same({ kind = "linear", out = "k", width = 16, inputs = { "x" }, weights = { "narrow", "bias16" } },
        ops[3])
      assert.near(8 ^ -0.5, ops[4].scale, 1e-7)
      ops[4].scale = nil
      assert.same({ kind = "attention", out = "a", width = 32, inputs = { "q", "k", "k" }, weights = { "sinks" },
        layer = 0, heads = 4, kv_heads = 2, head_dim = 8, value_dim = 8, softcap = 8, window = 5,
        bidirectional = false }, ops[4])
      assert.same({ kind = "norm", out = "n", width = 32, inputs = { "x" }, weights = { "head" }, epsilon = 0.5,
        groups = 4, subtract_mean = true }, ops[5])
      assert.same({ kind = "slice", out = "s", width = 4, inputs = { "x" }, weights = {}, first = 3, groups = 1 },
        ops[6])
    end)
  end)

  describe("finish", function()
    it("closes the plan", function()
      local k = plan:linear("k", x, w.narrow)
      local a = plan:attention("a", x, k, k, nil, attention)
      assert.same({ vocab_size = 0, tokens = 0, has_head = false, context_length = 0, layers = 1, tail = 3 },
        plan:info())
      assert(plan:finish(plan:linear("logits", a, w.embd), 77))
      assert.same({ vocab_size = 40, tokens = 40, has_head = true, context_length = 77, layers = 1, tail = 3,
        logits = "logits" }, plan:info())
      raises("finished", "add", "y", x, x)
      raises("finished", "weight", "square")
      raises("finished", "rename", x, "y")
      raises("finished", "finish", x, 10)
    end)

    it("wants a value, and a context length that every table can serve", function()
      raises("no value", "finish", 5, 10)
      refused(FORMAT, { "context_length" }, plan:finish(x, 0))
      refused(FORMAT, { "context_length" }, plan:finish(x, 1 << 25))
      local learned = plan:embed("learned", w.embd, w.positions)
      refused(FORMAT, { "positions", "10" }, plan:finish(plan:linear("logits", learned, w.embd), 11))
      local small = plan:embed("small", w.square)
      refused(FORMAT, { "square", "32", "40" }, plan:finish(plan:linear("more", small, w.embd), 10))
    end)
  end)

  describe("the handle", function()
    it("refuses every use after close", function()
      plan:close()
      plan:close()
      assert.equal("kigo.Plan (closed)", tostring(plan))
      for _, method in ipairs { "value_names", "ops", "weights", "info" } do raises("is closed", method) end
      raises("is closed", "weight", "embd")
      raises("is closed", "add", "y", 0, 0)
      raises("is closed", "finish", 0, 10)
    end)

    it("keeps the file open after the file's own handle was closed", function()
      gguf:close()
      collectgarbage()
      assert(plan:norm("y", x, w.vector, nil, { epsilon = 1e-5 }))
      assert.has_error(function() core.plan(gguf) end)
    end)

    it("survives every failed allocation", function()
      local function build()
        local fresh, message, code = core.plan(gguf)
        if not fresh then return nil, message, code end
        local p <close> = fresh
        for i = 0, 40 do
          local table_id, why, why_code = p:weight(i % 2 == 0 and "embd" or "square")
          if not table_id then return nil, why, why_code end
          local value
          value, why, why_code = p:embed("v" .. i, table_id)
          if value then value, why, why_code = p:rope("r" .. i, value, rope) end
          if value then value, why, why_code = p:rename(value, "w" .. i) end
          if not value then return nil, why, why_code end
        end
        return true
      end
      local n = 0
      repeat
        n = n + 1
        core.alloc_inject(n, false)
        local _, before = core.alloc_counts()
        local ok, done, _, code = pcall(build)
        local _, after = core.alloc_counts()
        core.alloc_inject(0, false)
        -- Lua's own memory comes from the same allocator: such a failure is raised
        assert.truthy(not ok or done or code == core.err.MEMORY)
      until after - before < n
      assert.truthy(n > 100)
    end)
  end)
end)
