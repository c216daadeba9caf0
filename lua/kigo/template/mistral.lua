-- Mistral's instruction formats, by the version of its tokenizer: [INST] and [/INST] around what the user says, the
-- end token after the answer. They differ in spaces, in what is a control token, and in where the system message goes:
-- before the last thing that the user says, and from version 7 on in a place of its own.
local writer = require "kigo.template.writer"

local function append_user(out, version, system, content)
  local mark = version.is_plain and out.own or out.control
  mark(out, "[INST]")
  if version.space_after ~= "" then out:own(version.space_after) end
  if system then out:text(system):own "\n\n" end
  out:text(content)
  if version.space_before ~= "" then out:own(version.space_before) end
  mark(out, "[/INST]")
end

---The first versions; the system message goes to the last user.
local function render_old(version, messages, options)
  local system, turns = writer.split_system(messages)
  if not writer.alternates(turns) then return writer.refuse "user and assistant must take turns, the user first" end
  local out = writer.new():control(options.bos_token)
  for i, message in ipairs(turns) do
    if message.role == "user" then
      append_user(out, version, i == #turns and system or nil, message.content)
    else
      if version.space_after ~= "" then out:own(version.space_after) end
      out:text(message.content):control(options.eos_token)
    end
  end
  return out.segments
end

local function render_new(version, messages, options)
  local out = writer.new():control(options.bos_token)
  for _, message in ipairs(messages) do
    if message.role == "system" then
      out:control "[SYSTEM_PROMPT]":text(message.content):control "[/SYSTEM_PROMPT]"
    elseif message.role == "user" then
      append_user(out, version, nil, message.content)
    else
      out:text(message.content):control(options.eos_token)
    end
  end
  return out.segments
end

local function format(name, controls, render, version)
  return { name = name, controls = controls,
    render = function(messages, options) return render(version, messages, options) end }
end

local TURNS = { "[INST]", "[/INST]" }
local WITH_SYSTEM = { "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]" }

return {
  -- Mistral 7B 0.1 and 0.2, Mixtral 8x7B: the markers are ordinary text
  format("mistral-v1", {}, render_old, { is_plain = true, space_after = " ", space_before = " " }),
  -- Mistral 7B 0.3, Mixtral 8x22B
  format("mistral-v3", TURNS, render_old, { space_after = " ", space_before = "" }),
  -- Nemo, Pixtral
  format("mistral-v3-tekken", TURNS, render_old, { space_after = "", space_before = "" }),
  -- Small 3 and later, Devstral
  format("mistral-v7-tekken", WITH_SYSTEM, render_new, { space_after = "", space_before = "" }),
}
