-- tagged.lua - formats that write each argument between tags of its own, without JSON around: a table of them. What the
-- parser hands on as arguments is the JSON that the tags mean.
--
-- Such a text does not say whether 3 is a number or a string: the tool's schema does, where it is known. Without one a
-- value that is JSON means that; what Python would read as a list, a dict, True, False or None means that; everything
-- else is a string.
local json = require "kigo.json"
local json_text = require "kigo.parse.json"
local python = require "kigo.parse.python"

local MAX_NAME = 256
local PYTHON = { True = "true", False = "false", None = "null" }

---The JSON text of a value, where it is one.
local function as_json(text)
  local trimmed = text:match "^%s*(.*%S)" or ""
  if PYTHON[trimmed] then return PYTHON[trimmed] end
  return json_text.is_value(trimmed) and trimmed or python.container(trimmed)
end

---Does the schema of this argument say that it is a string, and nothing else?
local function is_string(schema)
  return type(schema) == "table" and schema.type == "string"
end

---@param answer kigo.parse.Answer
---@param format table
---@param schemas table<string, table>   of the arguments, by name
local function read_arguments(reader, answer, format, schemas)
  local head = "{"
  while true do
    reader:space()
    if reader:literal(format.call_end) then
      answer:arguments(head == "{" and "{}" or "}")
      return true
    end
    if not reader:literal(format.argument) then return nil end
    local key = reader:name(format.name_end, MAX_NAME)
    if not key then return nil end
    local kind = format.read_kind and format.read_kind(reader)
    if format.read_kind and not kind then return nil end
    local value = reader:upto { format.argument_end }
    if not value then return nil end
    if format.on_lines then value = value:gsub("^\n", ""):gsub("\n$", "") end
    local as_text = kind == "string" or (not kind and is_string(schemas[key]))
    answer:arguments(head .. json.encode(key) .. ": " .. (not as_text and as_json(value) or json.encode(value)))
    head = ", "
  end
end

---@return kigo.parse.Format
local function tagged(format)
  local markers = { format.open or format.call, format.open and format.bare and format.call or nil }
  local function read_call(reader, answer, options)
    local name = reader:name(format.name_end, MAX_NAME)
    if not name or name == "" or name:find "%c" then return nil end
    answer:call(name)
    return read_arguments(reader, answer, format, options.schemas[name] or {})
  end
  local function read(reader, answer, marker, options)
    if marker == format.call then return read_call(reader, answer, options) end
    repeat
      reader:space()
      if not reader:literal(format.call) then return nil end
      if not read_call(reader, answer, options) then return nil end
      reader:space()
    until reader:literal(format.close) or not reader:has_next()
    return true
  end
  return { name = format.name, markers = markers, read = read, recognise = format.recognise }
end

local function has(text)
  return function(source) return source:find(text, 1, true) ~= nil end
end

---<|DSML|parameter name="k" string="true">: DeepSeek says itself what is a string.
local function read_dsml_kind(reader)
  if reader:literal 'string="true">' then return "string" end
  if reader:literal 'string="false">' then return "json" end
end

local function dsml(name, block)
  return tagged { name = name, open = "<｜DSML｜" .. block .. ">", close = "</｜DSML｜" .. block .. ">",
    call = '<｜DSML｜invoke name="', name_end = { '">', '" ' }, call_end = "</｜DSML｜invoke>",
    argument = '<｜DSML｜parameter name="', argument_end = "</｜DSML｜parameter>", read_kind = read_dsml_kind,
    recognise = function(source)
      return source:find("｜DSML｜", 1, true) and source:find(block, 1, true) and true or false
    end }
end

return {
  -- Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5. Some leave the outer tag out.
  tagged { name = "qwen3_coder", open = "<tool_call>", close = "</tool_call>", bare = true,
    call = "<function=", name_end = { ">" }, call_end = "</function>",
    argument = "<parameter=", argument_end = "</parameter>", on_lines = true, recognise = has "<parameter=" },
  tagged { name = "minimax", open = "<minimax:tool_call>", close = "</minimax:tool_call>",
    call = '<invoke name="', name_end = { '">' }, call_end = "</invoke>",
    argument = '<parameter name="', argument_end = "</parameter>", recognise = has "<minimax:tool_call>" },
  tagged { name = "minicpm5", -- without an outer tag
    call = '<function name="', name_end = { '">' }, call_end = "</function>",
    argument = '<param name="', argument_end = "</param>", recognise = has '<param name="' },
  dsml("deepseek_v3.2", "function_calls"),
  dsml("deepseek_v4", "tool_calls"),
}
