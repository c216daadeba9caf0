---@meta kigo.core
-- meta.lua - what engine/bind_*.c offers to Lua, described for the language server; nothing of it is run. Methods that
-- are Lua are described where they stand: lua/kigo/model.lua, sequence.lua, init.lua. spec/meta_spec.lua compares this
-- file with the engine name by name.
--
-- Handles (Gguf, Tokenizer, Stream, Plan, Model, Sequence, Tensor, Chain, Sandbox, Grammar, Matcher) have close(), are
-- to-be-closed variables and raise when they are used after it. Fallible functions return nil, message, code; the
-- caller's mistakes raise.
-- luacheck: ignore 212 241

---@class kigo.core
---@field version string
---@field err kigo.err
---@field classes table<string, table>   the method tables; Lua files add to Model and Sequence
---@field unicode kigo.Unicode
local core = {}

---What Unicode says about one character; all of them take and give code points.
---@class kigo.Unicode
local Unicode = {}

---@param character integer
---@return string   "Lu", "Nd", ...
function Unicode.category(character) end

---The one character that is its upper case; itself where there is none.
---@param character integer
---@return integer
function Unicode.upper(character) end

---@param character integer
---@return integer
function Unicode.lower(character) end

---@param character integer
---@return integer
function Unicode.title(character) end

---Full case folding: one or more characters.
---@param character integer
---@return integer ...
function Unicode.fold(character) end

---The characters of a general category ("Lu") or of all that begin with a letter ("L").
---@param category string
---@return integer[]? ranges   lo, hi, lo, hi ...; nil: there is no such category
function Unicode.ranges(category) end

---@class kigo.err
---@field ARGUMENT integer     a mistake of the caller's that could not raise
---@field MEMORY integer       out of memory
---@field IO integer           the system refused: a missing file, a read error
---@field FORMAT integer       a file or text is malformed
---@field UNSUPPORTED integer  well formed, but nothing here can handle it
---@field FULL integer         the context or the pool is full
---@field DEVICE integer       a device or its driver failed
---@field NUMERIC integer      logits that are not numbers, or nothing left to draw from
---@field CANCELLED integer    the progress function asked to stop
---@field SCRIPT integer       a script in a sandbox failed, or its process died
---@field LIMIT integer        a script in a sandbox spent its instructions or its time

-- ---- model files ----

---An open model file: metadata and the tensor table; no weights are read.
---@class kigo.Gguf
local Gguf = {}

---Open a file, or the first one of a split model; everything in it is checked before anything points into it.
---@param path string
---@return kigo.Gguf?
---@return string? message
---@return integer? code
function core.open_gguf(path) end

---The same for bytes in memory.
---@param bytes string
---@param name string   what messages call it
---@return kigo.Gguf?
---@return string? message
---@return integer? code
function core.parse_gguf(bytes, name) end

---@param key string
---@return string|number|boolean|any[]|nil value   nil when the file has no such key
function Gguf:get(key) end

---@param key string
---@return any[]?
---@return string? message   the key is missing, or no array
---@return integer? code
function Gguf:array(key) end

---@param key string
---@return integer? n   elements of an array; nil where the file has no such array
function Gguf:count(key) end

---@class kigo.GgufEntry
---@field key string
---@field type string        "u32", "string" ...; of an array, its elements'
---@field count integer
---@field is_array boolean

---@return kigo.GgufEntry[] entries   in file order
function Gguf:entries() end

---@class kigo.TensorInfo
---@field name string
---@field type string
---@field shape integer[]   shape[1] is the length of a row
---@field bytes integer
---@field offset integer    in the data section
---@field file integer      of a split model

---@return kigo.TensorInfo[] tensors   in file order
function Gguf:tensors() end

---@param name string
---@return kigo.TensorInfo?
function Gguf:tensor(name) end

---A tensor's numbers, dequantized.
---@param name string
---@param max? integer   more than this many raise; default 65,536
---@return number[]?
---@return string? message
---@return integer? code
function Gguf:values(name, max) end

---The tensor will not be read soon, its memory may go; reading it again is allowed.
---@param name string
function Gguf:release(name) end

---@return string
function Gguf:path() end
---@return integer
function Gguf:version() end
---@return integer n   files of the model
function Gguf:files() end
---@return integer n   bytes of all files
function Gguf:bytes() end
---@return integer n   numbers in all tensors
function Gguf:parameters() end

---@return true?
---@return string? message   a file was changed since it was opened
---@return integer? code
function Gguf:check_unchanged() end

---Write the file again with its tensors in other types (kigo.quantize chooses them).
---@param types string[]   names, in the order of the file's tensors
---@param path string      appears whole, or not at all
---@param options? { file_type: integer?, threads: integer?, progress: kigo.Progress? }
---@return string? path
---@return string? message  names the tensor
---@return integer? code
function Gguf:quantize(types, path, options) end

function Gguf:close() end

---@param type string        a tensor type in any case: "q8_0"
---@param blocks string
---@return string float32    raw numbers
function core.dequantize(type, blocks) end

---@param type string
---@param float32 string     raw numbers, whole blocks of them
---@return string? blocks
---@return string? message   a type that cannot be written
---@return integer? code
function core.quantize(type, float32) end

---@return table<string, { block_size: integer, block_bytes: integer, computable: boolean }>
function core.types() end

---@class kigo.MakeModelOptions
---@field like? string       a shape: "qwen2.5-0.5b" (default), "qwen2.5-1.5b", "qwen2.5-7b" or "tiny"
---@field type? string       of the matrices; default "q8_0"
---@field seed? integer      the same seed gives the same file; default 1
---@field progress? kigo.Progress

---Write a model of a known shape with random weights.
---@param path string
---@param options? kigo.MakeModelOptions
---@return string? path
---@return string? message
---@return integer? code
function core.make_model(path, options) end

---Write a small file of float32 tensors; it appears whole or not at all.
---@param path string
---@param entries { [1]: string, [2]: string|number|boolean }[]   metadata; integers become u32, other numbers f32
---@param tensors { [1]: string, [2]: kigo.Tensor }[]
---@return string? path
---@return string? message
---@return integer? code
function core.write_gguf(path, entries, tensors) end

-- ---- text ----

