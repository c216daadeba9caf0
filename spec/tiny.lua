-- tiny.lua - a very small random model made on the spot, with a plan written by hand: what the specs of sequences and
-- steps run on. The second of its two layers sees a window of 20 positions. The other kind, "hybrid", has a state: two
-- of its three layers are convolutions, gated and not, and the attention is between them. The others are for
-- windows_spec: windows on all layers, of several widths, and five in six as gemma3 has them (context 32768); and for
-- what has windows and states.
local core = require "kigo.core"
local build = require "spec.gguf_build"
local vocabulary = require "spec.fixtures.vocabulary"

local tiny = { vocab = 48, hidden = 32, heads = 2, kv_heads = 1, head_dim = 16, ffn = 40, layers = 2, context = 1024,
  taps = 4, kinds = { plain = { "attention", "window" }, hybrid = { "gated", "attention", "conv" },
    narrow = { 20, 5 }, mixed = { 40, 0, 70, 1, 25, 90 }, gemma = { 1024, 1024, 1024, 1024, 1024, 0 },
    wide = { "gated", 30, "conv" }, both = { 0, 20, "gated" } } }

local function tensors(kinds)
  local t, q, kv = tiny, tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
  local attention = { { "attn_q", t.hidden, q }, { "attn_k", t.hidden, kv }, { "attn_v", t.hidden, kv },
    { "attn_output", q, t.hidden } }
  local list = { { name = "token_embd.weight", shape = { t.hidden, t.vocab } },
    { name = "output_norm.weight", shape = { t.hidden } } }
  local function add(i, weights)
    for _, w in ipairs(weights) do
      list[#list + 1] = { name = ("blk.%d.%s.weight"):format(i, w[1]), shape = { w[2], w[3] } }
    end
  end
  for i, kind in ipairs(kinds) do
    local is_conv = kind == "gated" or kind == "conv"
    add(i - 1, { { "attn_norm", t.hidden } })
    add(i - 1, is_conv and { { "in", t.hidden, kind == "gated" and 3 * t.hidden or t.hidden },
      { "conv", t.taps, t.hidden } } or attention)
    add(i - 1, { { "ffn_norm", t.hidden }, { "ffn_gate", t.hidden, t.ffn }, { "ffn_up", t.hidden, t.ffn },
      { "ffn_down", t.ffn, t.hidden } })
  end
  return list
end

local bytes = {}

---@param kind? string
---@return userdata gguf
function tiny.gguf(kind)
  kind = kind or "plain"
  bytes[kind] = bytes[kind] or build.random({ ["general.architecture"] = "tiny" }, tensors(tiny.kinds[kind]))
  return assert(core.parse_gguf(bytes[kind], "tiny"))
end

---@param context integer?
---@param kind? string
---@return userdata plan
function tiny.plan(context, kind)
  local gguf <close> = tiny.gguf(kind)
  local p, t = core.plan(gguf), tiny
  local function weight(name, cols, rows) return p:weight(name .. ".weight", cols, rows) end
  local freqs = {}
  for i = 1, t.head_dim / 2 do freqs[i] = 10000 ^ (-2 * (i - 1) / t.head_dim) end
  local function rope(name, x, heads)
    return p:rope(name, x, { style = "halves", heads = heads, head_dim = t.head_dim, inverse_freqs = freqs })
  end
  local norm = { epsilon = 1e-5 }
  local windows = { window = 20, attention = 0 }
  local table_ = weight("token_embd", t.hidden, t.vocab)
  local x = p:embed("embd", table_)
  for i, block in ipairs(t.kinds[kind or "plain"]) do
    local function n(name) return ("blk.%d.%s"):format(i - 1, name) end
    local function linear(name, input, as)
      return p:linear(n(as or name), input, weight(n(name)))
    end
    local h = p:norm(n "attn_norm", x, weight(n "attn_norm", t.hidden), nil, norm)
    local a
    if block == "gated" or block == "conv" then
      a = p:conv(n "conv", linear("in", h), weight(n "conv"), nil, block == "gated")
    else
      local q = rope(n "q_rope", linear("attn_q", h), t.heads)
      local k = rope(n "k_rope", linear("attn_k", h), t.kv_heads)
      a = linear("attn_output", p:attention(n "attn", q, k, linear("attn_v", h), nil,
        { heads = t.heads, kv_heads = t.kv_heads, head_dim = t.head_dim, window = windows[block] or block }))
    end
    x = p:add(n "attn_sum", x, a)
    h = p:norm(n "ffn_norm", x, weight(n "ffn_norm", t.hidden), nil, norm)
    local g = p:glu(n "ffn_act", linear("ffn_gate", h), linear("ffn_up", h), "silu")
    x = p:add(n "out", x, linear("ffn_down", g))
  end
  x = p:norm("output_norm", x, weight("output_norm", t.hidden), nil, norm)
  assert(p:finish(p:linear("logits", x, table_), context or t.context))
  return p
end

---A model on the tiny plan of a kind; other options as for core.model, on the reference backend unless they say
---otherwise.
---@param options table?
---@return userdata model
function tiny.model(options)
  local all = { device = "reference" }
  for k, v in pairs(options or {}) do all[k] = v end
  local plan <close> = tiny.plan(all.ctx and all.ctx > tiny.context and all.ctx or nil, all.kind)
  all.kind = nil
  return assert(core.model(plan, all))
end

---The same on one of tiny.devices, whose own options the others come on top of.
---@param device table
---@param options table?
---@return userdata model
function tiny.model_on(device, options)
  local all = {}
  for _, one in ipairs { device.options, options or {} } do
    for name, value in pairs(one) do all[name] = value end
  end
  return tiny.model(all)
end

---A model of a single product: a row of its matrix w, the norm n, and w again.
---@param file string   a GGUF file's bytes, with tensors w and n
---@param options table   as for core.model
---@return userdata model
function tiny.product(file, options)
  local gguf <close> = assert(core.parse_gguf(file, "spec"))
  local plan <close> = assert(core.plan(gguf))
  local w = assert(plan:weight "w")
  local x = plan:norm("norm", plan:embed("x", w), assert(plan:weight "n"), nil, { epsilon = 1e-5 })
  assert(plan:finish(plan:linear("logits", x, w), 64))
  return assert(core.model(plan, options))
end

---@param list any[]
---@param first integer
---@param last integer
---@return any[]   a list of these
function tiny.slice(list, first, last) return table.move(list, first, last, 1, {}) end

---A source of whole numbers for random operations: the same for the same seed, everywhere.
---@param seed integer
---@return fun(n: integer): integer   in 1 to n
function tiny.dice(seed)
  local i = 0
  return function(n)
    i = i + 1
    return math.floor(core.uniform(seed, i, 0) * n) + 1
  end
end

---@param n integer
---@param seed integer?
---@return integer[]
function tiny.ids(n, seed)
  local dice, ids = tiny.dice(seed or 1), {}
  for i = 1, n do ids[i] = dice(tiny.vocab) - 1 end
  return ids
end

---A tokenizer for the tiny model: id 0 is "!", 1 is '"', and so on through ASCII; the last one is an end token.
---@return userdata tokenizer
function tiny.tokenizer()
  local rows = {}
  for id = 0, tiny.vocab - 2 do rows[id + 1] = { string.char(33 + id) } end
  rows[tiny.vocab] = { "<end>", 0, 3 }
  local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.of("rwkv", rows,
    { { "tokenizer.ggml.eos_token_id", "u32", tiny.vocab - 1 } })), "tiny"))
  return assert(core.tokenizer(gguf))
