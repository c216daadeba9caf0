-- ChatML (Qwen, Hermes, SmolLM ...): <|im_start|>role, newline, content, <|im_end|>, newline.
local writer = require "kigo.template.writer"

local START, FINISH = "<|im_start|>", "<|im_end|>"

local function render(messages, options)
  local out = writer.new()
  for _, message in ipairs(messages) do
    out:control(START):own(message.role .. "\n"):text(message.content):control(FINISH):own "\n"
  end
  if options.generate then out:control(START):own "assistant\n" end
  return out.segments
end

return { { name = "chatml", controls = { START, FINISH }, render = render } }