---A vocabulary: text to ids and back. Ids are 0-based as in the file; those of special tokens are nil where there are
---none.
---@class kigo.Tokenizer
---@field size integer
---@field model string        kind: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE), "gemma4" (the same with a list
---of merges), "bert" (WordPiece), "t5" (unigram), "rwkv", or "none" ("no_vocab"): a model without a vocabulary, whose
---ids have no text
---@field pre string?         pre-tokenizer
---@field bos integer?        begins a text
---@field eos integer?        ends a text
---@field eot integer?        ends a turn; is_end knows all tokens that end an answer
---@field eom integer?        ends a message that calls a tool
---@field unk integer?        stands for text that the vocabulary cannot write
---@field sep integer?        between two texts, and behind the last
---@field pad integer?
---@field cls integer?        begins a text for a classifier
---@field mask integer?
---@field fim_prefix integer? parts of fill-in-the-middle prompts
---@field fim_suffix integer?
---@field fim_middle integer?
---@field fim_pad integer?
---@field fim_repo integer?
---@field fim_file integer?
---@field add_bos boolean     the file asks for BOS before a text
---@field add_eos boolean     for EOS behind it
---@field add_sep boolean     for SEP behind it
local Tokenizer = {}

---@class kigo.TokenizerOptions
---@field pre? string         a pre-tokenizer's name, instead of the file's tokenizer.ggml.pre
---@field normalize? boolean  form C where the model's own tokenizer asks for it (Qwen, OLMo, MPT, Command-R); default
---false: every text comes back from its ids as it was

---@param gguf kigo.Gguf   may be closed afterwards
---@param options? kigo.TokenizerOptions
---@return kigo.Tokenizer?
---@return string? message
---@return integer? code
function core.tokenizer(gguf, options) end

---The names that tokenizer.ggml.pre may have.
---@return string[]
function core.pretokenizers() end

---Cut a text into the words that byte-level BPE merges one by one.
---@param pre string        a pre-tokenizer's name
---@param text string
---@param options? { by_regex: boolean?, count: boolean? }   by_regex: PCRE2 also where there is a way by hand; count:
---only count the words; both default to false
---@return integer[]|integer? ends  after how many bytes each word ends; or their number
---@return string? message
---@return integer? code
function core.split(pre, text, options) end

---@class kigo.EncodeOptions
---@field bos? boolean       begin as the file asks for: with exactly one BOS, also where segments spell it themselves
---@field eos? boolean       end as the file asks for: with EOS or SEP, unless it stands there
---@field special? boolean   text that spells a control token becomes it: never for text from outside
---@field continues? boolean the text goes on where other text stands: no space is put before it

---Strings and text segments are plain text, whatever they spell; only control segments become control tokens. Where
---a special token swallows the white space before or behind it, text loses it.
---@param text string|kigo.Segment[]
---@param options? kigo.EncodeOptions   all default to false
---@return integer[]? ids
---@return string? message
---@return integer? code
function Tokenizer:encode(text, options) end

---Trusted text as segments: control tokens that it spells, and the text between them.
---@param text string
---@return kigo.Segment[]
function Tokenizer:segments(text) end

---@param ids integer[]
---@param options? { control: boolean? }   control: spell control tokens out; default false
---@return string? bytes   may end within a UTF-8 character; kigo.stream never shows half of one
---@return string? message
---@return integer? code
function Tokenizer:decode(ids, options) end

---@param id integer
---@return string bytes   of one token, control tokens spelled out
function Tokenizer:piece(id) end

---@param id integer
---@return boolean   does it end an answer?
function Tokenizer:is_end(id) end

---@param id integer
---@return boolean
function Tokenizer:is_control(id) end

---@param text string
---@return integer?   id of the control token that is spelled so
function Tokenizer:control(text) end

---@param text string
---@return integer?   id of the token of ordinary text that writes just this
function Tokenizer:token(text) end

---@param text string
---@return integer[]? ids   of the tokens of ordinary text that begin with this text, ascending; of "": all of them
---@return string? message
---@return integer? code
function Tokenizer:with_prefix(text) end

function Tokenizer:close() end

---Ids to text that may be shown: it holds back half UTF-8 characters and what may become a stop string, however both
---are cut into tokens. Bytes that can become no character are shown as U+FFFD: at once where no later byte can help
---them, else at the end. kigo.stream makes one.
---@class kigo.Stream
---@field stopped boolean                   a stop string or an end token came: what is added then is ignored
---@field reason "stop"|"end"|"length"|nil  which of them; "length" after finish() without either; nil: still open
---@field text string                       all that was shown
---@field n_ids integer                     that were added
---@field following boolean                 a sequence feeds it (seq:attach)
local Stream = {}

---@class kigo.StreamOptions
---@field stop? string|string[]  texts that end it; they are not shown. Of several that end together the longest counts
---@field after? integer         the token before the first one, where a text goes on
---@field control? boolean       spell control tokens out; default false: leave them out

---@param tokenizer kigo.Tokenizer
---@param options? kigo.StreamOptions
---@return kigo.Stream?
---@return string? message
---@return integer? code
function core.stream(tokenizer, options) end

---@param id integer
---@return string? text   to show now, maybe ""
---@return string? message
---@return integer? code
function Stream:add(id) end

---The end: no more ids are taken.
---@return string? text   what was held back
---@return string? message
---@return integer? code
function Stream:finish() end

---What may be shown and was not returned yet: for streams that follow a sequence.
---@return string text
function Stream:read() end

---Back to when n ids had been added, as if nothing had come after; one that follows goes with its sequence.
---@param n integer
---@return kigo.Stream self
function Stream:rewind(n) end

---@return kigo.Stream?   in the same state; it follows nothing
---@return string? message
---@return integer? code
function Stream:copy() end

function Stream:close() end

-- ---- tensors ----

---Float32 numbers where they were computed: logits, traced values. Ids, rows and columns are 0-based; the lists that
---methods return are Lua lists. Methods with a trailing underscore work in place and return the tensor itself.
---Never loop over a vocabulary in Lua: a whole-tensor method takes a hundredth of the time.
---
---NaN ranks below everything, ties go to the lower id; elsewhere NaN spreads as in arithmetic.
---On a device numbers stay there, and methods run there. What was asked about the logits of a sequence is asked of
---its next ones behind their pass, before anybody asks again; a softmax, and logits times a number, are computed
---when somebody looks at more than is known of them anyway. In a body of a scheduler a question to a device is a place
---where others go on, as a pass is. Nothing but the speed depends on any of it.
---@class kigo.Tensor
---@operator len: integer
---@field [integer] number|kigo.Tensor  one number of a row, or a row (a view) of more dimensions
local Tensor = {}

