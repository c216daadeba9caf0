-- formats.lua - what `format` means, as languages: the grammars of the RFCs that the standard names, calendars and leap
-- seconds included. Stricter than those: hostname has no labels of the form xn-- (what they spell would have to be
-- decoded), and years are 0001 to 9999. Formats that nobody knows are annotations.
local language = require "kigo.schema.language"
local regex = require "kigo.regex"

local seq, alt, both, times = language.seq, language.alt, language.both, language.times

local formats = {}

-- Text of a regular expression with {NAME} replaced by other such texts.
local function filled(text, parts)
  return (text:gsub("{(%u[%u%d_]*)}", function(name) return parts[name] and "(?:" .. parts[name] .. ")" end))
end

local function node_of(text) return assert(regex.parse(text, { anchored = true })) end

-- ---- dates and times: RFC 3339 ----
-- Without intersections: what is simply said needs no search for dead ends.

local DAY = [[(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8])]]
local YEAR = [[[1-9]\d{3}|0(?:[1-9]\d\d|0(?:[1-9]\d|0[1-9]))]]
local LEAP_YEAR = [[\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00]]
local DATE = filled("{YEAR}-{DAY}|{LEAP}-02-29", { YEAR = YEAR, DAY = DAY, LEAP = LEAP_YEAR })

local function clock(minutes) return ("%02d:%02d"):format(minutes // 60 % 24, minutes % 60) end

-- A second 60 is the last one of a day in UTC: the clock shows 23:59 and the offset.
local function leap_seconds()
  local middle = seq(":60", language.maybe(seq(".", times(language.digit, 1))))
  local hours = { seq("23:59", middle, alt { "Z", "z" }) }
  for hour = 0, 23 do
    local list = {}
    for minute = 0, 59 do
      local now = hour * 60 + minute -- the offsets with which this is 23:59:
      local ahead, behind = clock(now + 1), clock(1439 - now)
      list[minute + 1] = seq(("%02d"):format(minute), middle, alt { "+" .. ahead, "-" .. behind })
    end
    hours[#hours + 1] = seq(("%02d:"):format(hour), alt(list))
  end
  return alt(hours)
end

local function time()
  local usual = node_of(filled([[{CLOCK}:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-]{CLOCK})]],
    { CLOCK = [[(?:[01]\d|2[0-3]):[0-5]\d]] }))
  return alt { usual, leap_seconds() }
end

local DURATION_TIME = [[T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)]]
local DURATION = filled([[P(?:(?:\d+D|\d+M(?:\d+D)?|\d+Y(?:\d+M(?:\d+D)?)?){TIME}?|{TIME}|\d+W)]],
  { TIME = DURATION_TIME })

-- ---- addresses: RFC 2673, 4291, 1123, 5321 ----

local OCTET = [[25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d]]
local IPV4 = filled([[{OCTET}\.{OCTET}\.{OCTET}\.{OCTET}]], { OCTET = OCTET })

