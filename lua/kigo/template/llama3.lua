-- Llama 3: a header with the role, two newlines, the trimmed content, <|eot_id|>. From 3.1 on the system message begins
-- with dates; the variable date_string is the second.
local writer = require "kigo.template.writer"

local START, STOP, FINISH = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
local CONTROLS = { START, STOP, FINISH }

local function header(out, role) return out:control(START):own(role):control(STOP):own "\n\n" end

local function append_turns(out, messages, options)
  for _, message in ipairs(messages) do header(out, message.role):text(writer.trim(message.content)):control(FINISH) end
  if options.generate then header(out, "assistant") end
  return out.segments
end

local function render(messages, options)
  return append_turns(writer.new():control(options.bos_token), messages, options)
end

local function render_dated(messages, options)
  local system, turns = writer.split_system(messages)
  local out = writer.new():control(options.bos_token)
  header(out, "system"):own "Cutting Knowledge Date: December 2023\nToday Date: "
    :text(options.variables.date_string or "26 Jul 2024"):own "\n\n":text(writer.trim(system or "")):control(FINISH)
  return append_turns(out, turns, options)
end

return {
  { name = "llama3", controls = CONTROLS, render = render },
  { name = "llama3.1", controls = CONTROLS, render = render_dated },
}