---For schedulers: f(kind, ...) is called before a device is asked something that takes time, and may yield
---(engine/bind.h).
---@param f fun(kind: integer, ...): integer|boolean|nil
function core.set_company(f) end

---Find the answers to questions about tensors of a device together; after that they are known.
---@param questions table[]   { kind, tensor, k }
function core.look(questions) end

---Have chains draw or apply together where a device can. The fifth field of what is done is set, to the id or true.
---@param uses table[]   { kind, chain, logits, seq }
function core.use_chains(uses) end

---@param numbers number[]|table[]   one row, or nested lists
---@return kigo.Tensor?
---@return string? message
---@return integer? code
function core.tensor(numbers) end

---@param n integer
---@param ... integer   more dimensions
---@return kigo.Tensor?
---@return string? message
---@return integer? code
function core.zeros(n, ...) end

---@return integer ...   sizes, outermost first
function Tensor:shape() end
---@return integer|integer[] id    of several rows: a list of ids, and one of values
---@return number|number[] value
function Tensor:argmax() end
---@param k integer
---@return integer[] ids      of the k best, best first
---@return number[] values
function Tensor:topk(k) end
---Each row (last dimension) for itself.
---@return kigo.Tensor probabilities
function Tensor:softmax() end
---@return kigo.Tensor logarithms   of the probabilities
function Tensor:log_softmax() end
---@return number nats   of one row of probabilities
function Tensor:entropy() end
---Over all elements, as are min and max.
---@return number
function Tensor:sum() end
---@return number
function Tensor:min() end
---@return number
function Tensor:max() end
---@param factor number|kigo.Tensor   of the same shape, or one row for all rows; as it is before, if it is part of this
---@return kigo.Tensor self
function Tensor:mul_(factor) end
---@param addend number|kigo.Tensor
---@param factor? number              adds factor * addend; default 1
---@return kigo.Tensor self
function Tensor:add_(addend, factor) end
---@param value number
---@param ids? integer[]   these of a row instead of everything
---@return kigo.Tensor self
function Tensor:fill_(value, ids) end
---@return kigo.Tensor
function Tensor:clone() end
---@param i integer
---@return kigo.Tensor row   a view: it changes with the tensor
function Tensor:row(i) end
---@param first integer
---@param count integer
---@return kigo.Tensor rows   a view
function Tensor:rows(first, count) end
---@return table numbers   nested lists; more than 65,536 numbers raise
function Tensor:totable() end
---@return string float32  raw numbers, row by row
function Tensor:bytes() end
---@param model? kigo.Model   default: none, the host
---@return kigo.Tensor?   a copy on the model's device, where its values can be combined with it
---@return string? message
---@return integer? code
function Tensor:to(model) end
---Early; the collector does it otherwise.
function Tensor:close() end

-- ---- sampling ----

---A sampler made of stages: `pick(logits, sequence)` returns an id, or nil, message, code when the logits are not
---numbers or nothing is left to draw from. The draw depends on the logits, the timeline, its seed and position only.
---@class kigo.Chain
---@overload fun(logits: kigo.Tensor, seq: kigo.Sequence): integer?, string?, integer?
local Chain = {}

---@param stages kigo.Stage[]
---@return kigo.Chain?
---@return string? message
---@return integer? code
function core.chain(stages) end

---What the stages leave, best first. Nothing is drawn: a stage like XTC sees the random number that a draw would get.
---@param logits kigo.Tensor
---@param seq? kigo.Sequence   nil: there is no history
---@return integer[]? ids
---@return number[]|string probabilities   or the message
---@return integer? code
function Chain:candidates(logits, seq) end

---A deep copy of plain data: booleans, numbers, strings and tables of them. Anything else raises.
---@generic T
---@param value T
---@param name string   what messages call it
---@return T
function core.copy_plain(value, name) end

---What the stages make of the logits, in place: Tensor:apply_ (lua/kigo/sample.lua).
---@param chain kigo.Chain
---@param logits kigo.Tensor
---@param seq? kigo.Sequence
---@return kigo.Tensor? logits
---@return string? message
---@return integer? code
function core.apply(chain, logits, seq) end

---The same as the kernels of a device do it, computed here: for specs. Code UNSUPPORTED where a device would leave it
---to the chain.
---@param chain kigo.Chain
---@param logits kigo.Tensor
---@param seq? kigo.Sequence
---@return kigo.Tensor? logits
---@return string? message
---@return integer? code
function core.apply_as_device(chain, logits, seq) end

---What the chain draws as the kernels of a device do it, computed here: for specs. Code UNSUPPORTED where a device
---would leave the draw to the chain.
---@param chain kigo.Chain
---@param logits kigo.Tensor
---@param seq? kigo.Sequence
---@return integer? id
---@return string? message
---@return integer? code
function core.pick_as_device(chain, logits, seq) end

---What the chain is made of, with every field; numbers as the chain holds them (float32).
---@return kigo.Stage[]
function Chain:stages() end

---Another chain of the same stages. What stages remember, like mirostat, is kept by the sequence and serves both.
---@return kigo.Chain?
---@return string? message
---@return integer? code
function Chain:clone() end

function Chain:close() end

---Random numbers of a sequence: a function of its seed, its position and how often was drawn there.
---@class kigo.Rng
local Rng = {}

---@return number   in [0, 1)
function Rng:uniform() end
---@param n integer
---@return integer   in 1 to n
function Rng:integer(n) end
---@param weights number[]   need not add up to 1
---@return integer index     1-based, drawn in proportion to them
function Rng:choose(weights) end
---The same as choose with the exponential of each, less the highest: topk's values as they are.
---@param logits number[]    below infinity; -math.huge is never chosen
---@return integer index     1-based, drawn by their softmax
function Rng:choose_logits(logits) end

-- ---- models and sequences ----

---Called during long work; true cancels it.
---@alias kigo.Progress fun(what: string, done: integer, total: integer): boolean?

