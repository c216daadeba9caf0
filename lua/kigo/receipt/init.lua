-- Receipts: what a model wrote, so that anybody can compute it again, on another backend too, and see that each token
-- is what the model and the sampler made of those before it. A receipt is a JSON text with the model's SHA-256, the
-- prompt's ids, the seed, the sampler's stages, the ids that were drawn, and for each of them the 8 best ids with their
-- logits, float32 numbers written exactly.
--
--   local answer = assert(model:chat(messages, { receipt = true }))
--   assert(receipt.write("answer.receipt.json", answer.receipt))
--   local report = assert(receipt.verify(model, assert(receipt.read "answer.receipt.json")))
--
-- `digest` is the SHA-256 of the rest. It shows that a receipt was edited or damaged, even below every tolerance; it
-- keeps nobody from writing another one. What makes a receipt true is the recomputation.
local record = require "kigo.receipt.record"
local text = require "kigo.receipt.text"
local verify = require "kigo.receipt.verify"

---@class kigo.receipt
return {
  FORMAT = text.FORMAT,
  recorder = record.new,
  model_files = record.model_files,
  digest = text.digest,
  encode = text.encode,
  decode = text.decode,
  write = text.write,
  read = text.read,
  verify = verify.verify,
}
