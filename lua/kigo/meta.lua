---@meta kigo.core
-- meta.lua - the classes and functions that engine/bind_*.c makes, for the language server; nothing runs it.
-- The methods that Lua adds stand where they are written: kigo.model, kigo.sequence; tensors and plans
-- have files of their own: kigo.tensor, kigo.graph.

---@class kigo.err
---@field ARGUMENT integer     the caller's mistake
---@field MEMORY integer       out of memory
---@field IO integer           the system refused: missing file, read error
---@field FORMAT integer       a file or text is malformed
---@field UNSUPPORTED integer  well formed, but nothing here can handle it
---@field FULL integer         the context or the page pool is full
---@field DEVICE integer       a device or its driver failed
---@field NUMERIC integer      logits that are not numbers, or nothing left to draw from
---@field CANCELLED integer    a progress function asked to stop

---@alias kigo.Progress fun(what: string, done: integer, total: integer): boolean?

-- ---- files ----

---@class kigo.TensorInfo
---@field name string
---@field type string
---@field shape integer[]  file order: shape[1] is the row length
---@field bytes integer
---@field offset integer

---@class kigo.Gguf
---@field get fun(self, key: string): any                   nil when absent
---@field array fun(self, key: string): table?, string?, integer?
---@field entries fun(self): { key: string, type: string, count: integer, is_array: boolean }[]
---@field tensors fun(self): kigo.TensorInfo[]
---@field tensor fun(self, name: string): kigo.TensorInfo?
---@field values fun(self, name: string, max: integer?): number[]?, string?, integer?
---@field path fun(self): string
---@field version fun(self): integer
---@field files fun(self): integer
---@field bytes fun(self): integer
---@field parameters fun(self): integer
---@field close fun(self)

-- ---- text ----

---@class kigo.Tokenizer
---@field bos integer?
---@field eos integer?
---@field size integer
---@field model string
---@field pre string?
---@field add_bos boolean
---@field encode fun(self, input: string|kigo.Segment[], options: { bos: boolean? }?): integer[]?, string?, integer?
---@field decode fun(self, ids: integer[], options: { control: boolean? }?): string
---@field piece fun(self, id: integer): string
---@field is_end fun(self, id: integer): boolean
---@field is_control fun(self, id: integer): boolean
---@field control fun(self, text: string): integer?
---@field close fun(self)

---@class kigo.Stream
---@field stopped boolean
---@field reason "stop"|"end"|nil
---@field text string             everything shown so far
---@field add fun(self, id: integer): string
---@field finish fun(self): string
---@field copy fun(self): kigo.Stream
---@field close fun(self)

-- ---- models and sequences ----

---@class kigo.Stats
---@field device string
---@field variant string
---@field weight_bytes integer
---@field kv_bytes integer
---@field n_threads integer
---@field n_tokens_evaluated integer
---@field n_steps integer

---@class kigo.Model
---@field vocab_size integer
---@field context integer
---@field device string
---@field sequence fun(self, options: { seed: integer? }?): kigo.Sequence?, string?, integer?
---@field step fun(self, sequences: kigo.Sequence[]): true?, string?, integer?
---@field logits fun(self, ids: integer[]): kigo.Tensor?, string?, integer?
---@field trace fun(self, ids: integer[], names: string[]): table<string, kigo.Tensor>?, string?, integer?
---@field values fun(self): string[]
---@field stats fun(self): kigo.Stats
---@field scramble fun(self, prefix: string, seed: integer): integer?, string?, integer?
---@field set_progress fun(self, progress: kigo.Progress?)
---@field close fun(self)

---@class kigo.Rng
---@field uniform fun(self): number
---@field integer fun(self, n: integer): integer
---@field choose fun(self, weights: number[]): integer

---@class kigo.Mark

---@class kigo.Sequence
---@field model kigo.Model
---@field logits kigo.Tensor   after the last token; steps when tokens are pending, raises on failure
---@field rng kigo.Rng
---@field state table          the script's own; mark, rewind and fork copy it, one level
---@field push fun(self, id: integer): integer?, string?, integer?
---@field step fun(self): true?, string?, integer?
---@field pos fun(self): integer
---@field tokens fun(self): integer[]
---@field seed fun(self): integer
---@field mark fun(self): kigo.Mark
---@field rewind fun(self, to: kigo.Mark|integer): integer
---@field fork fun(self, options: { seed: integer? }?): kigo.Sequence?, string?, integer?
---@field close fun(self)