---The forward pass as a list of operations (engine/plan.h). kigo.graph fills it, scripts look at it. Values and weights
---are ids here; kigo.Graph makes objects of them.
---@class kigo.Plan
local Plan = {}

---@param gguf kigo.Gguf
---@return kigo.Plan?
---@return string? message
---@return integer? code
function core.plan(gguf) end

-- Building; each operation's method returns the id of its value, or nil, message, code. kigo.Graph describes the
-- parameters.

---@param tensor_name string
---@param cols? integer     nil: any
---@param rows? integer
---@param planes? integer
---@return integer? weight
---@return string? message
---@return integer? code
function Plan:weight(tensor_name, cols, rows, planes) end
---A weight whose planes are matrices of their own in the file. It is called after the first.
---@param tensor_names string[]
---@return integer? weight
---@return string? message
---@return integer? code
function Plan:weight_stack(tensor_names) end
---@param tensor_name string
---@return boolean
function Plan:has_weight(tensor_name) end
---@param name string
---@param rows integer         weight
---@param positions? integer   weight of learned positions
---@param types? integer       weight whose first row is added to all
---@return integer? value
function Plan:embed(name, rows, positions, types) end
---@param name string
---@param x integer
---@param scale integer
---@param bias integer?
---@param parameters kigo.NormParameters
---@return integer? value
function Plan:norm(name, x, scale, bias, parameters) end
---@param name string
---@param x integer
---@param weight integer
---@param bias? integer
---@return integer? value
function Plan:linear(name, x, weight, bias) end
---Each of as many equal parts of x as the weight has planes times its plane.
---@param name string
---@param x integer
---@param weight integer
---@return integer? value
function Plan:linear_each(name, x, weight) end
---@param name string
---@param x integer
---@param parameters table   kigo.RopeParameters and heads
---@return integer? value
function Plan:rope(name, x, parameters) end
---@param name string
---@param q integer
---@param k integer
---@param v integer?   none: the first value_dim channels of the keys
---@param sinks integer?
---@param parameters kigo.AttentionParameters
---@return integer? value
function Plan:attention(name, q, k, v, sinks, parameters) end
---@param name string
---@param gate integer
---@param up integer
---@param act kigo.Act
---@return integer? value
function Plan:glu(name, gate, up, act) end
---@param name string
---@param x integer
---@param act kigo.Act
---@return integer? value
function Plan:act(name, x, act) end
---@param name string
---@param x integer
---@param router integer
---@param weights table<string, integer>   gate, up, down; gate_bias, up_bias, down_bias, choice_bias where there are
---@param parameters kigo.MoeParameters
---@return integer? value
function Plan:moe(name, x, router, weights, parameters) end
---@param name string
---@param a integer
---@param b integer
---@return integer? value
function Plan:add(name, a, b) end
---@param name string
---@param x integer
---@param factor number
---@return integer? value
function Plan:scale(name, x, factor) end
---@param name string
---@param x integer
---@param cap number
---@return integer? value
function Plan:softcap(name, x, cap) end
---@param name string
---@param x integer
---@param first integer   column of each group
---@param width integer
---@param groups? integer   equal parts of x; default 1
---@return integer? value
function Plan:slice(name, x, first, width, groups) end
---Each of some equal parts of a, then the same part of b, or all of b.
---@param name string
---@param a integer
---@param b integer
---@param groups? integer   default 1
---@param shared? boolean
---@return integer? value
function Plan:concat(name, a, b, groups, shared) end
---@param name string
---@param x integer
---@param weight integer
---@param bias? integer
---@param gated? boolean   x is b, c and x side by side: b * x is convolved, the result multiplied by c
---@return integer? value
function Plan:conv(name, x, weight, bias, gated) end
---@param value integer
---@param name string
---@return integer? value
function Plan:rename(value, name) end
---@param logits integer
---@param context_length integer
---@param has_head? boolean   false: the value is no logits but what the model makes of its tokens; default true
---@return true?
---@return string? message
---@return integer? code
function Plan:finish(logits, context_length, has_head) end

-- Reading.

---@return table[] ops   kind, out, width, inputs, weights and parameters of every operation
function Plan:ops() end
---@return string[] names   in order of computation
function Plan:value_names() end
---@param id integer
---@return { name: string, width: integer, producer: integer, last_use: integer }   the last two: 0-based operations
function Plan:value(id) end
---@return { name: string, type: string, cols: integer, rows: integer, planes: integer, bytes: integer }[]
function Plan:weights() end
---@return { vocab_size: integer, tokens: integer, has_head: boolean, context_length: integer, layers: integer,
---tail: integer, logits: string? }   vocab_size: width of the logits; tokens: ids go from 0 to below it
function Plan:info() end

function Plan:close() end

---A model compiled for a device. Fields that a script sets are its own.
---@class kigo.Model
---@field vocab_size integer   ids go from 0 to below it
---@field has_head boolean     false: it makes embeddings, its logits are those
---@field context integer     positions that a sequence may hold
---@field device string
local Model = {}

---kigo.load does all of it. The plan's handle is closed on success, its file stays open.
---@param plan kigo.Plan
---@param options? kigo.load.Options   without `tokenizer`
---@return kigo.Model?
---@return string? message
---@return integer? code
function core.model(plan, options) end

---@class kigo.StepItem
---@field seq kigo.Sequence
---@field most? integer         most tokens to evaluate; default: all that are pending
---@field rows? kigo.Tensor     on the model's device: takes the logits behind every position that is evaluated
---@field from? integer         and not before this one, whose are row 0; default 0

---@class kigo.DrawItem
---@field seq kigo.Sequence
---@field chain kigo.Chain
---@field ahead? integer        the least of all items counts

---One turn of a scheduler: evaluate some, draw for others, in shared forward passes. On failure nothing was drawn, and
---what was evaluated stays so.
---@param steps kigo.StepItem[]
---@param draws kigo.DrawItem[]
---@return integer[]? ids       of the draws
---@return string? message
---@return integer? code
function Model:advance(steps, draws) end

---@return string[] names   of all values, in order of computation
function Model:values() end

