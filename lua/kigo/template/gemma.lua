-- Gemma 1 to 3: <start_of_turn>role, newline, the trimmed content, <end_of_turn>, newline. The assistant is called
-- model; there is no system turn, its text opens the first one of the user.
local writer = require "kigo.template.writer"

local START, FINISH = "<start_of_turn>", "<end_of_turn>"

local function render(messages, options)
  local system, turns = writer.split_system(messages)
  if not writer.alternates(turns) then return writer.refuse "user and assistant must take turns, the user first" end
  local out = writer.new():control(options.bos_token)
  for i, message in ipairs(turns) do
    out:control(START):own(message.role == "assistant" and "model\n" or "user\n")
    if i == 1 and system then out:text(writer.trim(system)):own "\n\n" end
    out:text(writer.trim(message.content)):control(FINISH):own "\n"
  end
  if options.generate then out:control(START):own "model\n" end
  return out.segments
end

return { { name = "gemma", controls = { START, FINISH }, render = render } }
