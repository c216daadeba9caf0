-- 07-tools.lua - tools: the model asks, your functions answer, the model goes on. Any model whose template knows tools
-- will do; the bundled one has never seen a tool and simply talks.
-- Run: build/kigo examples/07-tools.lua [MODEL [QUESTION]]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local path, question = arg[1] or haiku.bundled_model(), arg[2] or "What time is it in winter, and what is 6 times 7?"

-- What each tool does, and what the model is told about it (JSON Schema, as everywhere).
local run = {
  now = function() return os.date "%H:%M" end,
  multiply = function(arguments) return tostring(arguments.a * arguments.b) end,
}
local tools = {
  { type = "function", ["function"] = { name = "now", description = "The time on the wall.",
    parameters = { type = "object", properties = {} } } },
  { type = "function", ["function"] = { name = "multiply", description = "The product of two numbers.",
    parameters = { type = "object", required = { "a", "b" },
      properties = { a = { type = "number" }, b = { type = "number" } } } } },
}

-- A mistake of the model's is an answer like any other: it may try again.
local function result_of(call)
  local tool = run[call.name]
  if not tool then return "error: there is no tool " .. call.name end
  local done, result = pcall(tool, call.values)
  return done and result or "error: " .. tostring(result)
end

local model <close> = assert(kigo.load(path))
local chat <close> = assert(model:conversation { tools = tools, seed = 7, max = 256 })
local words = question
for _ = 1, 8 do
  local answer = assert(chat:say(words)).answer
  if answer.content ~= "" then print(answer.content) end
  if #answer.tool_calls == 0 then break end
  words = {}
  for i, call in ipairs(answer.tool_calls) do
    print(("  %s(%s)"):format(call.name, call.arguments))
    words[i] = { role = "tool", name = call.name, content = result_of(call),
      tool_call_id = chat.messages[#chat.messages].tool_calls[i].id }
  end
end