---The logits that follow from the value that model:residual() names first: what the blocks add to. The last norm and
---the head, bit for bit as a pass applies them: of the last block's value they are the model's own logits; of an
---earlier one what the model would say there (a logit lens). Allowed within hooks.
---@param x kigo.Tensor   [width] or [rows, width], on the model's device
---@return kigo.Tensor? logits   [vocab_size] or [rows, vocab_size]
---@return string? message       code UNSUPPORTED where the model has no such value
---@return integer? code
function Model:unembed(x) end

---A zeroed tensor on the model's device.
---@param n integer
---@param ... integer   more dimensions
---@return kigo.Tensor?
---@return string? message
---@return integer? code
function Model:zeros(n, ...) end

---A value of all tokens that these sequences wait for, evaluated in shared forward passes.
---@param sequences kigo.Sequence[]
---@param name string
---@return kigo.Tensor? rows   [tokens, width], sequence after sequence
---@return string? message
---@return integer? code
function Model:trace_rows(sequences, name) end

---@return string? residual   name of the value that unembed takes; nil where the model has none
---@return string? hidden     and of the same behind the last norm, which the head reads: embeddings are made of it
function Model:residual() end

---Numbers of the model's file, dequantized. Of a matrix, rows; a row of "token_embd.weight" is a token.
---@param name string      a tensor's, see model.gguf:tensors()
---@param first? integer   row, 0-based and counted over all planes; default 0
---@param count? integer   rows; default: all from there on
---@return kigo.Tensor?    on the model's device: with the shape of the file, outermost size first; or [count, width]
---@return string? message
---@return integer? code
function Model:tensor(name, first, count) end

---Layers that see equally far share cache pages, and let go of those that none of their rows will see any more.
---@class kigo.PageGroup
---@field window integer        positions that a row sees; 0: all before it
---@field n_pages integer       as allocated now
---@field n_pages_used integer  that sequences hold
---@field n_pages_kept integer  that only the prefix cache holds
---@field page_bytes integer    of one page
---@field attention_flops integer   multiplications and additions of a token's attention to one position, in its layers

---@class kigo.ModelStats
---@field device string
---@field note string                  why "auto" is no GPU; empty where it is one, where another device was asked for,
---and where kigo was built without CUDA and the machine has no such device
---@field variant string               instruction set, or name of the GPU
---@field kv string                    type of the key/value cache: "f32" or "f16"
---@field weight_bytes integer         of packed weights
---@field kv_bytes integer             of the pages, as allocated now; snapshots are beside them: n_states * state_bytes
---@field n_threads integer
---@field n_tokens_evaluated integer   since loading
---@field n_steps integer              forward passes
---@field n_tokens_reused integer      not counted above: their rows were found in the prefix cache
---@field n_tokens_dropped integer     drawn and evaluated ahead of the caller, who went another way; not counted above
---@field n_steps_dropped integer      passes of nothing but such tokens
---@field n_timed integer              passes timed by the device, dropped ones too (Model:set_timing)
---@field timed_s number               what those took there
---@field expert_bytes integer?        of the file, in experts out of several that products read, each once in a pass;
---nil on devices that do not count them (Model:profile does there)
---@field n_sequences integer
---@field n_pages integer              of the key/value cache, as allocated now; of the first group, as the next two
---@field n_pages_used integer         that sequences hold
---@field n_pages_kept integer         that only the prefix cache holds: as good as free
---@field n_pages_max integer          that there may ever be of a group: load's `pool`
---@field page_groups kigo.PageGroup[] the layers that see everything come first, where there are any
---@field page integer                 positions in a page
---@field state_bytes integer          of a snapshot of what recurrent operations remember; 0: the model has none
---@field state_every integer          positions between those that the prefix cache holds; 0: it holds none
---@field n_states integer             snapshots that there is memory for
---@field n_states_used integer        that sequences, marks and the prefix cache hold
---@field n_states_kept integer        that the prefix cache holds, among others or alone
---@field chunk integer                most rows of a forward pass

---@return kigo.ModelStats
function Model:stats() end

---Permute the bytes of all weights whose names begin so: a model that knows nothing any more, for tests.
---@param prefix string
---@param seed? integer
---@return integer? n   weights
---@return string? message
---@return integer? code
function Model:scramble(prefix, seed) end

---Turn bits of one byte of a weight as the device holds it, for tests.
---@param name string   of the tensor
---@param at integer    byte of the packed weight
---@param mask integer
---@return true?
---@return string? message
---@return integer? code
function Model:flip_weight(name, at, mask) end

---What the driver says about the device. Only a GPU can be asked: kigo.err.UNSUPPORTED elsewhere, here and below.
---@class kigo.DeviceInfo
---@field index integer
---@field total integer            bytes
---@field in_use integer           of all programs together, as the runtime counts them
---@field managed_in_use integer?  the same, as NVML counts them
---@field process_in_use integer?  of this process, by NVML; most containers hide it
---@field note string              why NVML does not tell; else empty
---@field most_bytes_per_s number  no data can reach the registers faster, wherever it comes from

---@return kigo.DeviceInfo?
---@return string? message
---@return integer? code
function Model:device_info() end

---Measure what the device reaches with nothing else to do; takes part of a second and up to 2 GB of its memory.
---@return { copy_bytes_per_s: number, tensor_flops: number, tensor_note: string }?   copies: bytes read and written;
---products of tensor cores whose operands stay in registers, with the instruction that was used
---@return string? message
---@return integer? code
function Model:device_rates() end

---Have the device itself time every forward pass from now on (stats: n_timed, timed_s), or no more.
---@param on boolean
---@return true?
---@return string? message
---@return integer? code
function Model:set_timing(on) end

---@class kigo.WeightsCheck
---@field n_weights integer
---@field n_bytes integer       that were compared
---@field device_sum string     checksum of what came back from the device
---@field file_sum string       of the same bytes of the file
---@field differs string?       the first tensor that is not the file's

---Bring every weight back from the device, undo its packing and compare it with the file, byte by byte, up to the first
---that differs.
---@return kigo.WeightsCheck?
---@return string? message
---@return integer? code
function Model:check_weights() end

---What a step of these sequences would take, stage by stage; their tokens stay pending. It must fit one forward pass.
---@param sequences kigo.Sequence[]
---@return { name: string, count: integer, bytes: number, expert_bytes: number, seconds: number }[]? stages  of one name
---together; expert_bytes: of the file, in the experts out of several that they read
---@return string? message
---@return integer? code
function Model:profile(sequences) end

