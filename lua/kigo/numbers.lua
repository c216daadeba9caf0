-- numbers.lua - minutes in words.
local numbers = {}

local SMALL = { [0] = "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
  "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen" }
local TENS = { [2] = "twenty", [3] = "thirty", [4] = "forty", [5] = "fifty" }

---A minute in words: 29 -> "twenty-nine".
---@param minute integer  0 to 59
---@return string
function numbers.word(minute)
  if math.type(minute) ~= "integer" or minute < 0 or minute > 59 then
    error("minute: integer from 0 to 59 expected, got " .. tostring(minute), 2)
  end
  if SMALL[minute] then return SMALL[minute] end
  local ones = minute % 10
  return TENS[minute // 10] .. (ones > 0 and "-" .. SMALL[ones] or "")
end

return numbers
