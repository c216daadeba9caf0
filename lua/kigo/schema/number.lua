-- number.lua - numbers by their value, as languages of the texts that spell them. A text is written plainly ("12.50")
-- or, where only limits matter, also with an exponent behind one digit before the point ("1.25e+01", as serializers
-- write it): in this form the order of values is the order of exponents, then of digits, which an automaton can tell.
-- "12.5e0" is refused where there are limits; every value keeps a spelling.
local language = require "kigo.schema.language"
local refuse = require "kigo.schema.refuse"

local seq, alt, times, maybe = language.seq, language.alt, language.times, language.maybe

local number = {}

local DIGIT = language.digit
local NONZERO = { "class", 0x31, 0x39 }
local DIGITS = times(DIGIT, 0)
local WHOLE = alt { "0", seq(NONZERO, DIGITS) }
local FRACTION = seq(".", times(DIGIT, 1))
local ZEROS = times("0", 0)
local ZERO_FRACTION = seq(".", times("0", 1))
local SIGN = maybe "-"
local E = { "class", 0x45, 0x45, 0x65, 0x65 }

---All numbers of JSON.
number.any = seq(SIGN, WHOLE, maybe(FRACTION), maybe(seq(E, maybe(alt { "+", "-" }), times(DIGIT, 1))))
---All that are written without an exponent.
number.plain = seq(SIGN, WHOLE, maybe(FRACTION))
---Those of them that are integers: 5, 5.0.
number.integer = seq(SIGN, WHOLE, maybe(ZERO_FRACTION))

---Those of them where whole numbers have no point: 5, 5.25, but not 5.0.
number.tidy = seq(SIGN, WHOLE, maybe(seq(".", DIGITS, NONZERO, DIGITS)))

local EXPONENT_UP = seq(maybe "+", ZEROS) -- in front of the digits of an exponent that is not negative
local EXPONENT_DOWN = seq("-", ZEROS)
local MANTISSA = seq(NONZERO, maybe(FRACTION))

---Those with an exponent that limits can tell apart; zero is none of them.
local SCIENTIFIC = seq(SIGN, MANTISSA, E, maybe(alt { "+", "-" }), times(DIGIT, 1))
---The texts among which limits are exact.
number.limited = alt { number.plain, SCIENTIFIC }

local function digits_above(digit) return digit < "9" and { "class", digit:byte() + 1, 0x39 } or language.none end
local function digits_below(digit) return digit > "0" and { "class", 0x30, digit:byte() - 1 } or language.none end

-- ---- digits of equal weight ----

