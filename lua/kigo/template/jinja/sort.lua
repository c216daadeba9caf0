-- Sorting as Python does: stable, with keys made once.
local value = require "kigo.template.jinja.value"

local sort = {}

-- Merge the sorted halves of keys/items between first and last.
local function merge(keys, items, first, middle, last, less, spare)
  local a, b, n = first, middle + 1, 0
  while a <= middle and b <= last do
    n = n + 1
    if less(keys[b], keys[a]) then
      spare.keys[n], spare.items[n], b = keys[b], items[b], b + 1
    else
      spare.keys[n], spare.items[n], a = keys[a], items[a], a + 1
    end
  end
  table.move(keys, a, middle, first + n, keys)
  table.move(items, a, middle, first + n, items)
  table.move(spare.keys, 1, n, first, keys)
  table.move(spare.items, 1, n, first, items)
end

local function merge_sort(keys, items, first, last, less, spare)
  if first >= last then return end
  local middle = (first + last) // 2
  merge_sort(keys, items, first, middle, less, spare)
  merge_sort(keys, items, middle + 1, last, less, spare)
  merge(keys, items, first, middle, last, less, spare)
end

---The items in the order of their keys, as a new array.
---@param run kigo.jinja.Run.State
---@param items any[]
---@param n integer
---@param key fun(item: any): any
---@param descending? boolean
---@return any[]
function sort.sorted(run, items, n, key, descending)
  run:spend(4 * n)
  local keys, copy = {}, table.move(items, 1, n, 1, {})
  for i = 1, n do keys[i] = key(copy[i]) end
  local function less(a, b)
    if descending then a, b = b, a end
    return value.less(a, b, "<", run)
  end
  merge_sort(keys, copy, 1, n, less, { keys = {}, items = {} })
  return copy
end

return sort
