-- Which experts a row uses and with what shares: every backend against the definition, written down once more here. The
-- router is the identity, so the logits are the rows of the embedding table; expert e gives 1 in column e, else 0.
describe("experts", function()
  local core = require "kigo.core"
  local build = require "spec.gguf_build"
  local model_fixtures = require "spec.model_fixtures"
  local tiny = require "spec.tiny"
  local support = require "spec.support"

  local N, ROWS = 24, 20
  local dice = tiny.dice(3)

  local function identity(i, j) return i == j and 1 or 0 end
  local function matrix(rows, cols, at)
    local list = {}
    for r = 1, rows do
      for c = 1, cols do list[#list + 1] = at(r, c) end
    end
    return list
  end

  -- few different numbers, so that there are ties; none of them the opposite of another, so that no two different sums
  -- of two are equal but for rounding
  local logits = matrix(ROWS, N, function() return ({ 0.1, 0.7, 1.3, 2.2, 3.4, 5.1 })[dice(6)] end)
  local bias = matrix(1, N, function() return ({ 0, 0.11, 0.3 })[dice(3)] end)
  local function tensor(name, shape, values)
    return { name = name, shape = shape, bytes = support.pack_floats(values) }
  end
  local function file_of(numbers, added)
    return build.random({ ["general.architecture"] = "none" }, {
      tensor("embd", { N, ROWS }, numbers), tensor("router", { N, N }, matrix(N, N, identity)),
      { name = "up", shape = { N, 32, N } }, tensor("down", { 32, N, N }, matrix(N * N, 32, function() return 0 end)),
      tensor("down_bias", { N, N }, matrix(N, N, identity)), tensor("bias", { N }, added),
    })
  end
  local file = file_of(logits, bias)

  local function log_sigmoid(x) return math.min(x, 0) - math.log(1 + math.exp(-math.abs(x))) end
  local function log_sum(list)
    local top, sum = math.max(table.unpack(list)), 0
    for _, x in ipairs(list) do sum = sum + math.exp(x - top) end
    return top + math.log(sum)
  end

  -- Indices of the n largest of the list, best first, ties to the lower; `allowed(i)` leaves some out.
  local function best(list, n, allowed)
    local order = {}
    for i = 1, #list do
      if not allowed or allowed(i) then order[#order + 1] = i end
    end
    table.sort(order, function(a, b) return list[a] > list[b] or list[a] == list[b] and a < b end)
    return table.move(order, 1, n, 1, {})
  end

  -- The shares of the experts, by expert; `added` to the scores for the choice, or nil. In logarithms: any logits do.
  local function expected(row, params, added)
    local scores, ranks, total = {}, {}, log_sum(row)
    for e = 1, N do
      scores[e] = params.gate == "sigmoid" and log_sigmoid(row[e]) or row[e] - total
      local is_logit = params.gate == "softmax_used" or not added and params.group_top ~= 2
      ranks[e] = (is_logit and row[e] or math.exp(scores[e])) + (added and added[e] or 0)
    end
    local size, good = N // (params.groups or 1), {}
    for g = 1, params.groups or 1 do
      local part, sum = table.move(ranks, (g - 1) * size + 1, g * size, 1, {}), 0
      for _, i in ipairs(best(part, params.group_top or 1)) do sum = sum + part[i] end
      good[g] = sum
    end
    local is_good = {}
    for _, g in ipairs(best(good, params.groups_used or params.groups or 1)) do is_good[g] = true end
    local used = best(ranks, params.used, function(e) return is_good[(e - 1) // size + 1] end)
    local shares, chosen = {}, {}
    for i, e in ipairs(used) do chosen[i] = scores[e] end
    local sum = (params.normalize or params.gate == "softmax_used") and log_sum(chosen) or 0
    for e = 1, N do shares[e] = 0 end
    for _, e in ipairs(used) do shares[e] = math.exp(scores[e] - sum) * (params.scale or 1) end
    return shares
  end

  local function open(params, biased, options, bytes)
    local gguf <close> = assert(core.parse_gguf(bytes, "spec"))
    local plan <close> = assert(core.plan(gguf))
    local x = plan:embed("x", plan:weight "embd")
    local weights = { gate = plan:weight "up", up = plan:weight "up", down = plan:weight "down",
      down_bias = plan:weight "down_bias", choice_bias = biased and plan:weight "bias" or nil }
    local all = { experts = N, act = "silu" }
    for key, value in pairs(params) do all[key] = value end
    local y = assert(plan:moe("y", x, plan:linear("router", x, plan:weight "router"), weights, all))
    assert(plan:finish(plan:linear("logits", y, plan:weight "embd"), 64))
    return assert(core.model(plan, options))
  end

  local cases = {
    { gate = "softmax", used = 3 }, { gate = "softmax_used", used = 4 }, { gate = "sigmoid", used = 1, scale = 2.5 },
    { gate = "softmax", used = 3, normalize = true, groups = 4, groups_used = 2 },
    { gate = "softmax", used = 6, groups = 6, groups_used = 2, scale = 16 },
    { gate = "sigmoid", used = 4, normalize = true, groups = 4, groups_used = 2, group_top = 2, scale = 2.5 },
    { gate = "sigmoid", used = 6, groups = 12, groups_used = 3, group_top = 2 },
    { gate = "softmax_used", used = 2, groups = 24, groups_used = 5 }, { gate = "softmax", used = 24, groups = 3 },
  }

  -- Logits so low, by themselves and below the first expert's, that in float32 (those from -800 on in float64 too)
  -- neither e^logit nor its sigmoid is a number to divide by. The first expert is never chosen where a bias is added,
  -- and the bias decides which of the others are.
  local LOW = { -60, -67, -71, -84, -87, -88.5, -95, -101, -103, -104, -110, -300, -800, -8192 }
  local far = matrix(ROWS, N, function(r, e)
    return e == 1 and (r % 2 == 0 and 0 or -2e4) or LOW[r % #LOW + 1] - 0.125 * (e * 7 % N)
  end)
  local far_bias = matrix(1, N, function(_, e) return e == 1 and -1e5 or e * 5 % N end)
  local far_file = file_of(far, far_bias)
  local far_cases = {
    { gate = "sigmoid", used = 4, normalize = true, scale = 2.5 }, { gate = "softmax", used = 4, normalize = true },
    { gate = "softmax_used", used = 4 }, { gate = "softmax_used", used = 4, normalize = true, scale = 16 },
    { gate = "softmax", used = 4 },
  }

  -- ---- what a step reads ----

  local experts = require "kigo.bench.experts"
  local edit = require "spec.gguf_edit"
  local arch = require "kigo.arch"
  local kigo = require "kigo"
  local PROMPT = { 5, 17, 60, 3, 44 }

  -- Bytes of experts that a step of one token more reads, in each of these sequences.
  local function bytes_of_a_step(model, seqs)
    for _, seq in ipairs(seqs) do assert(seq:push(7)) end
    local meter = experts.meter(model)
    local bytes = not meter and experts.profiled(model, seqs)
    assert(model:step(seqs))
    return bytes or meter()
  end

  local function sequences(model, prompts)
    local seqs = setmetatable({}, { __close = function(list) for _, seq in ipairs(list) do seq:close() end end })
    for i, prompt in ipairs(prompts) do
      seqs[i] = assert(model:sequence { prefix_cache = false })
      assert(seqs[i]:feed(prompt))
    end
    assert(model:step(seqs))
    return seqs
  end

  local FILES = { "families/qwen3moe", "families/qwen2moe", "families/deepseek2", "families/deepseek2_v3" }
  for _, name in ipairs { "mixtral", "gptoss", "gptoss_mxfp4" } do FILES[#FILES + 1] = "models/" .. name end

  for _, device in ipairs(tiny.devices) do
    for _, name in ipairs(FILES) do
      it(("are read only where they are used: %s, %s"):format(device.name, name), function()
        local path = name:find "^fam" and "spec/fixtures/" .. name .. ".gguf" or support.fixture(name .. ".gguf")
        local gguf <close> = assert(core.open_gguf(path))
        local prefix = gguf:get "general.architecture" .. "."
        local count, used = gguf:get(prefix .. "expert_count"), gguf:get(prefix .. "expert_used_count")
        local model <close>, _, code = kigo.load(path, device.options)
        if not model and device.options.device == "cuda" then return assert.equal(core.err.UNSUPPORTED, code) end
        local all = assert(experts.all(model))
        do
          local one <close> = sequences(model, { PROMPT })
          assert.equal(all * used / count, bytes_of_a_step(model, one))
        end
        do -- the same tokens need the same experts
          local same <close> = sequences(model, { PROMPT, PROMPT, PROMPT })
          assert.equal(all * used / count, bytes_of_a_step(model, same))
        end
        local prompts = {}
        for i = 1, 40 do prompts[i] = { i, 2 * i, 90 - i } end
        local many <close> = sequences(model, prompts)
        local bytes = bytes_of_a_step(model, many)
        assert.is_true(bytes > all * used / count and bytes <= all)
      end)
    end

    it("leave no trace where they are not used: " .. device.name, function()
      local parts, ids = edit.read(support.read(support.fixture "models/mixtral.gguf")), { 5, 17, 60 }
      local function run(bytes, names)
        local gguf <close> = assert(core.parse_gguf(bytes, "spec"))
        local plan <close> = assert(arch.build(gguf))
        local model <close> = assert(core.model(plan, device.options))
        local got <close> = assert(model:logits(ids))
        return got:bytes(), names and assert(model:trace(ids, names))
      end
      local routers = {}
      for _, weight in ipairs(parts.tensors) do
        local block = weight.name:match "^(blk%.%d+)%.ffn_gate_inp"
        if block then routers[#routers + 1] = block .. ".ffn_gate_inp" end
      end
      local before, traced = run(edit.write(parts), routers)
      -- numbers that are none, wherever no row's choice falls
      local data, poisoned = parts.data, 0
      for _, weight in ipairs(parts.tensors) do
        local block = weight.name:match "^(blk%.%d+)%.ffn_%a+_exps%.weight$"
        if block then
          local is_used, plane = {}, weight.dims[1] * weight.dims[2] * 4
          for row = 0, #ids - 1 do
            for _, id in ipairs((traced[block .. ".ffn_gate_inp"]:row(row):topk(2))) do is_used[id] = true end
          end
          for expert = 0, weight.dims[3] - 1 do
            if not is_used[expert] then
              local at = weight.offset + expert * plane
              data = data:sub(1, at) .. ("\0\0\xC0\x7F"):rep(plane // 4) .. data:sub(at + plane + 1)
              poisoned = poisoned + 1
            end
          end
        end
      end
      assert.is_true(poisoned > 0)
      assert.is_true(before == run(edit.write(edit.with(parts, { data = data }))))
    end)

    local function check(list, added, bytes, params, title)
      local ids = {}
      for i = 1, ROWS do ids[i] = i - 1 end
      local model <close> = open(params, added ~= nil, device.options, bytes)
      local shares = assert(model:trace(ids, { "y" })).y
      for i = 1, ROWS do
        local row = table.move(list, (i - 1) * N + 1, i * N, 1, {})
        local wanted, got = expected(row, params, added), shares:row(i - 1):totable()
        for e = 1, N do
          assert.is_true(math.abs(got[e] - wanted[e]) <= 1e-5 * (params.scale or 1),
            ("%s, row %d, expert %d: %g, %g wanted"):format(title, i, e, got[e], wanted[e]))
        end
      end
    end

    it("are chosen and weighed by definition: " .. device.name, function()
      for c, params in ipairs(cases) do
        check(logits, nil, file, params, "case " .. c)
        check(logits, bias, file, params, "case " .. c .. " biased")
      end
    end)

    it("have shares however unlikely all of them are: " .. device.name, function()
      for _, params in ipairs(far_cases) do
        check(far, far_bias, far_file, params, params.gate .. " biased")
        if params.gate == "sigmoid" then check(far, nil, far_file, params, "sigmoid") end
      end
    end)
  end

  -- Which of gates, ups and downs are float32 and which are not may differ.
  local TYPES = { f32 = { 0, "F32" }, f16 = { 1, "F16" }, q8 = { 8, "Q8_0" }, bf16 = { 30, "BF16" } }
  for _, mix in ipairs { { "f32", "f16", "q8" }, { "q8", "f32", "f32" }, { "f16", "q8", "f16" },
    { "q8", "q8", "q8" }, { "bf16", "bf16", "q8" } } do
    local function typed(name, shape, type)
      local values, random = {}, tiny.dice(#name)
      for i = 1, shape[1] * shape[2] * shape[3] do values[i] = (random(2001) - 1001) / 1000 / shape[1] ^ 0.5 end
      local bytes = support.pack_floats(values)
      if type[2] ~= "F32" then bytes = core.quantize(type[2], bytes) end
      return { name = name, shape = shape, type = type[1], bytes = bytes }
    end
    local mixed = build.random({ ["general.architecture"] = "none" }, {
      { name = "embd", shape = { 32, ROWS } }, { name = "router", shape = { 32, N } },
      typed("gate", { 32, 64, N }, TYPES[mix[1]]), typed("upward", { 32, 64, N }, TYPES[mix[2]]),
      typed("downward", { 64, 32, N }, TYPES[mix[3]]),
    })
    local ids = {}
    for i = 1, 210 do ids[i] = i * 7 % ROWS end
    local function run(options, chunk)
      local all = { chunk = chunk }
      for key, value in pairs(options) do all[key] = value end
      local gguf <close> = assert(core.parse_gguf(mixed, "spec"))
      local plan <close> = assert(core.plan(gguf))
      local x = plan:embed("x", plan:weight "embd")
      local weights = { gate = plan:weight "gate", up = plan:weight "upward", down = plan:weight "downward" }
      local y = assert(plan:moe("y", x, plan:linear("router", x, plan:weight "router"), weights,
        { experts = N, used = 3, act = "silu", gate = "softmax" }))
      assert(plan:finish(plan:linear("logits", y, plan:weight "embd"), 256))
      local model <close> = assert(core.model(plan, all))
      local made <close> = assert(model:logits(ids))
      return made:bytes()
    end
    it(("of types %s come to the same however many rows share them"):format(table.concat(mix, ", ")), function()
      local wanted = run { device = "reference" }
      for _, device in ipairs(tiny.devices) do
        local got = run(device.options)
        local _, relative = model_fixtures.difference(got, wanted)
        assert.is_true(relative < 1e-2, ("%s: relative difference %g"):format(device.name, relative))
        for _, chunk in ipairs { 1, 9, 50 } do
          assert.is_true(got == run(device.options, chunk), ("%s: chunks of %d"):format(device.name, chunk))
        end
      end
    end)
  end
end)
