-- decimal.lua - the numbers of a schema, exactly: what the text said, not what a double makes of it. A decimal is
-- (-1)^negative x digits x 10^exponent, with no zero at either end of the digits; the digits of zero are "".
local decimal = {}

---@class kigo.schema.Decimal
---@field negative boolean
---@field digits string
---@field exponent integer
local Decimal = {}
Decimal.__index = Decimal

-- Decimal points farther out make texts of thousands of digits.
local MAX_EXPONENT = 400

---Is it one of ours?
---@param value any
---@return boolean
function decimal.is(value) return getmetatable(value) == Decimal end

local function new(negative, digits, exponent)
  digits = digits:gsub("^0+", "")
  local kept = digits:gsub("0+$", "")
  if kept == "" then return setmetatable({ negative = false, digits = "", exponent = 0 }, Decimal) end
  return setmetatable({ negative = negative, digits = kept, exponent = exponent + #digits - #kept }, Decimal)
end

---The number that a JSON text spells; nil where it is none, or is farther from 1 than anybody writes.
---@param text string
---@return kigo.schema.Decimal?
function decimal.parse(text)
  local sign, whole, rest = text:match "^(-?)(%d+)(.*)$"
  if not whole then return nil end
  local fraction = rest:match "^%.(%d+)" or ""
  if fraction ~= "" then rest = rest:sub(#fraction + 2) end
  local power = rest == "" and "0" or rest:match "^[eE]([+-]?%d+)$"
  if not power then return nil end
  local exponent = math.tointeger(tonumber(power)) or math.maxinteger // 2
  local value = new(sign == "-", whole .. fraction, exponent - #fraction)
  if value.digits ~= "" and math.abs(value.exponent) > MAX_EXPONENT then return nil end
  return value
end

---The shortest decimal that reads back as the same double, or the integer itself.
---@param number number   finite
---@return kigo.schema.Decimal?
function decimal.of(number)
  if math.type(number) == "integer" then return decimal.parse(tostring(number)) end
  for precision = 15, 17 do
    local text = ("%%.%dg"):format(precision):format(number)
    if tonumber(text) == number then return decimal.parse(text) end
  end
end

---Digits before and behind the decimal point, without signs and superfluous zeros: "12", "5" for -12.5.
---@return string whole     "0" at least
---@return string fraction  "" for integers
function Decimal:parts()
  if self.exponent >= 0 then return self.digits == "" and "0" or self.digits .. ("0"):rep(self.exponent), "" end
  local digits = ("0"):rep(-self.exponent - #self.digits + 1) .. self.digits
  return digits:sub(1, self.exponent - 1), digits:sub(self.exponent)
end

---@return boolean
function Decimal:is_integer() return self.exponent >= 0 end

---@return boolean
function Decimal:is_zero() return self.digits == "" end

local function compare_magnitudes(a, b)
  local a_whole, a_fraction = a:parts()
  local b_whole, b_fraction = b:parts()
  if #a_whole ~= #b_whole then return #a_whole < #b_whole and -1 or 1 end
  if a_whole ~= b_whole then return a_whole < b_whole and -1 or 1 end
  if a_fraction == b_fraction then return 0 end
  return a_fraction < b_fraction and -1 or 1
end

---@param other kigo.schema.Decimal
---@return integer   -1, 0 or 1
function Decimal:compare(other)
  if self.negative ~= other.negative then return self.negative and -1 or 1 end
  local order = compare_magnitudes(self, other)
  return self.negative and -order or order
end

---Its value as a small integer: for lengths and counts.
---@return integer?   nil where it is no integer, or of more than 15 digits
function Decimal:to_integer()
  if not self:is_integer() or #self.digits + self.exponent > 15 then return nil end
  local value = math.tointeger(tonumber((self:parts())))
  return self.negative and -value or value
end

---Remainder of the magnitude's digits, read as one integer with `zeros` zeros behind it.
local function remainder(digits, zeros, divisor)
  local rest = 0
  for digit in digits:gmatch "%d" do rest = (rest * 10 + tonumber(digit)) % divisor end
  for _ = 1, zeros do rest = rest * 10 % divisor end
  return rest
end

---As a multiple of 10^-places: the divisor k and the places; nil where k has more than 15 digits.
---@return integer? k
---@return integer places
function Decimal:as_divisor()
  local places = math.max(0, -self.exponent)
  local digits = self.digits .. ("0"):rep(math.max(0, self.exponent))
  return #digits <= 15 and math.tointeger(tonumber(digits)) or nil, places
end

---Is it a whole multiple of k x 10^-places?
---@param k integer
---@param places integer
---@return boolean
function Decimal:is_multiple(k, places)
  if self.exponent < -places then return false end
  return remainder(self.digits, self.exponent + places, k) == 0
end

---A name for the value: equal values have equal names.
---@return string
function Decimal:__tostring() return ("%s%se%d"):format(self.negative and "-" or "", self.digits, self.exponent) end

return decimal
