-- fuzz_models.lua - model files of a few kilobytes as rows of data, and what may be wrong with them: every field that a
-- file has can be changed on its own, with all others still right.
local build = require "spec.gguf_build"
local vocabulary = require "spec.fixtures.vocabulary"

local models = {}

local BPE = { pieces = { "he", "ll", "hell", "hello", " w" }, merges = { { "h", "e" }, { "l", "l" }, { "he", "ll" },
  { "hell", "o" }, { " ", "w" } }, special = { { "<|im_start|>", 3 }, { "<|im_end|>", 3 }, { "<u>", 4 } },
  entries = { { "tokenizer.ggml.eos_token_id", "u32", 262 } } }
local SPM = { pieces = { { "\u{2581}", -1 }, { "h", -2 }, { "e", -3 }, { "he", -1.5 }, { "\u{2581}he", -1 } },
  entries = { { "tokenizer.ggml.bos_token_id", "u32", 1 }, { "tokenizer.ggml.eos_token_id", "u32", 2 } } }

---Metadata of small vocabularies.
models.vocabularies = { spm = vocabulary.spm(SPM) }
for _, pre in ipairs { "gpt-2", "qwen2", "llama-bpe" } do
  local options = { pre = pre }
  for key, value in pairs(BPE) do options[key] = value end
  models.vocabularies[pre] = vocabulary.bpe(options)
end

do
  local M = "\u{2581}"
  local UNIGRAM = { { M, -1 }, { "h", -2 }, { "e", -2 }, { "hell", -3 }, { M .. "hello", -3 }, { "o" .. M, -4 },
    { "<u>", 0, 4 }, { M .. M, 0, 4 }, { "x", 0, 5 }, { "", -1 }, { "<|im_end|>", 0, 3 } }
  local charsmap = { "tokenizer.ggml.precompiled_charsmap", "u8", vocabulary.charsmap("H", "he") }
  local eos = { "tokenizer.ggml.eos_token_id", "u32", 2 }
  local lossless = { "tokenizer.ggml.remove_extra_whitespaces", "bool", 0 }
  models.vocabularies.unigram = vocabulary.of("t5", table.move(UNIGRAM, 1, #UNIGRAM, 3, { { "<unk>", 0, 2 },
    { "</s>", 0, 3 } }), { charsmap, { "tokenizer.ggml.add_space_prefix", "bool", 1 } })
  models.vocabularies["unigram-bytes"] = vocabulary.of("t5", vocabulary.rows(UNIGRAM), { lossless, eos })
  models.vocabularies["spm-squeeze"] = vocabulary.of("llama", vocabulary.rows(UNIGRAM), { charsmap, eos,
    { "tokenizer.ggml.remove_extra_whitespaces", "bool", 1 }, { "general.name", "string", "phi-3" } })
  models.vocabularies.bert = vocabulary.of("bert", { { "[PAD]", 0, 3 }, { "[UNK]", 0, 3 }, { "[CLS]", 0, 3 },
    { "[SEP]", 0, 3 }, { "[MASK]", 0, 3 }, { M .. "hell" }, { "o" }, { "h" }, { M .. "!" }, { M .. "\u{4e2d}" },
    { M .. "u", 0, 4 }, { M .. "e" }, { M .. "\u{e9}" } }, { { "tokenizer.ggml.pre", "string", "modern-bert" },
    { "tokenizer.ggml.normalizer.lowercase", "bool", 1 }, { "tokenizer.ggml.normalizer.strip_accents", "bool", 1 },
    { "tokenizer.ggml.seperator_token_id", "u32", 3 }, { "tokenizer.ggml.add_sep_token", "bool", 1 } })
  models.vocabularies.gemma4 = vocabulary.of("gemma4", vocabulary.rows(UNIGRAM), { eos,
    { "tokenizer.ggml.merges", "string", { "h e", "l l", "he ll", M .. " hello" } } })
  models.vocabularies.rwkv = vocabulary.rwkv({ { "he" }, { "hello" }, { " w" }, { "<u>", 0, 4 },
    { "<|im_end|>", 0, 3 } }, { { "tokenizer.ggml.bos_token_id", "u32", 0 } })
end

---What decode gives back to the byte: all but those that squeeze, replace or do not know some text.
models.lossless = { spm = true, ["gpt-2"] = true, qwen2 = true, ["llama-bpe"] = true, ["unigram-bytes"] = true,
  rwkv = true, gemma4 = true }

