-- strftime in the C locale.
local DAYS = { "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday" }
local MONTHS = { "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
  "November", "December" }

local function two(x) return ("%02d"):format(x) end
local function hour12(now) return (now.hour + 11) % 12 + 1 end

-- Number of the week whose first day is Sunday (0) or Monday (1).
local function week(now, first_day)
  local weekday = (now.wday - 1 - first_day) % 7
  return (now.yday + 6 - weekday) // 7
end

-- Year and week of ISO 8601.
local function iso_week(now)
  local weekday = (now.wday + 5) % 7 -- Monday is 0
  local function weeks_in(year)
    local function last_day(y) return (y + y // 4 - y // 100 + y // 400) % 7 end
    return (last_day(year) == 4 or last_day(year - 1) == 3) and 53 or 52
  end
  local number = (now.yday - weekday + 9) // 7
  if number < 1 then return now.year - 1, weeks_in(now.year - 1) end
  if number > weeks_in(now.year) then return now.year + 1, 1 end
  return now.year, number
end

local directives = {
  a = function(now) return DAYS[now.wday]:sub(1, 3) end,
  A = function(now) return DAYS[now.wday] end,
  b = function(now) return MONTHS[now.month]:sub(1, 3) end,
  B = function(now) return MONTHS[now.month] end,
  C = function(now) return two(now.year // 100) end,
  d = function(now) return two(now.day) end,
  e = function(now) return ("%2d"):format(now.day) end,
  f = function() return "000000" end,
  g = function(now) return two(iso_week(now) % 100) end,
  G = function(now) return tostring((iso_week(now))) end,
  H = function(now) return two(now.hour) end,
  I = function(now) return two(hour12(now)) end,
  j = function(now) return ("%03d"):format(now.yday) end,
  k = function(now) return ("%2d"):format(now.hour) end,
  l = function(now) return ("%2d"):format(hour12(now)) end,
  m = function(now) return two(now.month) end,
  M = function(now) return two(now.min) end,
  n = function() return "\n" end,
  p = function(now) return now.hour < 12 and "AM" or "PM" end,
  P = function(now) return now.hour < 12 and "am" or "pm" end,
  S = function(now) return two(now.sec) end,
  t = function() return "\t" end,
  u = function(now) return tostring((now.wday + 5) % 7 + 1) end,
  U = function(now) return two(week(now, 0)) end,
  V = function(now) return two((select(2, iso_week(now)))) end,
  w = function(now) return tostring(now.wday - 1) end,
  W = function(now) return two(week(now, 1)) end,
  y = function(now) return two(now.year % 100) end,
  Y = function(now) return tostring(now.year) end,
  z = function() return "" end, -- a time without a zone
  Z = function() return "" end,
  ["%"] = function() return "%" end,
}

local COMPOUND = { c = "%a %b %e %H:%M:%S %Y", D = "%m/%d/%y", F = "%Y-%m-%d", h = "%b", r = "%I:%M:%S %p", R = "%H:%M",
  T = "%H:%M:%S", x = "%m/%d/%y", X = "%H:%M:%S" }

---@param format string
---@param now osdate
---@return string
local function strftime(format, now)
  return (format:gsub("%%([-_0^]?)(.)", function(flag, letter)
    if COMPOUND[letter] then return strftime(COMPOUND[letter], now) end
    local directive = directives[letter]
    if not directive then return nil end
    local text = directive(now)
    if flag == "-" then return (text:gsub("^[0 ]+(.)", "%1")) end
    if flag == "_" then return (text:gsub("^0+(.)", function(rest) return (" "):rep(#text - #rest) .. rest end)) end
    return flag == "^" and text:upper() or text
  end))
end

return strftime