---@param progress kigo.Progress?   called between the passes of long steps
function Model:set_progress(progress) end

---No new work; open sequences go on, and the model is released with the last of them.
function Model:close() end

---A low-rank adapter (LoRA) for this model, in the GGUF format that llama.cpp's convert_lora_to_gguf.py writes:
---NAME.lora_a and NAME.lora_b for any matrix that the model multiplies with, and for its token embeddings. All of it is
---checked and held in memory, 4 bytes a number; the model's weights stay as they are. A GPU gets a copy with the first
---pass that needs it (MEMORY: there is no room, and the pass did not take place), and loses it when the last handle and
---the last sequence that has it are closed.
---FORMAT: it does not fit the model or has numbers that are none; UNSUPPORTED: it is of another architecture or
---kind, or it adapts experts.
---@param file string|kigo.Gguf   its path, or the open file
---@return kigo.Adapter?   a to-be-closed handle; sequences that have it keep it
---@return string? message    names file and tensor
---@return integer? code
function Model:adapter(file) end

---What is added to a model for the sequences that want it (Sequence:adapt).
---@class kigo.Adapter
---@field path string
---@field name string         the path without folders
---@field sha256 string       of the file: what it is, under any name
---@field alpha number        of the file: what it adds is multiplied by scale * alpha / rank
---@field rank integer        the largest of its matrices
---@field n_matrices integer  that it adapts
---@field n_bytes integer     in memory
local Adapter = {}

function Adapter:close() end

---@class kigo.Adapted
---@field adapter kigo.Adapter
---@field scale? number

---A timeline of tokens. feed and push append and check, the forward pass runs when logits are asked for.
---@class kigo.Sequence
---@field logits kigo.Tensor   after the last token; evaluates what is pending, and raises when that fails
---@field rng kigo.Rng
---@field state table          yours: mark, rewind to a mark, fork and save copy it. It takes plain data: booleans,
---numbers, strings, and tables of them (100 deep, without metatables), which may contain each other and themselves
---@field model kigo.Model
---@field stats kigo.SequenceStats   as they are now
local Sequence = {}

---@class kigo.SequenceStats
---@field n_tokens_evaluated integer   rows that went through the forward pass for this timeline, some more than once
---@field n_tokens_reused integer      tokens whose rows were found in the prefix cache instead
---@field n_drafted integer            rows of drafts (Sequence:expect)
---@field n_accepted integer           of those, what the timeline reached

---@param id integer
---@return integer? pos   after the token
---@return string? message
---@return integer? code
function Sequence:push(id) end

---@return integer
function Sequence:pos() end
---@param from? integer   position of the first one; default 0
---@return integer[] ids
function Sequence:tokens(from) end
---@return integer
function Sequence:seed() end

---@return integer n   tokens that a pass has to evaluate before the logits are there
function Sequence:pending() end

---@param chain kigo.Chain
---@return boolean   was its next draw made ahead, so that it needs no pass?
function Sequence:drawn(chain) end

---@return integer n   cache pages that the timeline holds, shared ones too; of the first group of layers
---(kigo.PageGroup)
function Sequence:pages() end

---Give the cache pages back. The timeline stays and is evaluated again when somebody asks for what lies behind it:
---nobody can tell but by the clock. One that was hooked, or forked from such a one, keeps them: evaluated again they
---might be others.
---@return integer? n         pages given back, shared ones too
---@return string? message
---@return integer? code
function Sequence:release() end

---What may be pushed next, instead of an earlier guess: the next pass that the sequence needs takes it along, and
---pushing these ids costs no pass then. A wrong guess costs time and nothing else: every id is still drawn from its own
---logits.
---@param ids integer[]   the first 64 are kept; {}: none
---@return integer? n     that are kept
---@return string? message
---@return integer? code
function Sequence:expect(ids) end

---What followed the last tokens when they stood on the timeline before: the longest run of `longest` to `shortest` last
---tokens that is found, at its latest place.
---@param longest integer    1 to 16
---@param shortest integer
---@param most integer       ids wanted, at most 64
---@return integer[] ids     empty where there is none
function Sequence:lookup(longest, shortest, most) end

---@param other kigo.Sequence   of any model
---@return integer n            tokens that both timelines begin with
function Sequence:common(other) end

---Have an adapter of the model take part in this sequence, beside others that do (up to 8), in this order. Others in
---the same forward pass see nothing of it. A timeline is made under the same adapters from end to end: where the scale
---is another one than before, its cache is given back and all tokens are evaluated again with the next pass, so set it
---first. Rewinding changes nothing about adapters, forks inherit them, files (Sequence:save) and receipts name them by
---their contents. Code UNSUPPORTED where tokens cannot be evaluated again: after hooks, or restored from another
---device's file.
---@param adapter kigo.Adapter
---@param scale? number   default 1; 0: no more
---@return kigo.Sequence?
---@return string? message
---@return integer? code
function Sequence:adapt(adapter, scale) end

---@return kigo.Adapted[] adapters   that take part, in the order in which they are applied; new handles
function Sequence:adapters() end

---@return kigo.Mark   position, random numbers and a copy of the state; good for any number of rewinds. While it is
---there, what layers with windows need for going on from it is kept, by the sequence and its forks
function Sequence:mark() end

---Write everything to a file for model:restore: tokens, cache, random numbers, streams, state, and which adapters take
---part at which scale, for model:restore to be given again. What stood there stays until the new file is whole and on
---the disk; only its owner may read it. The first save of a model reads all of its file, to name it by its SHA-256.
---Code UNSUPPORTED where something that cannot be saved belongs to the sequence.
---@param path string
---@return true?
---@return string? message
---@return integer? code
function Sequence:save(path) end

---Have a stream follow: it gets every token that is appended from now on, what may be shown is read with
---stream:read(), and rewind and fork take it along. Rewound to before it came, it is let go as it was then.
---@param stream kigo.Stream   that follows nothing yet
---@return kigo.Stream stream
function Sequence:attach(stream) end

---@param stream kigo.Stream
---@return kigo.Stream stream   follows no more
function Sequence:detach(stream) end

---@return kigo.Stream[] streams   that follow, in order of attachment: a fork has twins of its origin's
function Sequence:attached() end

