-- fuzz_targets.lua - what is tried with inputs that nobody wrote. Every input is a string, so that every finding is a
-- file: `make` writes one, `try` bears it or raises. Lua source stands for calls with arguments.
local kigo = require "kigo"
local arch = require "kigo.arch"
local build = require "spec.gguf_build"
local fuzz = require "spec.fuzz"
local models = require "spec.fuzz_models"
local random_grammar = require "spec.random_grammar"
local regex = require "kigo.regex"
local support = require "spec.support"
local tiny = require "spec.tiny"
local vocabulary = require "spec.fixtures.vocabulary"

local core = kigo.core

---@type table<string, spec.FuzzTarget>
local targets = {}

-- ---- gguf: everything that can be read of a file ----

local function model_seeds()
  local list = {}
  for i, m in ipairs(models.list) do list[i] = models.write(m) end
  return list
end

local GGUF_WORDS = { "GGUF", "general.architecture", "general.alignment", "split.count", "split.no", "llama", "qwen2",
  "token_embd.weight", "tokenizer.ggml.tokens", string.pack("<I4", 8), string.pack("<I4", 9), string.pack("<j", -1),
  string.pack("<j", 1 << 62), string.pack("<j", 0), string.pack("<I4I8", 9, 1 << 40) }

local function make_model_file(dice, seeds)
  return dice:once_in(3) and fuzz.mutate(dice, seeds, GGUF_WORDS) or models.wrong(dice)
end

local function read_everything(gguf)
  for _, entry in ipairs(gguf:entries()) do
    local value = gguf:get(entry.key)
    if entry.is_array and type(value) ~= "table" then error("an array is no table: " .. entry.key) end
  end
  for _, tensor in ipairs(gguf:tensors()) do
    if gguf:tensor(tensor.name).bytes ~= tensor.bytes then error("another tensor " .. tensor.name) end
    local called, values, message, code = pcall(gguf.values, gguf, tensor.name)
    if called then fuzz.accepted(values, message, code) end -- raises for more than 65536 numbers
  end
  return gguf:path(), gguf:version(), gguf:files(), gguf:bytes(), gguf:parameters(), tostring(gguf)
end

targets.gguf = {
  seeds = model_seeds(), make = make_model_file,
  try = function(bytes)
    local gguf <close> = fuzz.accepted(core.parse_gguf(bytes, "fuzz"))
    if not gguf then return false end
    read_everything(gguf)
    return true
  end,
}

-- ---- load: whatever is taken must run ----

local function run_four(model)
  local seq <close> = assert(model:sequence { seed = 1 })
  assert(seq:push(model.vocab_size - 1))
  for _ = 1, 4 do
    local done = fuzz.accepted(seq:step())
    if not done then return end
    local logits <close> = seq.logits
    local best = logits:argmax()
    if best < 0 or best >= model.vocab_size then error("argmax gives " .. best) end
    if not fuzz.accepted(seq:push(best)) then return end -- a context of less than four
  end
end

local function try_on(gguf, device)
  local plan <close> = fuzz.accepted(arch.build(gguf))
  if not plan then return false end
  local model <close> = fuzz.accepted(core.model(plan, { device = device, threads = 1 }))
  if not model then return false end
  run_four(model)
  return true
end

local function try_tokenizer(gguf)
  if gguf:get "tokenizer.ggml.model" == nil then return end
  local tokenizer <close> = fuzz.accepted(core.tokenizer(gguf))
  if not tokenizer then return end
  local ids = fuzz.accepted(tokenizer:encode "hello hell\u{e9} <|im_start|>\xFF")
  if ids then tokenizer:decode(ids, { control = true }) end
  fuzz.accepted(kigo.template.find(gguf, tokenizer))
end

targets.load = {
  seeds = model_seeds(), make = make_model_file,
  try = function(bytes)
    local gguf <close> = fuzz.accepted(core.parse_gguf(bytes, "fuzz"))
    if not gguf then return false end
    try_tokenizer(gguf)
    local one, other = try_on(gguf, "reference"), try_on(gguf, "cpu")
    if one ~= other then error("only one of the devices takes it") end
    return one
  end,
}

-- ---- adapters: whatever is taken must run, beside a sequence that notices nothing ----

local adapted = {}
for _, device in ipairs { "reference", "cpu" } do adapted[device] = tiny.model { device = device, threads = 1 } end

local function adapter_file(alpha, ...)
  local tensors = {}
  for i, row in ipairs { ... } do tensors[i] = { name = row[1], shape = { row[2], row[3] } } end
  return build.random({ ["general.type"] = "adapter", ["adapter.type"] = "lora", ["general.architecture"] = "tiny",
    ["adapter.lora.alpha"] = alpha }, tensors)
end

local function run_beside(model, gguf)
  local adapter <close> = fuzz.accepted(model:adapter(gguf))
  if not adapter then return false end
  local plain <close> = model:sequence {}
  plain:feed { 1, 2, 3 }
  local bytes = plain.logits:bytes()
  local seq <close> = model:sequence {}
  assert(seq:adapt(adapter, 0.5))
  for _, one in ipairs { plain, seq } do
    one:rewind(0)
    one:feed { 1, 2, 3 }
  end
  assert(model:step { seq, plain })
  if plain.logits:bytes() ~= bytes then error "another sequence's numbers changed" end
  return true
end

targets.adapter = {
  seeds = {
    adapter_file(4.0, { "blk.0.attn_q.weight.lora_a", 32, 2 }, { "blk.0.attn_q.weight.lora_b", 2, 32 }),
    adapter_file(0.0, { "token_embd.weight.lora_a", 3, 48 }, { "token_embd.weight.lora_b", 3, 32 },
      { "blk.1.ffn_down.weight.lora_b", 1, 32 }, { "blk.1.ffn_down.weight.lora_a", 40, 1 }),
  },
  make = function(dice, seeds)
    return fuzz.mutate(dice, seeds, { "lora", "adapter", ".lora_a", ".lora_b", "attn_k", "ffn_up", "output_norm",
      string.pack("<I4", 0x7FC00000), string.pack("<j", -1), string.pack("<j", 1 << 62), string.pack("<j", 32) })
  end,
  try = function(bytes)
    local gguf <close> = fuzz.accepted(core.parse_gguf(bytes, "fuzz"))
    if not gguf then return false end
    local one, other = run_beside(adapted.reference, gguf), run_beside(adapted.cpu, gguf)
    if one ~= other then error("only one of the devices takes it") end
    return one
  end,
  finish = function()
    for _, model in pairs(adapted) do model:close() end
  end,
}

-- ---- text ----

local tokenizers = {}
for name, entries in pairs(models.vocabularies) do
  local gguf <close> = assert(core.parse_gguf(vocabulary.file(entries), name))
  tokenizers[name] = assert(core.tokenizer(gguf))
end