-- Texts of as many digits as `text`, above (or below) it.
local function whole_beyond(text, step)
  local list = {}
  for k = 1, #text do
    list[k] = seq(text:sub(1, k - 1), step(text:sub(k, k)), times(DIGIT, #text - k, #text - k))
  end
  return alt(list)
end

-- What may stand behind the point: digits that make more than those of `text` (or as much).
local function fraction_above(text, or_equal)
  local list = {}
  for k = 1, #text do list[k] = seq(text:sub(1, k - 1), digits_above(text:sub(k, k)), DIGITS) end
  local equal = text == "" and times(DIGIT, 1) or seq(text, DIGITS)
  list[#list + 1] = or_equal and equal or seq(text, ZEROS, NONZERO, DIGITS)
  return alt(list)
end

-- Less than those of `text` (or as much); at least one digit.
local function fraction_below(text, or_equal)
  local list = {}
  for k = 1, #text do
    list[#list + 1] = seq(text:sub(1, k - 1), digits_below(text:sub(k, k)), DIGITS)
    if k > 1 then list[#list + 1] = text:sub(1, k - 1) end
  end
  if or_equal then list[#list + 1] = text == "" and times("0", 1) or seq(text, ZEROS) end
  return alt(list)
end

-- The same with the point, or without both.
local function tail_above(fraction, or_equal)
  local some = seq(".", fraction_above(fraction, or_equal))
  return fraction == "" and or_equal and maybe(some) or some
end

local function tail_below(fraction, or_equal)
  local some = seq(".", fraction_below(fraction, or_equal))
  return (fraction ~= "" or or_equal) and maybe(some) or some
end

-- Whole numbers of more (fewer) digits.
local function longer(whole) return seq(NONZERO, times(DIGIT, #whole)) end
local function shorter(whole)
  return #whole > 1 and alt { "0", seq(NONZERO, times(DIGIT, 0, #whole - 2)) } or language.none
end

-- Whole numbers of as many digits, but above (below): no leading zeros, so the first digit of several is none.
local function beside(whole, step)
  local found = whole_beyond(whole, step)
  return #whole > 1 and language.both { found, seq(NONZERO, DIGITS) } or found
end

-- ---- magnitudes ----

local function plain_above(value, or_equal)
  local whole, fraction = value:parts()
  return alt {
    seq(longer(whole), maybe(FRACTION)),
    seq(beside(whole, digits_above), maybe(FRACTION)),
    seq(whole, tail_above(fraction, or_equal)),
  }
end

local function plain_below(value, or_equal)
  local whole, fraction = value:parts()
  return alt {
    seq(shorter(whole), maybe(FRACTION)),
    seq(beside(whole, digits_below), maybe(FRACTION)),
    seq(whole, tail_below(fraction, or_equal)),
  }
end

-- Exponents above and below that of a value that is not zero, and the same.
local function exponents(value)
  local n = value.exponent + #value.digits - 1
  local text = tostring(math.abs(n))
  local up = alt { longer(text), beside(text, digits_above) }
  local down = alt { shorter(text), beside(text, digits_below) }
  local any = times(DIGIT, 1)
  if n > 0 then
    return seq(EXPONENT_UP, up), alt { seq("-", any), seq(EXPONENT_UP, down) }, seq(EXPONENT_UP, text)
  elseif n < 0 then
    local above = alt { seq(maybe "+", any), seq(EXPONENT_DOWN, down) }
    return above, seq(EXPONENT_DOWN, up), seq(EXPONENT_DOWN, text)
  end
  local signs = maybe(alt { "+", "-" })
  return seq(EXPONENT_UP, NONZERO, DIGITS), seq(EXPONENT_DOWN, NONZERO, DIGITS), seq(signs, times("0", 1))
end

-- `side` is 1 for above, 2 for below.
local function scientific(value, side, or_equal)
  if value:is_zero() then
    return side == 1 and seq(MANTISSA, E, maybe(alt { "+", "-" }), times(DIGIT, 1)) or language.none
  end
  local above, below, same = exponents(value)
  local first, rest = value.digits:sub(1, 1), value.digits:sub(2)
  local step, tail = digits_above, tail_above
  if side == 2 then step, tail = digits_below, tail_below end
  local lead = step(first)
  if side == 2 then lead = first > "1" and { "class", 0x31, first:byte() - 1 } or language.none end
  return alt {
    seq(MANTISSA, E, side == 1 and above or below),
    seq(alt { seq(lead, maybe(FRACTION)), seq(first, tail(rest, or_equal)) }, E, same),
  }
end

local function magnitude_above(value, or_equal)
  return alt { plain_above(value, or_equal), scientific(value, 1, or_equal) }
end

local function magnitude_below(value, or_equal)
  return alt { plain_below(value, or_equal), scientific(value, 2, or_equal) }
end

-- ---- values ----

local ANY_MAGNITUDE = alt { seq(WHOLE, maybe(FRACTION)), seq(MANTISSA, E, maybe(alt { "+", "-" }), times(DIGIT, 1)) }
local ZERO = seq("0", maybe(ZERO_FRACTION))

---Numbers above a limit.
---@param value kigo.schema.Decimal
---@param or_equal boolean
function number.above(value, or_equal)
  if value.negative then return alt { ANY_MAGNITUDE, seq("-", magnitude_below(value, or_equal)) } end
  local found = magnitude_above(value, or_equal)
  return value:is_zero() and or_equal and alt { found, seq("-", ZERO) } or found
end

---Numbers below a limit.
---@param value kigo.schema.Decimal
---@param or_equal boolean
function number.below(value, or_equal)
  if value.negative then return seq("-", magnitude_above(value, or_equal)) end
  if value:is_zero() then
    local negative = seq("-", magnitude_above(value, or_equal))
    return or_equal and alt { negative, ZERO } or negative
  end
  return alt { seq("-", ANY_MAGNITUDE), magnitude_below(value, or_equal) }
end

---The texts of one value.
---@param value kigo.schema.Decimal
function number.exactly(value)
  local whole, fraction = value:parts()
  local tail = fraction == "" and maybe(ZERO_FRACTION) or seq(".", fraction, ZEROS)
  local found = seq(whole, tail)
  if value:is_zero() then return seq(SIGN, found) end
  local _, _, same = exponents(value)
  local first, rest = value.digits:sub(1, 1), value.digits:sub(2)
  local scientific_tail = rest == "" and maybe(ZERO_FRACTION) or seq(".", rest, ZEROS)
  return seq(value.negative and "-" or "", alt { found, seq(first, scientific_tail, E, same) })
end

-- ---- multiples ----

local MAX_STATES = 2000 -- of the automaton: remainders times places

---Numbers, written plainly, that are whole multiples of k x 10^-places.
---@param k integer?
---@param places integer
---@param where string
function number.multiple(k, places, where)
  if not k or k * (places + 2) > MAX_STATES then
    refuse.unsupported(where, "an automaton for the multiples of this number would be too large")
  end
  return language.both { number.plain, seq(SIGN, { "multiple", k, places }) }
end

return number