end

---The logits that every token of the ids leads to, each as bytes, from one pass over all of them.
---@param model userdata
---@param ids integer[]
---@return string[]
function tiny.oracle(model, ids)
  local logits <close> = assert(model:logits(ids))
  local all, rows, size = logits:bytes(), {}, tiny.vocab * 4
  for i = 1, #ids do rows[i] = all:sub((i - 1) * size + 1, i * size) end
  return rows
end

---What bitwise results are checked on: options of models.
tiny.devices = {
  { name = "reference", options = { device = "reference" } },
  { name = "cpu", options = { device = "cpu", threads = 1 } },
  { name = "cpu with a float16 cache", options = { device = "cpu", threads = 1, kv = "f16" } },
}

---Is there a GPU that works? What is checked on every device is checked there too then.
---@type boolean
tiny.has_gpu = (function()
  local plan <close> = tiny.plan()
  local model = core.model(plan, { device = "cuda" })
  if model then model:close() end
  return model ~= nil
end)()

if tiny.has_gpu then
  for _, kv in ipairs { "f32", "f16" } do
    table.insert(tiny.devices, { name = "cuda, cache " .. kv, options = { device = "cuda", kv = kv } })
  end
end

---The devices, and models with states on them: for what must hold whatever a sequence keeps of its past.
tiny.variants = { table.unpack(tiny.devices) }
for _, device in ipairs(tiny.devices) do
  local options = { kind = "hybrid" }
  for k, v in pairs(device.options) do options[k] = v end
  table.insert(tiny.variants, { name = device.name .. ", with states", options = options, has_states = true })
end

---The oracle's rows from a model of its own that takes everything in one pass.
---@param ids integer[]
---@param options table?
---@return string[]
function tiny.reference(ids, options)
  local model <close> = tiny.model(options)
  return tiny.oracle(model, ids)
end

---Fail allocation after allocation, once and from there on, until the action gets through. `make` gives a fresh
---object, `action(object)` is what must fail cleanly, `check(object)` looks whether it is still good.
---@return integer n  failures that were injected
function tiny.fail_each_allocation(make, action, check)
  local n = 0
  for _, for_ever in ipairs { false, true } do
    local nth, reached = 0, true
    while reached do
      nth = nth + 1
      local object = make()
      local _, before = core.alloc_counts()
      core.alloc_inject(nth, for_ever)
      local ok, result, _, code = pcall(action, object)
      core.alloc_inject(0, false)
      local _, after = core.alloc_counts()
      reached = after - before >= nth
      if not (reached or ok and result) then error("failed without an injected failure: " .. tostring(result)) end
      if ok and not result and code ~= core.err.MEMORY then error("unexpected code " .. tostring(code)) end
      check(object)
      n = n + 1
    end
  end
  return n
end

---A function that loads a plan with these options, runs some tokens and closes it again.
---@param ids integer[]
---@param options table   as for core.model
---@return fun(plan: userdata): userdata?, string?, integer?
function tiny.runner(ids, options)
  return function(plan)
    local model, message, code = core.model(plan, options)
    if not model then return nil, message, code end
    local logits
    logits, message, code = model:logits(ids)
    model:close()
    return logits, message, code
  end
end

---The same for loading the tiny model with these options and running 20 tokens; what was loaded must run afterwards.
---@return integer n  failures that were injected
function tiny.fail_each_allocation_of_a_run(options)
  local open_and_run = tiny.runner(tiny.ids(20), options)
  return tiny.fail_each_allocation(tiny.plan, open_and_run, function(plan)
    if not tostring(plan):find "closed" then assert(open_and_run(plan)):close() end
    collectgarbage()
  end)
end

return tiny