-- Byte-level BPE with every pre-tokenizer.
local splitters = {}
for _, name in ipairs(core.pretokenizers()) do
  local gguf <close> = assert(core.parse_gguf(vocabulary.file(models.vocabularies.qwen2), name))
  splitters[name] = assert(core.tokenizer(gguf, { pre = name }))
end
local normalizing
do
  local gguf <close> = assert(core.parse_gguf(vocabulary.file(models.vocabularies.qwen2), "fuzz"))
  normalizing = assert(core.tokenizer(gguf, { normalize = true }))
end

local function check_ids(ids, size)
  for _, id in ipairs(ids) do
    if math.type(id) ~= "integer" or id < 0 or id >= size then error("id " .. tostring(id)) end
  end
end

targets.encode = {
  make = function(dice, seeds) return dice:once_in(3) and fuzz.mutate(dice, seeds) or dice:text(60) end,
  try = function(text)
    for name, tokenizer in pairs(tokenizers) do
      local ids = assert(tokenizer:encode(text))
      check_ids(ids, tokenizer.size)
      for _, id in ipairs(ids) do
        if tokenizer:is_control(id) then error(("%s: plain text became the control token %d"):format(name, id)) end
      end
      -- SentencePiece writes a space as U+2581 and reads it so.
      local is_spaced = name == "spm" or name == "unigram-bytes" or name == "gemma4"
      local wanted = is_spaced and text:gsub("\u{2581}", " ") or text
      local got = tokenizer:decode(ids)
      if models.lossless[name] and got ~= wanted then error(("%s: decode(encode(x)) is %q"):format(name, got)) end
    end
    return true
  end,
}

-- White space and digits in runs, letters of all kinds, bytes that are no UTF-8: what regular expressions trip over.
local TEXT_WORDS = { "'s", "'LL", " ", "\n", "\r\n", "\t", "1", "12", "a", "B", "/", "!", "\xFF", "\xE4\xB8",
  "\u{301}" }

local function make_text(dice, seeds)
  if dice:once_in(4) then return fuzz.mutate(dice, seeds) end
  if dice:once_in(3) then return dice:text(60) end
  local parts = {}
  for i = 1, dice:roll(30) do
    local part
    if dice:once_in(3) then
      part = utf8.char(dice:roll(dice:pick { 0x80, 0x800, 0x3100, 0xD7FF, 0x1FFFF }))
    else
      part = dice:pick(TEXT_WORDS)
    end
    parts[i] = part:rep(dice:once_in(5) and dice:roll(40) or 1)
  end
  return table.concat(parts)
end

targets.split = {
  make = make_text,
  try = function(text)
    for name, tokenizer in pairs(splitters) do
      local last = 0
      for _, at in ipairs(assert(core.split(name, text))) do
        if at <= last then error(("%s: a word ends at %d, the one before at %d"):format(name, at, last)) end
        last = at
      end
      if last ~= #text then error(("%s: the last word ends at %d"):format(name, last)) end
      local ids = assert(tokenizer:encode(text))
      check_ids(ids, tokenizer.size)
      if tokenizer:decode(ids) ~= text then error(name .. ": another text after decode(encode(x))") end
    end
    local normal = normalizing:decode(assert(normalizing:encode(text)))
    if normalizing:decode(assert(normalizing:encode(normal))) ~= normal then error "a normal form that is none" end
    return true
  end,
}