-- Bytes in a block of these many numbers, by the number of the type.
local TYPES = { [0] = { 1, 4 }, [1] = { 1, 2 }, [2] = { 32, 18 }, [8] = { 32, 34 }, [12] = { 256, 144 },
  [14] = { 256, 210 }, [20] = { 32, 18 }, [30] = { 1, 2 }, [39] = { 32, 17 } }

-- Numbers of any type that are neither large nor all alike.
local function tensor_bytes(type_number, n)
  local block, size = table.unpack(TYPES[type_number])
  local list = {}
  for i = 1, n // block * size do list[i] = string.char(i * 37 % 48) end
  if type_number == 0 then
    for i = 1, n do list[i] = string.pack("<f", (i * 37 % 101 - 50) / 80) end
    list[n + 1] = nil
    return table.concat(list, "", 1, n)
  end
  return table.concat(list)
end

---@class spec.FuzzModel
---@field entries table[]          { key, type name, value }
---@field tensors spec.TensorRow[]
---@field data string

-- Matrices of hidden x rows and the like: { name, cols, rows, experts }.
local function shapes(m)
  local list = { { "token_embd.weight", m.hidden, m.vocab },
    { m.arch == "lfm2" and "token_embd_norm.weight" or "output_norm.weight", m.hidden } }
  local kv = m.hidden // m.heads
  local block = { { "attn_norm.weight", m.hidden }, { "attn_q.weight", m.hidden, m.hidden },
    { "attn_k.weight", m.hidden, kv }, { "attn_v.weight", m.hidden, kv },
    { "attn_output.weight", m.hidden, m.hidden }, { "ffn_norm.weight", m.hidden } }
  if m.arch == "qwen2" then
    table.move({ { "attn_q.bias", m.hidden }, { "attn_k.bias", kv }, { "attn_v.bias", kv } }, 1, 3, #block + 1, block)
  end
  local suffix = m.experts and "_exps.weight" or ".weight"
  if m.experts then block[#block + 1] = { "ffn_gate_inp.weight", m.hidden, m.experts } end
  for _, row in ipairs {
    { "ffn_gate", m.hidden, m.ffn }, { "ffn_up", m.hidden, m.ffn }, { "ffn_down", m.ffn, m.hidden },
  } do
    block[#block + 1] = { row[1] .. suffix, row[2], row[3], m.experts }
  end
  local function add(i, row) list[#list + 1] = { ("blk.%d.%s"):format(i, row[1]), table.unpack(row, 2) } end
  for i = 0, m.layers - 1 do
    local is_conv = m.arch == "lfm2" and i % 2 == 0
    for _, row in ipairs(block) do
      if not (is_conv and row[1]:find "^attn_[qkvo]") then add(i, row) end
    end
    if is_conv then
      add(i, { "shortconv.in_proj.weight", m.hidden, 3 * m.hidden })
      add(i, { "shortconv.conv.weight", 3, m.hidden })
      add(i, { "shortconv.out_proj.weight", m.hidden, m.hidden })
    elseif m.arch == "lfm2" then
      add(i, { "attn_q_norm.weight", m.hidden // m.heads })
      add(i, { "attn_k_norm.weight", m.hidden // m.heads })
    end
  end
  return list
end

---@return spec.FuzzModel
local function model(m)
  local entries, prefix = {}, m.arch .. "."
  for _, row in ipairs {
    { "context_length", "u32", 64 }, { "embedding_length", "u32", m.hidden }, { "block_count", "u32", m.layers },
    { "attention.head_count", "u32", m.heads }, { "attention.head_count_kv", "u32", m.heads_kv or 1 },
    { "attention.layer_norm_rms_epsilon", "f32", 1e-5 }, { "rope.freq_base", "f32", 10000 },
    { "rope.dimension_count", "u32", m.hidden // m.heads }, { "feed_forward_length", "u32", m.ffn },
    m.arch == "lfm2" and { "shortconv.l_cache", "u32", 3 }, m.experts and { "expert_count", "u32", m.experts },
    m.experts and { "expert_used_count", "u32", 2 },
  } do
    if row then entries[#entries + 1] = { prefix .. row[1], row[2], row[3] } end
  end
  for _, row in ipairs(m.vocabulary or {}) do
    if row[1] ~= "general.architecture" then entries[#entries + 1] = row end
  end
  table.insert(entries, 1, { "general.architecture", "string", m.arch })
  local tensors, data, offset = {}, {}, 0
  for i, shape in ipairs(shapes(m)) do
    local n, dims = 1, { table.unpack(shape, 2) }
    for _, size in ipairs(dims) do n = n * size end
    local is_matrix = #dims > 1 and not (shape[1]:find "gate_inp" or shape[1]:find "conv.weight")
    local type_number = is_matrix and (shape[1]:find "ffn_down" and m.down_type or m.type) or 0
    local bytes = tensor_bytes(type_number, n)
    tensors[i] = { name = shape[1], dims = dims, type = type_number, offset = offset }
    data[i] = bytes .. ("\0"):rep(-#bytes % 32)
    offset = offset + #data[i]
  end
  return { entries = entries, tensors = tensors, data = table.concat(data) }
end

---Right ones, from which the wrong ones are made.
---@type spec.FuzzModel[]
models.list = {
  model { arch = "llama", hidden = 8, heads = 2, layers = 1, ffn = 12, vocab = 24, type = 0 },
  model { arch = "llama", hidden = 8, heads = 2, layers = 2, ffn = 8, vocab = 24, type = 1, experts = 3 },
  model { arch = "qwen2", hidden = 32, heads = 2, layers = 1, ffn = 32, vocab = 24, type = 8 },
  model { arch = "llama", hidden = 32, heads = 4, layers = 1, ffn = 256, vocab = 24, type = 2, down_type = 14 },
  model { arch = "qwen2", hidden = 32, heads = 1, layers = 1, ffn = 256, vocab = 17, type = 39, down_type = 12 },
  model { arch = "llama", hidden = 32, heads = 2, layers = 1, ffn = 32, vocab = 17, type = 20, down_type = 30 },
  model { arch = "qwen2", hidden = 4, heads = 1, layers = 1, ffn = 4, vocab = 264, type = 0,
    vocabulary = models.vocabularies.qwen2 },
  model { arch = "llama", hidden = 4, heads = 1, layers = 1, ffn = 4, vocab = 264, type = 30,
    vocabulary = models.vocabularies.spm },
  model { arch = "llama", hidden = 4, heads = 1, layers = 1, ffn = 4, vocab = 13, type = 0,
    vocabulary = models.vocabularies.bert },
  model { arch = "lfm2", hidden = 8, heads = 2, heads_kv = { 0, 1, 0 }, layers = 3, ffn = 8, vocab = 24, type = 0 },
  model { arch = "llama", hidden = 4, heads = 1, layers = 1, ffn = 4, vocab = 5, type = 0,
    vocabulary = { { "tokenizer.ggml.model", "string", "none" }, { "llama.vocab_size", "u32", 5 } } },
}

-- ---- writing, whatever the fields hold ----

local function value_bytes(type_name, value)
  if type_name == "string" then return string.pack("<s8", tostring(value)) end
  local format = build.types[type_name][2]
  if type_name:find "^f" then return string.pack(format, tonumber(value) or 1) end
  return string.pack("<j", math.tointeger(tonumber(value) or 1) or 1):sub(1, string.packsize(format))
end

local function entry_bytes(row)
  local key, type_name, value = row[1], row[2], row[3]
  local number = build.types[type_name][1]
  if type(value) ~= "table" then
    return string.pack("<s8I4", key, row.number or number) .. value_bytes(type_name, value)
  end
  local parts = { string.pack("<s8I4I4j", key, 9, row.number or number, row.count or #value) }
  for i, item in ipairs(value) do parts[i + 1] = value_bytes(type_name, item) end
  return table.concat(parts)
end

---The bytes of a file.
---@param m spec.FuzzModel
---@return string
function models.write(m)
  local entries = {}
  for i, row in ipairs(m.entries) do entries[i] = entry_bytes(row) end
  return build.file { entries = entries, tensors = m.tensors, data = m.data, version = m.version,
    n_entries = m.n_entries, n_tensors = m.n_tensors }
end

-- ---- one change ----

local function copy(value)
  if type(value) ~= "table" then return value end
  local made = {}
  for key, item in pairs(value) do made[key] = copy(item) end
  return made
end

local TYPE_NAMES = { "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "u64", "i64", "f64" }

local function changed_value(dice, type_name, value)
  if type_name == "string" then
    local choice = dice:roll(4)
    if choice == 1 then return dice:text(6) end
    if choice == 2 then return value .. dice:text(2) end
    if choice == 3 then return tostring(value):sub(1, dice:roll(#tostring(value) + 1) - 1) end
    return ("x"):rep(1 << dice:roll(13) - 1)
  end
  if type_name:find "^f" then return dice:float() end
  if dice:once_in(2) then return (math.tointeger(value) or 0) + dice:roll(5) - 3 end
  return dice:extreme()
end

local function change_array(dice, row)
  local list, choice = row[3], dice:roll(5)
  if choice == 1 then row.count = dice:once_in(2) and #list + dice:roll(5) - 3 or dice:extreme()
  elseif choice == 2 then table.remove(list)
  elseif choice == 3 then row[3] = {}
  elseif #list > 0 then
    local at = dice:roll(#list)
    if choice == 4 then list[at] = changed_value(dice, row[2], list[at]) else list[at] = dice:pick(list) end
  end
end

local function change_entry(dice, m)
  local at = dice:roll(#m.entries)
  local row, choice = m.entries[at], dice:roll(10)
  if choice == 1 then row[1] = changed_value(dice, "string", row[1])
  elseif choice == 2 then row[1] = dice:pick(m.entries)[1]
  elseif choice == 3 then row[2] = dice:pick(TYPE_NAMES)
  elseif choice == 4 then row.number = dice:extreme() & 0xFFFFFFFF
  elseif choice == 5 then table.remove(m.entries, at)
  elseif choice == 6 then table.insert(m.entries, dice:roll(#m.entries), copy(row))
  elseif type(row[3]) == "table" then change_array(dice, row)
  else row[3] = changed_value(dice, row[2], row[3]) end
end

local function change_tensor(dice, m)
  local at = dice:roll(#m.tensors)
  local row, choice = m.tensors[at], dice:roll(9)
  if choice == 1 then row.name = changed_value(dice, "string", row.name)
  elseif choice == 2 then row.name = dice:pick(m.tensors).name
  elseif choice == 3 then row.type = dice:once_in(4) and dice:extreme() & 0xFFFFFFFF or dice:roll(42) - 1
  elseif choice == 4 then row.offset = dice:once_in(2) and row.offset + 32 * (dice:roll(5) - 3) or dice:extreme()
  elseif choice == 5 then row.n_dims = dice:once_in(2) and dice:roll(6) - 1 or dice:extreme() & 0xFFFFFFFF
  elseif choice == 6 then table.remove(m.tensors, at)
  elseif choice == 7 then table.insert(m.tensors, dice:roll(#m.tensors), copy(row))
  elseif #row.dims > 0 then
    local dim = dice:roll(#row.dims)
    row.dims[dim] = dice:once_in(2) and row.dims[dim] + dice:roll(5) - 3 or dice:extreme()
  end
  if math.type(row.offset) ~= "integer" then row.offset = 0 end
end

local BAD_FLOATS = { "\0\0\xC0\x7F", "\0\0\x80\x7F", "\0\0\x80\xFF", "\xFF\xFF\x7F\x7F", "\xFF\xFF\xFF\xFF",
  "\0\x7C\0\xFC" }

local function change_data(dice, m)
  if #m.data < 8 then return end
  local choice, at = dice:roll(4), dice:roll(#m.data // 4) * 4 - 3
  if choice == 1 then m.data = m.data:sub(1, at)
  elseif choice == 2 then m.data = m.data .. dice:bytes(64)
  else m.data = m.data:sub(1, at - 1) .. dice:pick(BAD_FLOATS) .. m.data:sub(at + 4) end
end

local function change_head(dice, m)
  local choice = dice:roll(3)
  if choice == 1 then m.version = dice:once_in(2) and dice:roll(5) or dice:extreme() & 0xFFFFFFFF
  elseif choice == 2 then m.n_entries = dice:once_in(2) and #m.entries + dice:roll(3) - 2 or dice:extreme()
  else m.n_tensors = dice:once_in(2) and #m.tensors + dice:roll(3) - 2 or dice:extreme() end
end

local CHANGES = { change_entry, change_entry, change_entry, change_entry, change_tensor, change_tensor, change_tensor,
  change_data, change_data, change_head }

---A vocabulary, and nothing else, with up to three wrong fields.
---@param dice spec.Dice
---@return string
function models.wrong_vocabulary(dice)
  local names = {}
  for name in pairs(models.vocabularies) do names[#names + 1] = name end
  table.sort(names)
  local m = { entries = copy(models.vocabularies[dice:pick(names)]), tensors = {}, data = "" }
  if dice:once_in(4) then m.entries[2][3] = dice:pick { "llama", "t5", "bert", "rwkv", "gpt2", "none",
    "gemma4" } end
  for _ = 1, dice:roll(4) - 1 do change_entry(dice, m) end
  return models.write(m)
end

---A file with one to three wrong fields.
---@param dice spec.Dice
---@return string
function models.wrong(dice)
  local m = copy(dice:pick(models.list))
  for _ = 1, dice:roll(3) do
    local change = dice:pick(CHANGES)
    local rows = change == change_entry and m.entries or change == change_tensor and m.tensors
    if not rows or #rows > 0 then change(dice, m) end
  end
  return models.write(m)
end

return models
