-- Phi 3: a control token for each role, newline, content, <|end|>, newline. Phi 4: ChatML with <|im_sep|> instead of
-- the newline behind the role, and none behind a turn.
local writer = require "kigo.template.writer"

local function render_phi3(messages, options)
  local out = writer.new()
  for _, message in ipairs(messages) do
    local is_empty_system = message.role == "system" and message.content == ""
    if not is_empty_system then
      out:control("<|" .. message.role .. "|>"):own "\n":text(message.content):control "<|end|>":own "\n"
    end
  end
  if not options.generate then return out:control(options.eos_token).segments end
  return out:control "<|assistant|>":own "\n".segments
end

local function render_phi4(messages, options)
  local out = writer.new()
  local function head(role) return out:control "<|im_start|>":own(role):control "<|im_sep|>" end
  for _, message in ipairs(messages) do head(message.role):text(message.content):control "<|im_end|>" end
  if options.generate then head "assistant" end
  return out.segments
end

return {
  { name = "phi3", controls = { "<|system|>", "<|user|>", "<|assistant|>", "<|end|>" }, render = render_phi3 },
  { name = "phi4", controls = { "<|im_start|>", "<|im_sep|>", "<|im_end|>" }, render = render_phi4 },
}
