-- tensor.lua - the class of tensors, whose methods are C (engine/bind_tensor.c), described for the language server.
-- Methods in Lua that are added to it serve every tensor.
local core = require "kigo.core"

---Float32 numbers where they were computed: logits, traced values. Ids, rows and columns are 0-based; the lists that
---methods return are Lua lists. Methods with a trailing underscore work in place and return the tensor itself.
---Never loop over a vocabulary in Lua: a whole-tensor method takes a hundredth of the time.
---
---NaN ranks below everything, ties go to the lower id; elsewhere NaN spreads as in arithmetic.
---@class kigo.Tensor
---@operator len: integer
---@field [integer] number|kigo.Tensor  one number of a row, or a row (a view) of more dimensions
---@field shape fun(self: kigo.Tensor): integer, ...integer   sizes, outermost first
---@field argmax fun(self: kigo.Tensor): integer, number      id and value of the best, of one row
---@field topk fun(self: kigo.Tensor, k: integer): integer[], number[]  ids and values of the k best, best first
---@field softmax fun(self: kigo.Tensor): kigo.Tensor         probabilities, each row (last dimension) for itself
---@field log_softmax fun(self: kigo.Tensor): kigo.Tensor     their logarithms
---@field entropy fun(self: kigo.Tensor): number              in nats, of one row of probabilities
---@field sum fun(self: kigo.Tensor): number                  over all elements, as are min and max
---@field min fun(self: kigo.Tensor): number
---@field max fun(self: kigo.Tensor): number
---@field mul_ fun(self: kigo.Tensor, factor: number|kigo.Tensor): kigo.Tensor  same shape, or one row for all rows
---@field add_ fun(self: kigo.Tensor, addend: number|kigo.Tensor, factor?: number): kigo.Tensor  adds factor * addend
---@field fill_ fun(self: kigo.Tensor, value: number, ids?: integer[]): kigo.Tensor  all of it, or these ids of a row
---@field clone fun(self: kigo.Tensor): kigo.Tensor
---@field row fun(self: kigo.Tensor, i: integer): kigo.Tensor a view: it changes with the tensor
---@field totable fun(self: kigo.Tensor): table               nested lists; an error above 65,536 numbers
---@field bytes fun(self: kigo.Tensor): string                raw float32, row by row
---@field close fun(self: kigo.Tensor)                        early; the collector does it otherwise
local Tensor = core.classes.Tensor

return Tensor
