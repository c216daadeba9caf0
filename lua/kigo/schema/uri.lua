-- uri.lua - references within a document, RFC 3986 section 5.2.
local uri = {}

local function split(text)
  local rest, fragment = text:match "^([^#]*)#(.*)$"
  rest = rest or text
  local scheme, behind = rest:match "^(%a[%w+.-]*):(.*)$"
  local path, query = (behind or rest):match "^([^?]*)%?(.*)$"
  path = path or behind or rest
  local authority, tail = path:match "^//([^/]*)(.*)$"
  return { scheme = scheme, authority = authority, path = tail or path, query = query, fragment = fragment }
end

local function without_dots(path)
  local out = {}
  for slash, segment in path:gmatch "(/?)([^/]*)" do
    if segment == ".." then
      if #out > 0 then out[#out] = nil end
    elseif segment ~= "." and (slash ~= "" or segment ~= "") then
      out[#out + 1] = slash .. segment
    end
  end
  if path:find "/%.%.?$" then out[#out + 1] = "/" end
  return table.concat(out)
end

local function joined(base, path)
  if base.authority and base.path == "" then return "/" .. path end
  return base.path:match "^(.*/)" and base.path:match "^(.*/)" .. path or path
end

local function text_of(parts)
  return (parts.scheme and parts.scheme .. ":" or "") .. (parts.authority and "//" .. parts.authority or "")
    .. parts.path .. (parts.query and "?" .. parts.query or "")
end

---A reference seen from a base.
---@param base string
---@param reference string
---@return string absolute    without a fragment
---@return string? fragment   as it is written; nil: none
function uri.resolve(base, reference)
  local ref, from = split(reference), split(base)
  local to = { scheme = ref.scheme, authority = ref.authority, path = without_dots(ref.path), query = ref.query }
  if not ref.scheme then
    to.scheme = from.scheme
    if not ref.authority then
      to.authority = from.authority
      if ref.path == "" then
        to.path, to.query = from.path, ref.query or from.query
      elseif ref.path:sub(1, 1) ~= "/" then
        to.path = without_dots(joined(from, ref.path))
      end
    end
  end
  return text_of(to), ref.fragment
end

---%41 to A.
---@param text string
---@return string
function uri.decode(text)
  return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

return uri
