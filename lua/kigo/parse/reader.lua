-- reader.lua - text that arrives in pieces, read as if it were whole. A parser runs in a coroutine; a method that needs
-- more text than there is yields until it comes. So what a parser finds does not depend on where its text was cut.
local reader = {}

---@class kigo.parse.Reader
---@field _buffer string    what is here
---@field _at integer       the first byte that nobody has read
---@field _ended boolean
---@field _kept string[]?   what was read since `keep`
local Reader = {}
Reader.__index = Reader

---@return kigo.parse.Reader
function reader.new()
  return setmetatable({ _buffer = "", _at = 1, _ended = false }, Reader)
end

---More text, from outside the coroutine.
---@param text string
function Reader:feed(text)
  self._buffer, self._at = self._buffer:sub(self._at) .. text, 1
end

---No more text will come.
function Reader:close() self._ended = true end

---Wait for more text; false: there is none.
---@return boolean
function Reader:more()
  local size = #self._buffer - self._at
  while #self._buffer - self._at == size do
    if self._ended then return false end
    coroutine.yield()
  end
  return true
end

---Read n bytes, which must be here.
---@param n integer
---@return string
function Reader:_take(n)
  local text = self._buffer:sub(self._at, self._at + n - 1)
  self._at = self._at + n
  if self._kept and n > 0 then self._kept[#self._kept + 1] = text end
  return text
end

---Remember what is read from now on, beginning with `head`, which was read already.
---@param head string
function Reader:keep(head) self._kept = { head } end

---What was read since `keep`.
---@return string
function Reader:kept() return table.concat(self._kept) end

---Is there a next byte? Waits for it.
---@return boolean
function Reader:has_next() return self._at <= #self._buffer or self:more() end

---The next byte, unread; "" at the end.
---@return string
function Reader:peek()
  if not self:has_next() then return "" end
  return self._buffer:sub(self._at, self._at)
end

---Does this text come next? It stays unread.
---@param text string
---@return boolean
function Reader:sees(text)
  while #self._buffer - self._at + 1 < #text do
    local here = self._buffer:sub(self._at)
    if text:sub(1, #here) ~= here or not self:more() then return false end
  end
  return self._buffer:sub(self._at, self._at + #text - 1) == text
end

---Read this text if it comes next.
---@param text string
---@return boolean
function Reader:literal(text)
  local is_next = self:sees(text)
  if is_next then self:_take(#text) end
  return is_next
end

---Read the first of these texts that comes next.
---@param texts string[]
---@return string?
function Reader:any(texts)
  for _, text in ipairs(texts) do
    if self:literal(text) then return text end
  end
end

---Read bytes as long as they belong to the class, a Lua pattern like "[%w_]"; at most `max` of them.
---@param class string
---@param sink? fun(text: string)
---@param max? integer
---@return string text   "" when there is a sink
function Reader:run(class, sink, max)
  local parts, left, pattern = {}, max or math.huge, "^" .. class .. "*"
  local function keep(text) parts[#parts + 1] = text end
  repeat
    local _, last = self._buffer:find(pattern, self._at)
    local n = math.min(last - self._at + 1, left)
    if n > 0 then (sink or keep)(self:_take(n)) end
    left = left - n
  until left == 0 or self._at <= #self._buffer or not self:more()
  return table.concat(parts)
end

---@return string
function Reader:space() return self:run "%s" end

---Bytes at the end of the buffer that may be the beginning of a marker.
local function unsure(buffer, at, markers)
  local longest = 0
  for _, marker in ipairs(markers) do
    for n = math.min(#marker - 1, #buffer - at + 1), longest + 1, -1 do
      if buffer:sub(-n) == marker:sub(1, n) then
        longest = n
        break
      end
    end
  end
  return longest
end

local function leftmost(buffer, at, markers)
  local first, found
  for _, marker in ipairs(markers) do
    local place = buffer:find(marker, at, true)
    if place and (not first or place < first) then first, found = place, marker end
  end
  return first, found
end

---Read up to one of the markers, and the marker. No marker may stand within another one.
---@param markers string[]
---@param sink fun(text: string)   gets what stands before it, as it comes
---@return string? marker          nil: the text ended without one
function Reader:before(markers, sink)
  while true do
    local first, marker = leftmost(self._buffer, self._at, markers)
    local stop = first or #self._buffer + 1 - (self._ended and 0 or unsure(self._buffer, self._at, markers))
    if stop > self._at then sink(self:_take(stop - self._at)) end
    if marker then return self:_take(#marker) end
    if not self:more() then
      if self._at <= #self._buffer then sink(self:_take(#self._buffer - self._at + 1)) end
      return nil
    end
  end
end

---The text up to one of the markers.
---@param markers string[]
---@return string? text     nil: the text ended without one
---@return string? marker
function Reader:upto(markers)
  local parts = {}
  local marker = self:before(markers, function(text) parts[#parts + 1] = text end)
  if marker then return table.concat(parts), marker end
end

---The same for a name: at most `max` bytes. Where there is none nothing was read.
---@param markers string[]
---@param max integer
---@return string? name
---@return string? marker
function Reader:name(markers, max)
  while true do
    local first, marker = leftmost(self._buffer, self._at, markers)
    if first and first - self._at > max then return nil end
    if first then return self:_take(first - self._at), self:_take(#marker) end
    local sure = #self._buffer - self._at + 1 - unsure(self._buffer, self._at, markers)
    if sure > max or not self:more() then return nil end
  end
end

return reader