---A mark brings random numbers and state back too; a position leaves the state alone, and drawing starts anew there.
---Where layers see a window or remember a state, going back far without a mark may mean that some tokens before the
---position are evaluated again (Sequence:pending says how many): nobody can tell but by the clock.
---@param to kigo.Mark|integer
---@return integer? pos
---@return string? message
---@return integer? code
function Sequence:rewind(to) end

function Sequence:close() end

---A hook in the forward pass of one sequence (Sequence:hook), until it is closed.
---@class kigo.Hook
local Hook = {}

---Not in the middle of a step.
function Hook:close() end

---A moment to rewind to: of its own timeline and its forks, while they begin with the same tokens.
---@class kigo.Mark
---@field pos integer

-- ---- scripts that nobody trusts ----

---A script in a Lua of its own (lua/kigo/sandbox.lua), in this process or in a worker.
---@class kigo.Sandbox
local Sandbox = {}

---What kigo.sandbox calls, with the sizes as numbers.
---@param source string
---@param options? kigo.SandboxOptions
---@return kigo.Sandbox?
---@return string? message
---@return integer? code
function core.sandbox(source, options) end

---Call the global function `name` of the script, or with nil the one that the script returned. Arguments and results
---are copied:
---nil, booleans, numbers, strings, tables of these without metatables (16 deep, 256 KiB in all). Tensors of one
---dimension may go in,
---up to four; they end with the call, and what the script changed in them comes back when it succeeds.
---@param name? string
---@param ... any
---@return boolean? ok        true, and the results behind it
---@return any ...            or nil, message, code: SCRIPT (an error of its own), LIMIT (and then it is never run
---again), MEMORY
function Sandbox:call(name, ...) end

---What a sampler does (kigo.Sandbox.sampler): f(logits, s) -> id, with s.rng drawing the sequence's next numbers.
---@param name? string
---@param logits kigo.Tensor
---@param seq? kigo.Sequence
---@param state? table        s.state
---@return any id             as the script returned it; nil, message, code when it failed
---@return any state          s.state after the call
---@return integer? code
function Sandbox:sample(name, logits, seq, state) end

---Begin anew: the script as it was at first, in a fresh state or process.
---@return true?
---@return string? message
---@return integer? code
function Sandbox:restart() end

---@class kigo.SandboxStats
---@field alive boolean          it may be called
---@field calls integer          answers so far
---@field instructions integer   of the last call, in steps of 256
---@field memory integer         bytes that the script holds
---@field memory_peak integer    most that it ever held
---@field pid integer?           of its worker
---@field layers { limits: boolean, addresses: boolean, seccomp: boolean, landlock: boolean }?  what holds its worker

---@return kigo.SandboxStats
function Sandbox:stats() end

function Sandbox:close() end

-- ---- the machine ----

---@return number seconds   on a monotonic clock
function core.now() end
---@param on boolean   true: Ctrl-C sets a flag instead of ending the program
function core.catch_interrupts(on) end
---@return boolean   was Ctrl-C pressed since the last call?
function core.interrupted() end
---@param n integer   at most 256
---@return string?
---@return string? message
---@return integer? code
function core.random_bytes(n) end
---@param fd integer   0, 1, 2: the standard streams
---@return boolean
function core.is_terminal(fd) end
---@param code integer
---@return string   "full" for kigo.err.FULL
function core.error_name(code) end
---@return string[] names   of the instruction sets that run here, from "generic" to the best
function core.kernel_variants() end
---@param threads integer     0: one per core
---@param megabytes integer
---@return number? bytes_per_s   that they read from memory together
---@return string? message
---@return integer? code
function core.read_bandwidth(threads, megabytes) end

---The generator that sequences draw from.
---@param seed integer
---@param pos integer
---@param draw integer
---@return number   in [0, 1)
function core.uniform(seed, pos, draw) end

-- ---- for specs ----

---XXH64 with seed 0: the checksum of saved sequences.
---@param bytes string
---@return integer
function core.checksum(bytes) end

---SHA-256 (FIPS 180-4).
---@param bytes string
---@param portably? boolean   without the processor's own instructions
---@return string   64 hexadecimal digits
function core.sha256(bytes, portably) end

---@param path string
---@return string?   64 hexadecimal digits
---@return string? message
---@return integer? code
function core.sha256_file(path) end

---The generator's raw function (Philox 4x32-10): key and counter words in, four words out.
---@return integer, integer, integer, integer
function core.philox(k0, k1, c0, c1, c2, c3) end
---Make an allocation fail.
---@param nth integer         counted from now; 0: none
---@param for_ever boolean    and all after it
function core.alloc_inject(nth, for_ever) end
---@return integer live
---@return integer calls
function core.alloc_counts() end
---Make a system call of the library fail.
---@param call string        "open", "write", ... (engine/system.h)
---@param nth integer        counted from now; 0: none
---@param error string?      "EIO", "ENOSPC", "EINTR", "ENOMEM", "EACCES", "EMFILE", "EAGAIN"; "short": one byte moves
---@param for_ever boolean?  and all after it
function core.system_inject(call, nth, error, for_ever) end
---@param call string
---@return integer calls   since the start
function core.system_calls(call) end
---@param case table   engine/bind_kernels.c
---@return string? float32
---@return string? message
---@return integer? code
function core.test_matmul(case) end
---@param case table
---@return string? float32
---@return string? message
---@return integer? code
function core.test_packed_row(case) end
---@param variant string
---@param float32 string
---@return string? bytes   nil where the processor does not run the variant
function core.vector_digest(variant, float32) end

-- ---- constraints ----

---A node of a grammar: a text, or a table that begins with the name of its kind.
---
---    "text"                                    these bytes
---    { "class", lo, hi, ..., negate = true }   one character of these ranges of code points, as UTF-8
---    { "bytes", lo, hi, ... }                  one byte
---    { "multiple", k, places }                 decimal numbers that are multiples of k x 10^-places, laid out anyhow
---    { "seq", A, B, ... }                      one after the other
---    { "alt", A, B, ... }                      any of them; of none: nothing matches
---    { "repeat", A, min, max }                 counted; without max: any number
---    { "rule", "name" }                        may recur, but not begin with itself
---    { "and", A, B, ... }, { "not", A }        of what is regular: no recursive rules, members or points
---    { "regular", A }                          as one automaton, whose masks are shared by all places where it stands
---    { "json", A, escapes = "all"|"needed" }   its characters as in a JSON string; "not" in it: among these
---    { "members", { { A, required = true, requires = { 2 } }, ... }, others = B, separator = C, min = 0, max = n,
---      ordered = false }                       each item at most once and in any order; `others` any number of times
---    { "point", A, name = "name" }             A, where a function agrees with its text (kigo.MatcherOptions)
---
---The same table in two places is compiled once. What is regular and small is one automaton without being told to.
---@alias kigo.GrammarNode string|table

