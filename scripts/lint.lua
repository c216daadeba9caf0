-- lint.lua [FILE...] - arithmetic on values from outside, in the files that read them (or in those named).
--
-- A sum, product or shift that wraps is how malformed files become memory errors. So every binary `+`, `*` and `<<`
-- (and `+=`, `*=`, `<<=`) in these files either is a call of kg_add_size, kg_mul_size or kg_align_size, or stands
-- beside a comment /* bounded: why */, on its line or alone on the line above, which says why it cannot wrap, or that
-- it may. Nothing has to be said about
--   - the step of a `for` header,
--   - operands that are both constants (numbers, CAPITALS, sizeof),
--   - room for one more (`n + 1` in a line with kg_grow, grow, GROW or ROOM): the n are in memory,
--   - an address: a sum whose left operand has a name of POINTERS, or of the file's own `pointers`. The arithmetic that
--     made its index was seen;
--   - figures in the message of kg_fail_memory.
-- It reads operators with spaces around, as .clang-format writes them. Prints FILE:LINE: TEXT of each place; exit
-- status 1.

local FILES = {
  { "engine/gguf.c" }, { "engine/vocab.c" }, { "engine/tokenizer.c" }, { "engine/bpe.c" }, { "engine/spm.c" },
  { "engine/merge.c" }, { "engine/stream.c" }, { "engine/utf8.c" }, { "engine/plan.c" }, { "engine/trie.c" },
  { "engine/merges.c" }, { "engine/adapter.c" }, { "engine/grammar.c" }, { "engine/grammar_file.c" },
  { "engine/intern.c" }, { "engine/pieces.c" }, { "engine/constraint.c" }, { "engine/mask.c" },
  { "engine/matcher.c" }, { "engine/kv_file.c" }, { "engine/bytes.c" }, { "engine/follow.c" }, { "engine/mirostat.c" },
  { "engine/automaton.c", pointers = "words frame_lists rows found frames" },
  { "engine/regular.c", pointers = "scratch lists rows digits is_seen" },
  { "engine/grammar_compile.c", pointers = "bytes ranges texts" },
  { "engine/normalize.c" }, { "engine/unigram.c" }, { "engine/wordpiece.c" }, { "engine/rwkv.c" },
  { "engine/quant.c", only = "kg_type_bytes" }, -- elsewhere it computes with the numbers of one block
}

local POINTERS = "bytes text data buffer path known out word space tensors segments"

---@param names string
---@return table<string, boolean>
local function set_of(names)
  local set = {}
  for name in names:gmatch "%S+" do set[name] = true end
  return set
end

local function blank(text) return (text:gsub("[^\n]", " ")) end

---The source without comments, strings and characters, every byte in its place; and the lines that a comment with
---"bounded:" ends on.
---@return string code, table<integer, boolean> bounded
local function strip(source)
  local parts, bounded, at, line = {}, {}, 1, 1
  local function put(text)
    parts[#parts + 1] = text
    line = line + select(2, text:gsub("\n", ""))
  end
  while at <= #source do
    local comment = source:match("^/%*.-%*/", at) or source:match("^//[^\n]*", at)
    local quote = source:match("^[\"']", at)
    local stop = at
    if comment then
      stop = at + #comment - 1
      put(blank(comment))
      if comment:find("bounded: [^*%s]") then bounded[line] = true end
    elseif quote then
      repeat stop = stop + 1 + (source:sub(stop + 1, stop + 1) == "\\" and 1 or 0)
      until source:sub(stop, stop) == quote and stop > at or stop > #source
      put(quote .. blank(source:sub(at + 1, stop - 1)) .. quote)
    else
      stop = (source:find("[/\"']", at + 1) or #source + 1) - 1
      put(source:sub(at, stop))
    end
    at = stop + 1
  end
  return table.concat(parts), bounded
end

local function is_constant(operand)
  return operand:find "^%d" or operand:find "^[%u_][%u%d_]+$" or operand == "sizeof"
end

local ROOM = { "grow(", "GROW(", "ROOM(" }

local function makes_room(line)
  for _, call in ipairs(ROOM) do
    if line:find(call, 1, true) then return true end
  end
  return false
end

---@param line string
---@param pointers table<string, boolean>
---@return boolean
local function is_raw(line, pointers)
  if line:find("kg_fail_memory(", 1, true) then return false end
  line = line:gsub("(for %b())", function(header) return (header:gsub(";[^;]*%)$", ";)")) end)
  for left, operator, right in (line .. " "):gmatch "()%s([+*<]+=?)%s+()" do
    local is_watched = operator == "+" or operator == "*" or operator == "<<" or operator == "+=" or operator == "*="
      or operator == "<<="
    if is_watched then
      local before = line:sub(1, left - 1):match "([%w_.]+)$" or ""
      local after = line:sub(right):match "^([%w_.]+)" or ""
      local name = before:match "([%a_][%w_]*)$"
      local is_address = operator == "+" and name and pointers[name]
      local is_one_more = operator == "+" and after == "1" and makes_room(line)
      if not (is_address or is_one_more or is_constant(before) and is_constant(after)) then return true end
    end
  end
  return false
end

---@param path string
---@param only string?      a function outside of which nothing is looked at
---@param own string?       names of pointers besides POINTERS
---@return integer n  places found
local function check(path, only, own)
  local pointers = set_of(POINTERS .. " " .. (own or ""))
  local file = assert(io.open(path, "rb"))
  local source = file:read "a"
  file:close()
  local code, bounded = strip(source)
  local lines = {}
  for text in (source .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = text end
  local number, n, is_inside, was_found, above = 0, 0, not only, not only, false
  for text in (code .. "\n"):gmatch "(.-)\n" do
    number = number + 1
    if only and text:find("^[%w_].*" .. only .. "%(") then is_inside, was_found = true, true end
    if is_inside and is_raw(text, pointers) and not bounded[number] and not above then
      print(("%s:%d: %s"):format(path, number, (lines[number]:gsub("^%s+", ""))))
      n = n + 1
    end
    if only and text:find "^}" then is_inside = false end
    above = bounded[number] and not text:find "%S"
  end
  if not was_found then error(path .. ": " .. only .. " is not there") end
  return n
end

local files, found = FILES, 0
if #arg > 0 then
  files = {}
  for _, path in ipairs(arg) do
    local known
    for _, file in ipairs(FILES) do known = file[1] == path and file or known end
    files[#files + 1] = known or { path }
  end
end
for _, file in ipairs(files) do found = found + check(file[1], file.only, file.pointers) end
if found > 0 then
  print(("lint: %d place%s: use kg_add_size, kg_mul_size or kg_align_size, or say /* bounded: why */"):format(found,
    found == 1 and "" or "s"))
  os.exit(1)
end
