-- pooling.lua - the rows that a model computes of a text, made into one vector.
local pooling = { kinds = {} }

---Each takes rows [n, width] and gives a tensor [width] of its own, or nil, message, code.
---@type table<string, fun(rows: kigo.Tensor): kigo.Tensor?, string?, integer?>
local kinds = pooling.kinds

function kinds.mean(rows)
  local sums <close>, message, code = rows:clone()
  if not sums then return nil, message, code end
  local n = #rows
  while n > 1 do -- the last half onto the first: few operations, and small errors
    local half = n // 2
    sums:rows(0, half):add_(sums:rows(n - half, half))
    n = n - half
  end
  local mean
  mean, message, code = sums:row(0):clone()
  if not mean then return nil, message, code end
  return mean:mul_(1 / #rows)
end

function kinds.last(rows) return rows:row(#rows - 1):clone() end
function kinds.cls(rows) return rows:row(0):clone() end

---The way of this name; another name raises.
---@param name string
---@param level integer   stack level to blame, as in `error`
function pooling.named(name, level)
  return kinds[name] or error(("pooling: %q is none of mean, last, cls"):format(name), level + 1)
end

---Bring a vector to length 1, in place; one of length 0 stays.
---@param vector kigo.Tensor
---@return kigo.Tensor? vector
---@return string? message
---@return integer? code
function pooling.to_length_one(vector)
  local squares, message, code = vector:clone()
  if not squares then return nil, message, code end
  local length = squares:mul_(vector):sum() ^ 0.5
  squares:close()
  return length > 0 and vector:mul_(1 / length) or vector
end

return pooling