-- What a stream shows of ids, and why it ended.
local function show(tokenizer, ids, stop)
  local stream <close> = assert(core.stream(tokenizer, { stop = stop }))
  local shown = {}
  for i, id in ipairs(ids) do
    shown[i] = assert(stream:add(id))
    if i == #ids // 2 then
      local twin <close> = stream:copy()
      if twin.text ~= stream.text then error "a copy says something else" end
    end
  end
  shown[#shown + 1] = assert(stream:finish())
  for i, text in ipairs(shown) do
    if not utf8.len(text) then error(("piece %d is no UTF-8: %q"):format(i, text)) end
  end
  local all = table.concat(shown)
  if all ~= stream.text then error(("shown %q, text %q"):format(all, stream.text)) end
  return all, stream.reason
end

-- ---- vocabularies that lie ----

local TEXTS = { "", "hello hell\u{e9} <|im_start|>\xFF", " <u>  Hh\u{4e2d}\u{2581}", ("h"):rep(101) .. "[MASK] x",
  ("e\u{301}"):rep(40) .. "</s>\0\n" }

local function check_text(tokenizer, text)
  local plain = fuzz.accepted(tokenizer:encode(text))
  if not plain then return false end
  check_ids(plain, tokenizer.size)
  for _, id in ipairs(plain) do
    if tokenizer:is_control(id) then error(("plain text became the control token %d"):format(id)) end
  end
  local framed = fuzz.accepted(tokenizer:encode(text, { bos = true, eos = true, special = true }))
  if not framed then return false end
  check_ids(framed, tokenizer.size)
  if tokenizer.add_bos and (framed[1] ~= tokenizer.bos or framed[2] == tokenizer.bos) then error "not one BOS" end
  tokenizer:decode(framed)
  tokenizer:decode(framed, { control = true })
  show(tokenizer, plain, { "hell" })
  return true
end

local VOCABULARY_WORDS = { "tokenizer.ggml.model", "t5", "bert", "rwkv", "llama", "gpt2", "none", "<0x41>", "\u{2581}",
  "tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
  string.pack("<I4", 1), string.pack("<I4", 4), string.pack("<f", 0 / 0), string.pack("<f", 1e38) }

local function vocabulary_seeds()
  local list = {}
  for _, entries in pairs(models.vocabularies) do list[#list + 1] = vocabulary.file(entries) end
  table.sort(list)
  return list
end

targets.vocabulary = {
  seeds = vocabulary_seeds(),
  make = function(dice, seeds)
    return dice:once_in(3) and fuzz.mutate(dice, seeds, VOCABULARY_WORDS) or models.wrong_vocabulary(dice)
  end,
  try = function(bytes)
    local gguf <close> = fuzz.accepted(core.parse_gguf(bytes, "fuzz"))
    if not gguf then return false end
    local tokenizer <close> = fuzz.accepted(core.tokenizer(gguf))
    if not tokenizer then return false end
    for id = 0, math.min(tokenizer.size, 300) - 1 do
      local control = tokenizer:is_control(id) and tokenizer:control(tokenizer:piece(id))
      if control and tokenizer:piece(control) ~= tokenizer:piece(id) then error("control token " .. id) end
      tokenizer:is_end(id)
    end
    local taken = true
    for _, text in ipairs(TEXTS) do taken = check_text(tokenizer, text) and taken end
    return taken
  end,
}

-- Ids as little-endian 32-bit numbers; most of them in the vocabulary.
local function make_ids(dice, seeds)
  if dice:once_in(4) then return fuzz.mutate(dice, seeds) end
  local list = {}
  for i = 1, dice:roll(40) do
    list[i] = string.pack("<j", dice:once_in(20) and dice:extreme() or dice:roll(265) - 1):sub(1, 4)
  end
  return table.concat(list)
end

local function try_ids(tokenizer, ids)
  local valid = true
  for _, id in ipairs(ids) do valid = valid and id >= 0 and id < tokenizer.size end
  local called, text = pcall(tokenizer.decode, tokenizer, ids)
  if called ~= valid then error(("decode %s ids that are %s"):format(called and "takes" or "refuses",
    valid and "right" or "wrong")) end
  if not valid then return false end
  tokenizer:decode(ids, { control = true })
  local all, reason = show(tokenizer, ids)
  if reason == "length" and utf8.len(text) and all ~= text then
    error(("the stream says %q, decode %q"):format(all, text))
  end
  local stopped = show(tokenizer, ids, { "hell", "\u{e9}", "o w" })
  if all:sub(1, #stopped) ~= stopped then error(("%q does not begin with %q"):format(all, stopped)) end
  if stopped:find("hell", 1, true) then error "a stop string was shown" end
  return true
end

targets.decode = {
  make = make_ids,
  try = function(bytes)
    local ids, taken = {}, false
    for at = 1, #bytes - 3, 4 do ids[#ids + 1] = string.unpack("<i4", bytes, at) end
    for _, tokenizer in pairs(tokenizers) do taken = try_ids(tokenizer, ids) end
    return taken
  end,
}

-- ---- chat templates and messages ----

local TEMPLATE_WORDS = { "{%", "%}", "{{", "}}", "{#", "#}", "{%-", "-%}", "'", '"', "\\", "\\n", "[", "]", "(", ")",
  "+", "|", "~", "if ", "elif ", "else", "endif", "for ", "endfor", "tool", "tools", "message", "messages",
  "['role']", ".content", "<|im_start|>", "<|im_end|>", "system", "assistant", "add_generation_prompt", "loop.first",
  "\0" }

local MARKERS = { ["<|im_start|>"] = true, ["<|im_end|>"] = true }

-- Only the template's own markers are control, whatever the messages spell.
local function check_segments(segments)
  for _, segment in ipairs(segments) do
    if segment.control and not MARKERS[segment.control] then error("control segment " .. segment.control) end
    if not segment.control and type(segment.text) ~= "string" then error "a segment without text" end
  end
  return segments
end

targets.template = {
  make = function(dice, seeds) return fuzz.mutate(dice, seeds, TEMPLATE_WORDS) end,
  try = function(source)
    local template = fuzz.accepted(kigo.template.new(source, tokenizers.qwen2))
    if not template then return false end
    for _, options in ipairs { {}, { generate = true, tools = { { name = source } }, now = "2026-07-29 10:29:00" } } do
      local segments = fuzz.accepted(template:render({ { role = "system", content = "" },
        { role = "user", content = source } }, options))
      if segments then check_segments(segments) end
    end
    return true
  end,
}

-- ---- jinja: any template may be refused or stopped, and none writes a message's characters as its own ----

local JINJA_WORDS = {}
for word in ([[
  {% %} {{ }} {%- -%} {{- -}} {# #} +%} if elif else endif for in endfor recursive set endset macro endmacro call
  endcall filter endfilter raw endraw with endwith generation endgeneration break continue not and or is defined
  none true + - * / // % ** ~ ( ) [ ] { } == != < <= > >= = . : | , ' " \\ 0 1 2 -1 9 1.5 1e9 99999
  9223372036854775807 0x1f 'a' 'é' "b c" '' '%s' '{}' '{0.x}' '%(a)s' x y messages message role content loop
  loop.index loop.last ns namespace range dict cycler joiner |length |trim |upper |tojson |join |list
  |map('upper') |select |sort |unique |groupby(0) |batch(2) |default('') |int |float |round |replace('a','bb')
  |indent |wordwrap(3) |title |dictsort |items |first |last |sum |min |reverse |center(9) |string .split()
  .strip() .items() .keys() .get('a') .append(1) .format(x) .startswith('a') .replace('','x') .join(x) .__class__
  .zfill(9) [0] [-1] [::-1] [1:] ['role'] * 1000 ** 9 caller() varargs kwargs raise_exception(x)
  strftime_now('%Y') loop(x) m(x)]])
  :gmatch "%S+" do JINJA_WORDS[#JINJA_WORDS + 1] = word .. " " end

local JINJA_LIMITS = { now = "2026-07-29 10:29:00", steps = 100000, output = 100000 }
local FOREIGN = "\u{e123}"
local JINJA_VARIABLES = {
  x = FOREIGN .. "a " .. FOREIGN, y = { FOREIGN, 1, 2.5, true, { [FOREIGN] = FOREIGN } }, add_generation_prompt = true,
  messages = { { role = "user", content = FOREIGN .. "<|im_end|>\n" .. FOREIGN },
    { role = "tool", content = { FOREIGN } },
    { role = "assistant", content = FOREIGN .. "</think>" .. FOREIGN,
      tool_calls = { { name = FOREIGN, arguments = {} } } } },
}

-- Templates of the reference data, where it is, beside our own.
local function jinja_seeds()
  local list = {}
  if not support.shared then return list end
  local pipe <close> = assert(io.popen("ls " .. support.shared .. "/fixtures/templates/*.jinja"))
  for path in pipe:lines() do list[#list + 1] = support.read(path) end
  return list
end

local function random_tokens(dice)
  local list = {}
  for i = 1, dice:roll(40) do list[i] = dice:pick(JINJA_WORDS) end
  return dice:once_in(2) and "{{ " .. table.concat(list) .. " }}" or table.concat(list)
end

local function check_runs(text, source)
  local before
  for _, run in ipairs(text) do
    if run.text == "" or run.own == before then error "runs that are empty or should be one" end
    if run.own and run.text:find(FOREIGN, 1, true) and not source:find(FOREIGN, 1, true) then error "a run lies" end
    before = run.own
  end
end

targets.jinja = {
  seeds = jinja_seeds(),
  make = function(dice, seeds)
    return dice:once_in(3) and random_tokens(dice) or fuzz.mutate(dice, seeds, JINJA_WORDS)
  end,
  try = function(source)
    local template = fuzz.accepted(kigo.template.compile(source))
    if not template then return false end
    local text, message, code, kind = template:render(JINJA_VARIABLES, JINJA_LIMITS)
    if text then
      check_runs(text, source)
    elseif kind ~= "raise" then -- its message is whatever the template says
      fuzz.check_refusal(message, code)
    end
    return true
  end,
}

local function any_value(dice, depth)
  local choice = dice:roll(depth > 2 and 5 or 8)
  if choice == 1 then return dice:extreme() end
  if choice == 2 then return dice:float() end
  if choice == 3 then return dice:once_in(2) end
  if choice <= 5 then return dice:text(4) end
  local made = {}
  for _ = 1, dice:roll(4) - 1 do made[#made + 1] = any_value(dice, depth + 1) end
  local name = dice:pick { "text", "control", "role", "content", "n" }
  if dice:once_in(3) then made[name] = any_value(dice, depth + 1) end
  return made
end

local function make_messages(dice)
  local list = {}
  for i = 1, dice:roll(5) - (dice:once_in(9) and 1 or 0) do
    local message = { role = dice:pick { "system", "user", "assistant", "tool" }, content = dice:text(8) }
    if dice:once_in(6) then message[dice:pick { "role", "content", "tool_calls" }] = any_value(dice, 0) end
    list[i] = dice:once_in(20) and any_value(dice, 0) or message
  end
  return "return " .. fuzz.source(list)
end

local chatml
do
  local gguf <close> = assert(core.parse_gguf(vocabulary.file(models.vocabularies.qwen2), "qwen2"))
  chatml = assert(kigo.template.find(gguf, tokenizers.qwen2, "chatml"))
end

-- A number that stands in a field for any other wrong type is as good: only the caller's mistakes may raise.
targets.messages = {
  make = make_messages,
  try = function(source)
    local template = chatml
    local messages = assert(load(source, "=messages", "t", {}))()
    local called, segments, message, code = pcall(template.render, template, messages, { generate = true })
    if not called then
      if type(segments) ~= "string" or not segments:find "message" then error(segments, 0) end
      return false
    end
    if not fuzz.accepted(segments, message, code) then return false end
    local n, found = 0, 0
    for _, segment in ipairs(check_segments(segments)) do n = n + (segment.control and 1 or 0) end
    for _, id in ipairs(assert(tokenizers.qwen2:encode(segments))) do
      found = found + (tokenizers.qwen2:is_control(id) and 1 or 0)
    end
    if n ~= found then error(("%d control tokens for %d control segments"):format(found, n)) end
    return true
  end,
}

-- ---- answers ----

local ANSWER_WORDS = { "<think>", "</think>", "<tool_call>", "</tool_call>", "\n", "{", "}", "[", "]", '"', "\\", ":",
  '{"name": "f", "arguments": {"x": 1}}', "null", "1e5", "<function=f>", "<parameter=x>", "</parameter>", "</function>",
  "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "f.call(", ")", "<｜tool▁calls▁begin｜>",
  "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "```json\n", "<|channel|>", "final", "analysis",
  " to=functions.f", "<|message|>", "<|end|>", "<|start|>", "<｜DSML｜function_calls>", '<｜DSML｜invoke name="f">',
  "</｜DSML｜invoke>", ";", ",", "<|tool_call>call:f{", '<|"|>', "<tool_call|>", "<|tool_call_start|>[", "f(x=", "'",
  "<|tool_call_end|>" }

---The answer in an order that does not depend on how it came about.
local function answer_text(answer)
  local parts = { answer.content, answer.reasoning or "-" }
  for _, call in ipairs(answer.tool_calls) do
    parts[#parts + 1] = ("%s(%s)%s"):format(call.name, call.arguments, call.id or "")
    if not kigo.json.decode(call.arguments) then error("arguments that are no JSON: " .. call.arguments) end
  end
  return table.concat(parts, "|")
end

-- Whatever a model says is an answer, and it is the same one a byte at a time.
targets.parse = {
  make = function(dice, seeds) return fuzz.mutate(dice, seeds, ANSWER_WORDS) end,
  try = function(text)
    local n_calls = 0
    for _, format in ipairs(kigo.parse.formats) do
      local whole = kigo.parse.text(format.name, text)
      local parser = kigo.parse.new(format.name, { hold = true })
      for at = 1, #text do parser:add(text:sub(at, at)) end
      parser:finish()
      if answer_text(parser:result()) ~= answer_text(whole) then error(format.name .. " depends on the cuts") end
      n_calls = n_calls + #whole.tool_calls
    end
    return n_calls > 0
  end,
}

-- ---- the tiny model: receipts and the Lua API ----

-- Opened once for each device: kept open, because what one case may do to the next is what is looked for.
local opened, answers = {}, {}

local function tiny_model(device)
  if opened[device] then return opened[device] end
  local path = os.tmpname()
  assert(core.make_model(path, { like = "tiny", type = "q8_0" }))
  opened[device] = assert(kigo.load(path, { device = device, threads = 1, ctx = 96 }))
  return opened[device]
end

local function close_models()
  for _, model in pairs(opened) do
    os.remove(model.path)
    model:close()
  end
  opened, answers = {}, {}
end

local RECEIPT_WORDS = { "{", "}", "[", "]", ",", ":", '"', "null", "true", "-1", "0", "1e999", "1e-999", "4294967296",
  "9223372036854775808", "0.1", "NaN", "\\u0000", "\\ud800", '"kind"', '"temp"', '"bias"', '"ids"', '"logits"',
  '"seed"', '"script"', "[[[[[[[[[[[[[[[[[[[[[", "{}", "[]", "\\n" }

local receipt_seeds

local function fresh_receipts()
  if receipt_seeds then return receipt_seeds end
  receipt_seeds = {}
  for i, options in ipairs { { temp = 0 }, { seed = 5, top_k = 3, top_p = 0.9, repeat_penalty = 1.1 } } do
    options.receipt, options.max = true, 4
    local answer = assert(tiny_model "cpu":chat({ { role = "user", content = "Hi" } }, options))
    receipt_seeds[i] = kigo.receipt.encode(answer.receipt)
  end
  return receipt_seeds
end

-- Set one field, however deep, to anything.
local function change_field(dice, value)
  local keys = {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  if #keys == 0 then return end
  local key = dice:pick(keys)
  if type(value[key]) == "table" and not dice:once_in(6) then return change_field(dice, value[key]) end
  local is_number = type(value[key]) == "number"
  value[key] = is_number and dice:once_in(3) and value[key] + dice:roll(3) - 2 or is_number and dice:roll(384) - 1
    or dice:once_in(2) and any_value(dice, 1) or nil
end

local function changed_receipt(dice)
  local receipt = assert(kigo.receipt.decode(dice:pick(fresh_receipts())))
  for _ = 1, dice:roll(3) do change_field(dice, receipt) end
  local written, text = pcall(kigo.receipt.encode, receipt) -- no keys but strings in objects
  return written and text or "{}"
end

targets.receipt = {
  finish = close_models,
  make = function(dice, seeds)
    if dice:once_in(2) then return changed_receipt(dice) end
    return fuzz.mutate(dice, dice:once_in(4) and seeds or fresh_receipts(), RECEIPT_WORDS)
  end,
  try = function(text)
    local receipt = fuzz.accepted(kigo.receipt.decode(text))
    if not receipt then return false end
    local again = kigo.receipt.encode(receipt)
    if kigo.receipt.encode(assert(kigo.receipt.decode(again))) ~= again then error "encode(decode(x)) is not stable" end
    local report = fuzz.accepted(kigo.receipt.verify(tiny_model "cpu", receipt))
    if not report then return false end
    if report.passed ~= (#report.problems == 0) then error "passed with problems" end
    for _, problem in ipairs(report.problems) do fuzz.check_refusal(problem, core.err.FORMAT) end
    return report.passed
  end,
}

-- ---- make-model: options of the writer ----

local function make_options(dice)
  local options = { like = "tiny", type = dice:pick { "q8_0", "f32", "q4_0", "f16", "bf16" }, seed = dice:extreme() }
  for _ = 1, dice:roll(3) - 1 do
    options[dice:pick { "like", "like", "type", "type", "seed", "sed", dice:text(1) }] = dice:pick { dice:text(2),
      dice:extreme(), dice:float(), "tiny\0", "qwen2.5-7b", "TINY", "q4_k", "i32", "tq1_0", "F32", {}, true }
  end
  return "return " .. fuzz.source(options)
end

targets["make-model"] = {
  make = make_options,
  try = function(source)
    local options = assert(load(source, "=options", "t", {}))()
    local path = os.tmpname()
    os.remove(path)
    local is_large = options.like ~= "tiny" -- stopped before it has written much
    options.progress = function() return is_large end
    local called, made, message, code = pcall(core.make_model, path, options)
    local file = io.open(path, "rb")
    if file then file:close() end
    local good, fault = pcall(function()
      if (called and made ~= nil) ~= (file ~= nil) then error "a file without success, or success without a file" end
      if not called then return false end
      if not fuzz.accepted(made, message, code) then return false end
      local model <close> = assert(kigo.load(path, { device = "reference" }))
      run_four(model)
      return true
    end)
    os.remove(path)
    if not good then error(fault, 0) end
    return called and made ~= nil
  end,
}

-- ---- chains: any stages on any logits, here and as a device runs them ----

local STAGES = {
  greedy = {}, temp = { "value" }, top_k = { "k" }, top_p = { "value" }, min_p = { "value" }, typical = { "value" },
  top_n_sigma = { "value" }, xtc = { "probability", "threshold" }, dynatemp = { "low", "high", "exponent" },
  penalties = { "last", "repeat", "frequency", "presence" }, bias = { "values", "phrases" },
  dry = { "multiplier", "base", "allowed", "last" }, mirostat = { "tau", "eta" },
}
local STAGE_KINDS = {}
for kind in pairs(STAGES) do STAGE_KINDS[#STAGE_KINDS + 1] = kind end
table.sort(STAGE_KINDS)

local function some_ids(dice, max)
  local ids = {}
  for i = 1, dice:roll(max) do ids[i] = dice:roll(tiny.vocab) - 1 end
  return ids
end

local function stage_value(dice, field)
  if field == "k" or field == "last" or field == "allowed" then
    return dice:once_in(6) and dice:extreme() or dice:roll(9)
  end
  if field == "values" then
    local values = {}
    for _, id in ipairs(some_ids(dice, 5)) do values[id] = dice:once_in(3) and -math.huge or dice:float() end
    return values
  end
  if field == "phrases" then
    local phrases = {}
    for i = 1, dice:roll(4) - 1 do
      phrases[i] = some_ids(dice, 4)
      phrases[i].value = dice:float()
    end
    return phrases
  end
  return dice:once_in(4) and dice:float() or dice:roll(1000) / dice:pick { 1000, 1000, 300, 10 }
end

local function make_chain(dice)
  local stages, logits = {}, {}
  for i = 1, dice:roll(7) - 1 do
    local kind = dice:pick(STAGE_KINDS)
    stages[i] = { kind = kind }
    for _, field in ipairs(STAGES[kind]) do
      if not dice:once_in(9) then stages[i][field] = stage_value(dice, field) end
    end
  end
  local spread = dice:pick { 0, 1e-30, 0.1, 3, 50, 1e30 }
  for i = 1, tiny.vocab do
    logits[i] = dice:once_in(40) and dice:float() or dice:once_in(9) and -math.huge
      or spread * (dice:roll(999) / 500 - 1)
  end
  return "return " .. fuzz.source { stages = stages, logits = logits, ids = some_ids(dice, 40) } .. "\n"
end

local chain_model

---The id, the number after it, and the code of a refusal. Raising is for bad stages, which were taken already.
local function draw_with(pick, chain, logits, ids)
  local seq <close> = assert(chain_model:sequence { seed = 3 })
  assert(seq:feed(ids))
  local id, message, code = pick(chain, logits, seq)
  if not id then fuzz.check_refusal(message, code) end
  return id, seq.rng:uniform(), code
end

targets.chain = {
  make = make_chain,
  try = function(source)
    local case = assert(load(source, "=chain", "t", {}))()
    chain_model = chain_model or tiny.model {}
    local called, chain, message, code = pcall(core.chain, case.stages)
    if not called or not fuzz.accepted(chain, message, code) then return false end
    local logits <close> = assert(core.tensor(case.logits))
    local id, after = draw_with(function(c, l, s) return c(l, s) end, chain, logits, case.ids)
    local twin, twin_after, why = draw_with(core.pick_as_device, chain, logits, case.ids)
    if twin and (twin ~= id or twin_after ~= after) then error(("%s here, %d on a device"):format(id, twin)) end
    if id and not twin and why ~= core.err.UNSUPPORTED then error "refused on a device" end
    local again <close> = core.chain(chain:stages())
    if draw_with(function(c, l, s) return c(l, s) end, again, logits, case.ids) ~= id then error "another chain" end
    local seq <close> = assert(chain_model:sequence { seed = 3 })
    assert(seq:feed(case.ids))
    local left = chain:candidates(logits, seq)
    if (left ~= nil) ~= (id ~= nil) then error "candidates without a draw, or a draw without candidates" end
    logits:apply_(chain, seq)
    chain:close()
    if not id then return false end
    if logits[id] == -math.huge then error "drew what the stages drop" end
    local is_left = {}
    for _, one in ipairs(left) do is_left[one] = true end
    for one = 0, tiny.vocab - 1 do
      if (logits[one] > -math.huge) ~= (is_left[one] or false) then error(("id %d is and is not left"):format(one)) end
    end
    return true
  end,
  finish = function()
    if chain_model then chain_model:close() end
    chain_model = nil
  end,
}

-- ---- the Lua API: any method of any object with any arguments ----

-- Callbacks by name; they see the objects of the running program.
local pools
local callbacks = {
  none = function() end, zero = function() return 0 end, huge = function() return 1 << 40 end,
  text = function() return "x", {}, 3 end, yes = function() return true end, no = function() return false end,
  raise = function() error "raised" end, throw = function() error({}) end, yield = coroutine.yield,
  collect = function() collectgarbage() end,
  close = function()
    for _, name in ipairs { "Sequence", "Tensor", "Chain", "Stream", "Plan" } do
      for _, one in ipairs(pools[name]) do one:close() end
    end
    return 1
  end,
  push = function()
    for _, one in ipairs(pools.Sequence) do pcall(one.push, one, 1) end
    return 1
  end,
}

local CALLBACKS = {}
for name in pairs(callbacks) do CALLBACKS[#CALLBACKS + 1] = name end
table.sort(CALLBACKS)

local CLASSES = { "Tensor", "Sequence", "Chain", "Stream", "Tokenizer", "Model", "Plan", "Gguf", "Rng", "Mark" }
local WRITERS = { save = true, quantize = true } -- methods that write files, which would stand anywhere
local METHODS = {}
for _, class in ipairs(CLASSES) do
  METHODS[class] = {}
  for name, method in pairs(core.classes[class]) do
    if type(method) == "function" and name:sub(1, 2) ~= "__" and not WRITERS[name] then
      table.insert(METHODS[class], name)
    end
  end
  table.sort(METHODS[class])
end

local MAKERS = { "tensor", "zeros", "chain", "apply", "stream", "tokenizer", "plan", "model", "parse_gguf",
  "dequantize", "quantize", "uniform", "philox", "error_name", "sha256", "sha256_file", "vector_digest", "open_gguf" }

local NAMES = { "token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight",
  "blk.0.ffn_down.weight", "logits", "embd", "blk.*", "general.architecture", "tokenizer.ggml.tokens", "chatml",
  "F32", "Q8_0", "Q4_K", "generic", "<|im_start|>", "silu", "x", "y" }

local FIELDS = { "seed", "max", "temp", "top_k", "top_p", "min_p", "typical", "repeat_penalty", "frequency_penalty",
  "presence_penalty", "repeat_last", "stop", "logprobs", "receipt", "sampler", "on_text", "device", "variant", "ctx",
  "pool", "chunk", "kv", "progress", "bos", "control", "text", "after", "kind", "value", "k", "values", "last",
  "repeat", "epsilon", "groups", "heads", "kv_heads", "head_dim", "dims", "style", "inverse_freqs", "window",
  "softcap", "scale", "top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent",
  "mirostat_tau", "mirostat_eta", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_last", "dry_breakers",
  "probability", "threshold", "low", "high", "exponent", "multiplier", "base", "allowed", "breakers", "tau", "eta",
  "values", "phrases", "role", "content", "bias", "template", "system", "tokenizer" }

local KINDS = { "greedy", "temp", "top_k", "top_p", "min_p", "typical", "penalties", "bias", "dist", "none",
  "top_n_sigma", "xtc", "dynatemp", "dry", "mirostat" }

local argument

local function numbers(dice)
  local list = {}
  for i = 1, dice:roll(9) - 1 do
    list[i] = fuzz.source(dice:once_in(9) and dice:extreme() or dice:once_in(4) and dice:float() or dice:roll(48) - 1)
  end
  return "{ " .. table.concat(list, ", ") .. " }"
end

-- A table of options with right names and any values.
local function options(dice, depth)
  local list = {}
  for i = 1, dice:roll(4) - 1 do
    local name = dice:pick(FIELDS)
    local value = name == "kind" and fuzz.source(dice:pick(KINDS)) or name == "device" and '"reference"'
      or name == "style" and '"halves"' or argument(dice, depth + 1)
    list[i] = ("[%q] = %s"):format(name, value)
  end
  return "{ " .. table.concat(list, ", ") .. " }"
end

local ARGUMENTS = {
  function(dice) return fuzz.source(dice:roll(12) - 2) end,
  function(dice) return fuzz.source(dice:roll(60) - 1) end,
  function(dice) return fuzz.source(dice:extreme()) end,
  function(dice) return fuzz.source(dice:float()) end,
  function(dice) return fuzz.source(dice:text(3)) end,
  function(dice) return fuzz.source(dice:pick(NAMES)) end,
  function(dice) return fuzz.source(dice:pick(NAMES)) end,
  function(dice) return dice:pick { "nil", "true", "false" } end,
  function(dice) return "f." .. dice:pick(CALLBACKS) end,
  function(dice) return ("object(%q, %d)"):format(dice:pick(CLASSES), dice:roll(6)) end,
  function(dice) return ("object(%q, %d)"):format(dice:pick(CLASSES), dice:roll(6)) end,
  numbers, numbers, options, options,
  function(dice) return ("{ { role = 'user', content = %s } }"):format(fuzz.source(dice:text(4))) end,
  function(dice) return ("{ { kind = %q, value = %s, k = %s } }"):format(dice:pick(KINDS), fuzz.source(dice:float()),
    fuzz.source(dice:roll(9))) end,
}

function argument(dice, depth)
  return ARGUMENTS[depth > 2 and dice:roll(9) or dice:roll(#ARGUMENTS)](dice, depth)
end

local function arguments(dice)
  local list = {}
  for i = 1, dice:roll(6) - 1 do list[i] = argument(dice, 0) end
  return table.concat(list, ", ")
end

local function statement(dice)
  local class, choice = dice:pick(CLASSES), dice:roll(12)
  local index, rest = dice:roll(6), arguments(dice)
  if choice <= 7 then
    local method = METHODS[class][1] and dice:pick(METHODS[class]) or "close"
    return ("call(%q, %d, %q%s)"):format(class, index, method, rest == "" and "" or ", " .. rest)
  end
  if choice <= 9 then
    local maker = dice:pick(MAKERS)
    if maker == "zeros" then rest = fuzz.source(dice:pick { 0, 1, 3, 64, -1, 1 << 40 }) .. ", " .. dice:roll(9) end
    return ("make(%q%s)"):format(maker, rest == "" and "" or ", " .. rest)
  end
  if choice == 10 then
    local name = fuzz.source(dice:pick { "logits", "rng", "state", "model", "text", "size" })
    return ("get(%q, %d, %s)"):format(class, index, dice:once_in(2) and argument(dice, 3) or name)
  end
  if choice == 11 then return ("set(%q, %d, %s, %s)"):format(class, index, argument(dice, 3), argument(dice, 1)) end
  return ("%s(%q, %d)"):format(dice:pick { "len", "text", "gc" }, class, index)
end

-- What a call gave: its objects join the pools, its refusal is checked. Raising is for the caller's mistakes.
local function receive(called, ...)
  local first, message, code = ...
  if not called then
    if first == nil then error "raised nil" end
    return
  end
  if first == nil and type(message) == "string" and code ~= nil then fuzz.check_refusal(message, code) end
  for i = 1, math.min(select("#", ...), 4) do
    local value = select(i, ...)
    local meta = type(value) == "userdata" and getmetatable(value)
    local pool = meta and meta.__name and pools[meta.__name:match "[^.]+$"]
    if pool then table.insert(pool, value) end
  end
end

-- The objects that every program begins with. The first model, tokenizer and file are shared by all of them.
local function new_pools(shared)
  pools = {}
  for _, class in ipairs(CLASSES) do pools[class] = {} end
  local own = tiny.model {}
  local one, other = assert(shared:sequence { seed = 3 }), own:sequence {}
  one:feed { 1, 2, 3 }
  other:feed { 4 }
  local list = { shared, shared.tokenizer, shared.gguf, own, one, other, one:mark(), one.rng, core.tensor { 1, 2, 3 },
    core.zeros(4, 5), core.chain {}, core.chain { { kind = "top_k", k = 3 }, { kind = "temp", value = 0.5 } },
    assert(core.stream(shared.tokenizer)), tiny.gguf() }
  for _, value in ipairs(list) do receive(true, value) end
  receive(core.plan(list[#list]))
  receive(true, core.plan(list[#list]))
end

-- What would rightly change the shared model's answers is left to the others.
local FORBIDDEN = { close = true, scramble = true, release = true, __newindex = true, __gc = true }

local function environment(shared)
  local function object(class, index)
    local pool = pools[class]
    return pool[(index - 1) % math.max(#pool, 1) + 1]
  end
  local function is_shared(value) return value == shared or value == shared.tokenizer or value == shared.gguf end
  local function apply(class, index, f)
    local value = object(class, index)
    if value ~= nil then receive(pcall(f, value)) end
  end
  return {
    object = object, f = callbacks,
    make = function(name, ...) receive(pcall(core[name], ...)) end,
    call = function(class, index, method, ...)
      local value = object(class, index)
      if value == nil or (FORBIDDEN[method] and is_shared(value)) then return end
      receive(pcall(core.classes[class][method] or error, value, ...))
    end,
    get = function(class, index, key) apply(class, index, function(value) return value[key] end) end,
    set = function(class, index, key, what)
      if is_shared(object(class, index)) then return end
      apply(class, index, function(value) value[key] = what end)
    end,
    len = function(class, index) apply(class, index, function(value) return #value end) end,
    text = function(class, index) apply(class, index, tostring) end,
    gc = function() collectgarbage() end,
  }
end

local function close_all(shared)
  for _, pool in pairs(pools) do
    for _, value in ipairs(pool) do
      local is_shared = value == shared or value == shared.tokenizer or value == shared.gguf
      local method = getmetatable(value).__close
      if method and not is_shared then method(value) end
    end
  end
  pools = nil
  shared:set_progress(nil)
end

-- A greedy answer with all its logits.
local function answer(model)
  local seq <close> = assert(model:sequence { seed = 1 })
  assert(seq:feed { 5, 6, 7 })
  local all = {}
  for i = 1, 5 do
    local logits <close> = seq.logits
    all[i] = logits:bytes()
    assert(seq:push((logits:argmax())))
  end
  return core.sha256(table.concat(all))
end

local function run_alone(program)
  local thread = coroutine.create(program) -- f.yield leaves it in the middle
  local good, fault = coroutine.resume(thread)
  coroutine.close(thread)
  return good, fault
end

-- In a body beside another one, whose answer must be as ever. f.yield gives way.
local function run_in_body(program, shared, expected)
  local scheduler <close> = kigo.scheduler(shared)
  local task, neighbour = scheduler:spawn(program), scheduler:spawn(answer, shared)
  for _ = 1, 60 do
    local good, more = pcall(scheduler.step, scheduler)
    if good and not more then break end
  end
  scheduler:close()
  if neighbour.status == "done" and neighbour.results[1] ~= expected then
    return false, "its neighbour answers otherwise"
  end
  return task.status ~= "failed", task.error
end

local function try_program(source, device, in_body)
  local shared = tiny_model(device)
  answers[device] = answers[device] or answer(shared)
  new_pools(shared)
  local program = assert(load(source, "=program", "t", environment(shared)))
  local good, fault = (in_body and run_in_body or run_alone)(program, shared, answers[device])
  close_all(shared)
  if not good then error(fault, 0) end
  if answer(shared) ~= answers[device] then error("the model on " .. device .. " answers otherwise afterwards") end
end

-- ---- kv: saved sequences ----

local saved = { is_whole = {} }

local function save_some()
  saved.model, saved.path = tiny.model { kind = "both", device = "cpu", threads = 1, ctx = 64 }, os.tmpname()
  saved.model.tokenizer = tiny.tokenizer()
  local file <close> = assert(core.parse_gguf(adapter_file(4.0, { "blk.0.attn_q.weight.lora_a", 32, 2 },
    { "blk.0.attn_q.weight.lora_b", 2, 32 }), "adapter"))
  saved.adapters = { assert(saved.model:adapter(file)) }
  for i, n in ipairs { 0, 1, 5, 20 } do
    local seq <close> = saved.model:sequence { seed = i }
    if i > 1 then
      seq:attach(core.stream(saved.model.tokenizer, { stop = { "!!", "\u{e9}" } }))
      seq.state = { i, { name = "x", list = { true, 1.5 } } }
      seq.state.me = seq.state
    end
    seq:feed(tiny.ids(n))
    if i == 4 then
      local any, bang = { "class", 33, 80 }, "!"
      assert(seq:constrain(assert(core.grammar { root = { "seq", { "repeat", { "rule", "part" }, 0 } },
        part = { "alt", any, { "members", { { bang, required = true }, { any } }, separator = bang, others = any } },
      })))
    end
    if i == 3 then seq:adapt(saved.adapters[1], 0.5) end
    if n > 0 then assert(seq:step()) end
    if i == 3 then seq:draw(core.chain { { kind = "mirostat", tau = 3, eta = 0.1 } }) end
    seq:feed(tiny.ids(i))
    assert(seq:save(saved.path))
    saved[i] = support.read(saved.path)
    saved.is_whole[saved[i]] = true
  end
  return saved
end

local HEADER = 248 -- bytes; engine/kv_file.c says what stands where

---The bytes with the checksums that they should have.
local function sealed(bytes)
  if #bytes < HEADER then return bytes end
  local head = bytes:sub(1, 16) .. ("\0"):rep(8) .. bytes:sub(25, HEADER)
  local body = bytes:sub(1, 16) .. string.pack("<j", core.checksum(head)) .. bytes:sub(25, -9)
  return body .. string.pack("<j", core.checksum(body))
end

local function restore(bytes)
  os.remove(saved.path)
  local file <close> = assert(io.open(saved.path, "wb"))
  assert(file:write(bytes))
  file:flush()
  local before = saved.model:stats()
  local seq = fuzz.accepted(saved.model:restore(saved.path, { adapters = saved.adapters }))
  if seq then return seq end
  local stats = saved.model:stats()
  for _, name in ipairs { "n_pages_used", "n_sequences", "n_states_used" } do -- marks may have gone meanwhile
    if stats[name] > before[name] then error "a refusal left something behind" end
  end
end

-- As much as a sequence can do: whoever knows the checksum may have written anything else.
local function use(seq)
  for _, stream in ipairs(seq:attached()) do
    if not utf8.len(stream.text) then error "a stream with text that is none" end
    stream:read()
  end
  local chain <close> = core.chain { { kind = "mirostat", tau = 3, eta = 0.1 } }
  for _ = 1, 3 do
    local id = seq:pos() > 0 and fuzz.accepted(seq:draw(chain)) or 7
    if not fuzz.accepted(seq:push(id)) then break end
  end
  local again <close> = seq:fork {}
  seq:rewind(seq:pos() // 2)
  for _, stream in ipairs(again:attached()) do stream:finish() end
  again:mark()
end

targets.kv = {
  seeds = save_some(),
  make = function(dice, seeds) return fuzz.mutate(dice, seeds, { "stream", "mirostat", "constraint", "T", "e",
      "kigo-kv\n", "root" }) end,
  try = function(bytes)
    if not saved.model then save_some() end
    assert(sealed(saved[1]) == saved[1])
    local seq <close> = restore(bytes)
    if seq and not saved.is_whole[bytes] then error "took a file that was changed" end
    local other <close> = restore(sealed(bytes))
    if other then use(other) end
    return seq or other
  end,
  finish = function()
    saved.adapters[1]:close()
    saved.model:close()
    os.remove(saved.path)
    saved.model = nil
  end,
}

targets.api = {
  finish = close_models,
  make = function(dice)
    local list = {}
    for i = 1, dice:roll(12) do list[i] = statement(dice) end
    return table.concat(list, "\n") .. "\n"
  end,
  try = function(source)
    try_program(source, "reference")
    try_program(source, "cpu")
    try_program(source, "cpu", true)
    return true
  end,
}

-- ---- gbnf, regex: what is taken must be walked under its own masks ----

local constrained -- a tokenizer with texts of some bytes

local function small_tokenizer()
  if constrained then return constrained end
  local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.bpe { special = { { "<eos>", 3 } },
    pieces = { "ab", "abc", '"a', "é", "a\xC3", "\xA9b", '{"', '": ', "}}", "\\n", " a", "true", "00", "\n\n", "éa" },
    entries = { { "tokenizer.ggml.eos_token_id", "u32", 271 } } }), "fuzz"))
  constrained = assert(core.tokenizer(gguf))
  return constrained
end

---Twelve tokens at random, and back. Masks may run out of memory, and come to dead ends, but not lie.
local function walk_grammar(grammar, seed)
  local tokenizer = small_tokenizer()
  local matcher <close> = fuzz.accepted(grammar:matcher(tokenizer))
  if not matcher then return end
  local dice = fuzz.dice(seed, 1)
  for _ = 1, 12 do
    local ids = fuzz.accepted(matcher:ids())
    if not ids or #ids == 0 then break end
    local id = dice:pick(ids)
    if not matcher:allowed(id) then error(("token %d is in the mask behind %q"):format(id, matcher:text())) end
    matcher:forced()
    if tokenizer:is_end(id) then
      if not matcher:is_complete() then error "an end token before the end" end
      break
    end
    if not matcher:accept(id) then error(("token %d was allowed"):format(id)) end
  end
  if matcher:is_complete() and not grammar:accepts(matcher:text()) then error("not accepted: " .. matcher:text()) end
  while matcher:text() ~= "" do matcher:rewind() end
end

local GRAMMAR_MEMORY = 1 << 22

local GBNF_WORDS = { "root ::= ", "::=", "|", "(", ")", "[", "]", "[^", "*", "+", "?", "{1,3}", "{0,100}", "{",
  "}", "\"",
  '"a"', "\\x41", "\\u00e9", "\\", "#", "\n", "a ::= ", " a ", " root ", ".", "[a-z]", "\r\n", "\xFF", "é" }

targets.gbnf = {
  seeds = {
    'root ::= "a" | "b" root', 'root ::= item ("," item)* # list\nitem ::= [a-z]+ | "\\"" [^"\\n]* "\\""',
    'root ::= "{" ws (pair ("," ws pair)*)? "}"\npair ::= "\\"" [a-z]{1,4} "\\":" ws root\nws ::= [ \\t\\n]{0,3}',
    "root ::= .{2,5} (x | y)+\nx ::= [^a]\ny ::= (x x)?  \"z\"",
  },
  make = function(dice, seeds) return fuzz.mutate(dice, seeds, GBNF_WORDS) end,
  try = function(text)
    local grammar <close> = fuzz.accepted(kigo.gbnf(text, { memory = GRAMMAR_MEMORY }))
    if not grammar then return false end
    walk_grammar(grammar, #text)
    return true
  end,
}

local REGEX_WORDS = { "(", ")", "(?:", "(?=", "(?!", "(?<n>", "[", "[^", "]", "*", "+", "?", "|", "{2}",
  "{0,20}", "{3,}",
  "^", "$", ".", "\\d", "\\w", "\\s", "\\D", "\\p{L}", "\\u00e9", "\\x41", "\\", "-", "a", "é", "\xFF", "\\1", "\\b" }

targets.regex = {
  seeds = { "[a-z]+(-[a-z]+)*", "^(?!the|a$).{1,8}$", "(\\d{1,3}\\.){3}\\d{1,3}", "(a|b)*c?[^\\s\\d]", "(^|,)x($|;)" },
  make = function(dice, seeds) return fuzz.mutate(dice, seeds, REGEX_WORDS) end,
  try = function(pattern)
    local grammar <close> = fuzz.accepted(kigo.regex(pattern, { memory = GRAMMAR_MEMORY }))
    if not grammar then return false end
    walk_grammar(grammar, #pattern)
    local node = fuzz.accepted(regex.parse(pattern, { anchored = false }))
    local somewhere <close> = node and fuzz.accepted(kigo.grammar({ root = node }, { memory = GRAMMAR_MEMORY }))
    if somewhere then walk_grammar(somewhere, #pattern) end
    return true
  end,
}

-- ---- grammar: nodes of any shape ----

local NODE_WORDS = { '"seq"', '"alt"', '"rule"', '"members"', '"repeat"', '"not"', '"json"', "{", "}", "-1", "1e9" }

targets.grammar = {
  make = function(dice)
    local rules = random_grammar.make(dice:roll(1 << 30))
    local source = "return " .. fuzz.source(rules)
    return dice:once_in(2) and source or fuzz.mutate(dice, { source }, NODE_WORDS)
  end,
  try = function(source)
    local made = load(source, "fuzz", "t", {})
    local is_table, rules = pcall(made or error)
    if not is_table then return false end
    local called, grammar, message, code = pcall(kigo.grammar, rules, { memory = GRAMMAR_MEMORY })
    if not called then return false end
    grammar = fuzz.accepted(grammar, message, code)
    if not grammar then return false end
    walk_grammar(grammar, #source)
    grammar:close()
    return true
  end,
}

targets.schema = require "spec.fuzz_schemas"

return targets