-- Eight groups of four hexadecimal digits, the last two perhaps as IPv4, one or more of them as ::.
local function ipv6()
  local parts = { G = "[0-9A-Fa-f]{1,4}", V4 = IPV4 }
  parts.LAST = filled("{G}:{G}|{V4}", parts)
  local list = { filled("(?:{G}:){6}{LAST}", parts) }
  for before = 0, 7 do
    local head = before == 0 and "" or filled(("{G}(?::{G}){%d}"):format(before - 1), parts)
    local left = 7 - before -- groups behind ::
    local tails = { filled(left > 0 and ("(?:{G}(?::{G}){0,%d})?"):format(left - 1) or "", parts) }
    if left >= 2 then tails[2] = filled(("(?:{G}:){0,%d}{V4}"):format(left - 2), parts) end
    list[#list + 1] = head .. "::(?:" .. table.concat(tails, "|") .. ")"
  end
  return table.concat(list, "|")
end

local IPV6 = ipv6()

local LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
local DOMAIN = filled([[{LABEL}(?:\.{LABEL})*]], { LABEL = LABEL })

-- Labels that do not begin with xn--, by their first characters: an automaton sees at once what is no label.
local PLAIN_LABEL = filled("[A-WYZa-wyz0-9](?:{C}{0,61}{A})?|[Xx](?:{M}|(?:{M}|-){C}{0,60}{A})?|"
  .. "[Xx][Nn](?:{A}(?:{C}{0,59}{A})?|-{A}(?:{C}{0,58}{A})?)?",
  { A = "[A-Za-z0-9]", C = "[A-Za-z0-9-]", M = "[A-MO-Za-mo-z0-9]" })

local function hostname()
  return both { node_of(filled([[{LABEL}(?:\.{LABEL})*]], { LABEL = PLAIN_LABEL })), times(language.any, 1, 253) }
end

local function email()
  local parts = { ATOM = [=[[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+]=], V4 = IPV4, V6 = IPV6, DOMAIN = DOMAIN }
  local name = node_of(filled([["(?:[ !#-\[\]-~]|\\[ -~])*"|{ATOM}(?:\.{ATOM})*]], parts))
  local domain = both { node_of(filled(DOMAIN, parts)), times(language.any, 1, 255) }
  local literal = node_of(filled([=[\[(?:{V4}|IPv6:{V6})\]]=], parts))
  return seq(both { name, times(language.any, 1, 64) }, "@", alt { domain, literal })
end

-- ---- references: RFC 3986, 3987, 6570, 6901 ----

-- `more`: what else is unreserved; `private`: what else a query may hold.
local function references(more, private)
  local parts = { HEX = "%[0-9A-Fa-f]{2}", V4 = IPV4, V6 = IPV6 }
  local unreserved, delimiters = [[A-Za-z0-9\-._~]] .. more, [[!$&'()*+,;=]]
  local function characters(extra) return ("[%s%s%s]|{HEX}"):format(unreserved, delimiters, extra) end
  parts.USER, parts.NAME = characters ":", characters ""
  parts.CHAR, parts.PLAIN = characters ":@", characters "@"
  parts.TEXT, parts.QUERY = characters ":@/?", characters(":@/?" .. private)
  for _, name in ipairs { "USER", "NAME", "CHAR", "PLAIN", "TEXT", "QUERY" } do
    parts[name] = filled(parts[name], parts)
  end
  parts.FUTURE = ([[[vV][0-9A-Fa-f]+\.[A-Za-z0-9\-._~%s:]+]]):format(delimiters)
  parts.AUTHORITY = filled([[(?:{USER}*@)?(?:\[(?:{V6}|{FUTURE})\]|{NAME}*)(?::\d*)?]], parts)
  parts.ROOTED = filled([[/(?:{CHAR}+(?:/{CHAR}*)*)?]], parts)
  parts.BEHIND = filled([[(?:\?{QUERY}*)?(?:#{TEXT}*)?]], parts)
  parts.NET = filled([[//{AUTHORITY}(?:/{CHAR}*)*]], parts)
  local absolute = filled([[[A-Za-z][A-Za-z0-9+.\-]*:(?:{NET}|{ROOTED}|{CHAR}+(?:/{CHAR}*)*)?{BEHIND}]], parts)
  local relative = filled([[(?:{NET}|{ROOTED}|{PLAIN}+(?:/{CHAR}*)*)?{BEHIND}]], parts)
  return absolute, relative
end

local function ranges(list)
  local out = {}
  for i = 1, #list, 2 do out[#out + 1] = utf8.char(list[i]) .. "-" .. utf8.char(list[i + 1]) end
  return table.concat(out)
end

local UCS = ranges { 0xA0, 0xD7FF, 0xF900, 0xFDCF, 0xFDF0, 0xFFEF, 0xE1000, 0xEFFFD }
for plane = 1, 13 do UCS = UCS .. ranges { plane << 16, plane << 16 | 0xFFFD } end
local PRIVATE = ranges { 0xE000, 0xF8FF, 0xF0000, 0xFFFFD, 0x100000, 0x10FFFD }

local URI, RELATIVE_URI = references("", "")
local IRI, RELATIVE_IRI = references(UCS, PRIVATE)

local function uri_template()
  local parts = { HEX = "%[0-9A-Fa-f]{2}" }
  parts.CHAR = filled("[A-Za-z0-9_]|{HEX}", parts)
  parts.VARIABLE = filled([[{CHAR}(?:\.?{CHAR})*(?:\*|:[1-9]\d{0,3})?]], parts)
  parts.LITERAL = filled([=[[!#$&-;=?-\[\]_a-z~]=] .. UCS .. PRIVATE .. "]|{HEX}", parts)
  return filled([[(?:{LITERAL}|\{[+#./;?&=,!@|]?{VARIABLE}(?:,{VARIABLE})*\})*]], parts)
end

local POINTER = [[(?:/(?:[^~/]|~[01])*)*]]

-- Texts of regular expressions, or functions that make languages.
local KNOWN = {
  date = DATE, time = time, duration = DURATION,
  ["date-time"] = function() return seq(node_of(DATE), alt { "T", "t" }, time()) end,
  ipv4 = IPV4, ipv6 = IPV6, hostname = hostname, email = email,
  uuid = [[[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}]],
  uri = URI, ["uri-reference"] = URI .. "|" .. RELATIVE_URI,
  iri = IRI, ["iri-reference"] = IRI .. "|" .. RELATIVE_IRI,
  ["uri-template"] = uri_template(),
  ["json-pointer"] = POINTER, ["relative-json-pointer"] = [[(?:0|[1-9]\d*)(?:#|]] .. POINTER .. ")",
}

local REFUSED = {
  regex = "regular expressions are no regular language",
  ["idn-hostname"] = "the rules of IDNA cannot be written as an automaton of a sensible size",
  ["idn-email"] = "the rules of IDNA cannot be written as an automaton of a sensible size",
}

---The strings of a format.
---@param name string
---@return table? language   nil: nobody knows the format, or it cannot be enforced
---@return string? why       in the second case
function formats.get(name)
  if REFUSED[name] then return nil, ("format %q: %s"):format(name, REFUSED[name]) end
  local known = KNOWN[name]
  if type(known) == "string" then return node_of(known) end
  return known and known()
end

return formats