---@class kigo.GrammarOptions
---@field memory? integer   bytes for the automaton, which grows while it is used (64 MiB unless given)
---@field nodes? integer    most nodes (200,000 unless given)
---@field depth? integer    most frames on the stack while matching (2,000 unless given, at most 4,000): deeper
---nesting is not allowed

---A compiled grammar. Matching is over bytes. It may be closed while matchers of it are open.
---@class kigo.Grammar
local Grammar = {}

---Compile rules; matching starts at `root`. Wrong shapes raise. Codes: FORMAT (a rule that is not there or begins with
---itself, nothing can match), FULL (a limit).
---@param rules table<string, kigo.GrammarNode>
---@param options? kigo.GrammarOptions
---@return kigo.Grammar?
---@return string? message
---@return integer? code
function core.grammar(rules, options) end

---Is all of the text in the language?
---@param text string
---@param options? { points: table<string, kigo.Point>? }
---@return boolean?
---@return string? message
---@return integer? code
function Grammar:accepts(text, options) end

---Says whether the text of a point will do. It must depend on the text alone, and may be asked often: about candidates,
---and again after going back. As a table also whether a text that goes on may become one that does, asked after every
---token within the point. An error in it reaches who asked for a mask or a token, with a traceback.
---Meanwhile the grammar, its matchers, and the sequence that it constrains with its model, may only be looked at.
---@alias kigo.Point (fun(text: string): boolean)|kigo.PointFunctions

---@class kigo.PointFunctions
---@field complete fun(text: string): boolean
---@field partial? fun(text: string): boolean

---@class kigo.MatcherOptions
---@field points? table<string, kigo.Point>   for each point of the grammar
---@field start? boolean   text begins here as behind a control token: SentencePiece leaves out a space there

function Grammar:close() end

---One text on its way through a grammar, by tokens or bytes.
---@class kigo.Matcher
local Matcher = {}

---@param tokenizer? kigo.Tokenizer   nil: bytes only
---@param options? kigo.MatcherOptions
---@return kigo.Matcher?
---@return string? message
---@return integer? code
function Grammar:matcher(tokenizer, options) end

---Go on by a token. False: it does not fit, and nothing has changed. An end token fits where the text may end; behind
---it everything does.
---@param id integer
---@return boolean?
---@return string? message
---@return integer? code
function Matcher:accept(id) end

---@param text string
---@return boolean?
---@return string? message
---@return integer? code
function Matcher:accept_bytes(text) end

---Would it be accepted?
---@param id integer
---@return boolean?
---@return string? message
---@return integer? code
function Matcher:allowed(id) end

---All ids that are allowed, in order. With points: those that may be allowed, and those that are whatever the functions
---say.
---@return integer[]?
---@return integer[]|string|nil sure   or the message
---@return integer? code
function Matcher:ids() end

---How many ids `ids` would list first: the mask without a use of it.
---@return integer?
---@return string? message
---@return integer? code
function Matcher:count() end

---Set the logits of all ids that are not allowed to -inf. At a point the likeliest candidates are asked about, 128 of
---them, and then on until one is allowed; candidates beyond are banned unseen.
---@param logits kigo.Tensor
---@return integer? n   ids left; 0: a dead end
---@return string? message
---@return integer? code
function Matcher:mask(logits) end

---Ids that must follow whatever comes, up to where a longer token might begin.
---@return integer[]?
---@return string? message
---@return integer? code
function Matcher:forced() end

---May the text end here?
---@return boolean?
---@return string? message
---@return integer? code
function Matcher:is_complete() end

---Can it do nothing but end?
---@return boolean?
---@return string? message
---@return integer? code
function Matcher:is_over() end

---Take back what was accepted last: tokens, or texts given to accept_bytes.
---@param n? integer   1 unless given
---@return integer steps   that are left
function Matcher:rewind(n) end

---What was accepted.
---@return string
function Matcher:text() end

---@return kigo.Matcher?
---@return string? message
---@return integer? code
function Matcher:copy() end

function Matcher:close() end

---@class kigo.ConstrainOptions
---@field after? string    begin behind this text, whichever tokens write it (control tokens as they are spelled);
---until then everything may come but end tokens
---@field within? integer  after so many tokens of waiting nothing but that text may come
---@field points? table<string, kigo.Point>   for each point of the grammar

---Have what follows obey a grammar, instead of an earlier one; nil: no more. Tokens that do not fit are refused by feed
---and push (they raise) and have logits of -inf for everybody who asks. End tokens fit where the text may end; one ends
---the constraint, and what follows is free. A dead end, where no token of the vocabulary fits, is an error of whoever
---asks for logits (NUMERIC). Forks, marks, rewind and files take it along; with points it cannot be saved.
---
---    seq:constrain(assert(kigo.regex "\\d{4}-\\d\\d-\\d\\d"), { after = "</think>" })
---@param grammar? kigo.Grammar
---@param options? kigo.ConstrainOptions
---@return kigo.Sequence?
---@return string? message
---@return integer? code
function Sequence:constrain(grammar, options) end

---@class kigo.ConstraintState
---@field waiting boolean   for the text of `after`
---@field complete boolean  the text may end here
---@field over boolean      it can do nothing else
---@field text string       what was matched so far

---Where the constraint stands; nil: there is none.
---@return kigo.ConstraintState?
function Sequence:constraint() end

---Does the constraint allow nothing but the end?
---@return boolean
function Sequence:is_over() end

---The ids that the constraint forces next, up to where a longer token might begin: for seq:expect, or to be fed without
---looking at logits.
---@return integer[]?
---@return string? message
---@return integer? code
function Sequence:forced() end

return core
