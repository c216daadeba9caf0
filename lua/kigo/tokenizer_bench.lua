-- tokenizer_bench.lua - how fast a vocabulary encodes and decodes text.
local core = require "kigo.core"
local check = require "kigo.check"
local kigo = require "kigo"

local bench = {}

---@class kigo.tokenizer_bench.Options
---@field text? string      what to encode; default: bench.text()
---@field pre? string       a pre-tokenizer's name, instead of the file's
---@field repeats? integer  every figure is the median of so many runs, default 5
local known = { text = "string", pre = "string", repeats = "integer" }

-- ---- text that is nobody's ----

-- Everyday words of a language, roughly the most frequent first.
local LANGUAGES = {
  { "the of and to in a is that for it was on with as his they be at one have this from or had by not word but "
    .. "what some we can out other were all there when up use your how said an each she which their time if will "
    .. "way about many language computer river question between country important together morning thought without "
    .. "mountain people" },
  { "de la que el en y a los se del las un por con no una su para es al lo como más pero sus le ya o este sí "
    .. "porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante años "
    .. "mañana corazón ciudad" },
  { "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
    .. "hat dass sie nach wird bei einer um am sind noch wie einem über so zum war haben nur oder aber vor zur "
    .. "bis größer Straße Möglichkeit Entwicklung Gesellschaft zwischen Verantwortung" },
  { "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec son "
    .. "cette était être à été même où très après déjà française élève garçon forêt lumière "
    .. "aujourd'hui n'est l'homme d'une" },
  { "và của là có không được trong cho một người những với các đã này đó ở khi cũng "
    .. "để từ như nhiều về sự nước việc năm thành phố tiếng Việt thời gian cuộc "
    .. "sống" },
  { "и в не на я быть он с что а по это она этот к но они мы весь "
    .. "который из у то за свой что от со для о так мочь все как наш "
    .. "человек время год рука дело жизнь день голова вопрос друг "
    .. "сторона сила ребёнок город правительство" },
  { "και το να του η της με που την από για τον είναι τα στο δεν "
    .. "τη θα μας σε αυτό στην οι ένα αλλά άνθρωπος θάλασσα ημέρα "
    .. "χρόνος ελληνική" },
  { "في من على أن إلى هذا التي الذي عن مع هو كان بعد كل هذه ما بين "
    .. "ذلك قد لا عند حتى يوم العربية الناس المدينة الوقت" },
  { "של את על לא הוא זה עם כי גם אני היא אם יש כל או אבל היה מה רק "
    .. "כמו עוד אחד שלום ירושלים ילדים" },
  { "के है में की से को और का एक यह पर भी हैं "
    .. "नहीं कि था कर लिए तो वह अपने या हो गया समय "
    .. "लोग भारत हिन्दी" },
  { "이 그 저 것 수 나 사람 우리 있다 하다 되다 없다 않다 보다 같다 오늘 시간 "
    .. "한국어 대한민국 생각하고 그리고 하지만 사랑합니다 학교에서" },
  { "的 一 是 不 了 在 人 有 我 他 这 个 们 中 来 上 大 为 和 国 地 到 以 说 时 要 "
    .. "就 出 会 可 也 你 对 生 能 而 子 那 得 于 着 下 自 之 年 我们 中国 发展 工作 "
    .. "现在 问题 经济 因为 所以 已经 世界 语言 模型 城市 开始 学习",
    joint = "", stop = "。" },
  { "の に は を た が で て と し れ さ ある いる も する から な こと として い "
    .. "や など なっ ない この ため その 日本 東京 時間 言葉 私 人 山 川 "
    .. "コンピュータ データ インターネット ありがとう 学校 世界 新しい 思います",
    joint = "", stop = "。" },
  { "ที่ และ ใน การ เป็น ของ ไม่ มี ได้ ว่า จะ "
    .. "ให้ คน กับ ไป มา นี้ ประเทศไทย ภาษา เวลา "
    .. "วันนี้ บ้าน รัก สวัสดี",
    joint = "" },
  { "local function return end if then for in do while int char const struct void self import def class = == ( "
    .. ") { } [ ] -> += // # <= && || std::string i++ n_tokens foo_bar getValue() \"text\" 0x1F 1e-5 nil true "
    .. "false",
    stop = ";\n    " },
}

local SIGNS = { ",", ".", "!", "?", ":", ";", " -", " (", ")", "...", ".\n", ".\n\n", " \u{1F600}", " \u{2014}" }

local function words_of(list)
  local words = {}
  for word in list:gmatch "%S+" do words[#words + 1] = word end
  return words
end

---A number stream of its own: the text is the same on every machine.
local function dice()
  local state = 0
  ---@return integer  in 1 to n
  return function(n)
    state = state * 6364136223846793005 + 1442695040888963407
    return (state >> 33) % n + 1
  end
end

---The first half of one word and the second half of another: a word that is rare.
local function blend(a, b)
  local half_a = utf8.offset(a, utf8.len(a) // 2 + 1)
  local half_b = utf8.offset(b, utf8.len(b) // 2 + 1)
  return a:sub(1, half_a - 1) .. b:sub(half_b)
end

---Sentences in fourteen languages and lines of code, made of words in random order.
---@param bytes? integer  default 2000000; a little more comes back
---@return string
function bench.text(bytes)
  local roll, out, size = dice(), {}, 0
  local languages = {}
  for i, language in ipairs(LANGUAGES) do languages[i] = words_of(language[1]) end
  local function put(text) out[#out + 1], size = text, size + #text end
  while size < (bytes or 2000000) do
    local at = roll(#LANGUAGES)
    local words, joint = languages[at], LANGUAGES[at].joint or " "
    -- frequent words are near the front
    local function word() return words[math.min(roll(#words), roll(#words))] end
    for i = 1, 4 + roll(14) do
      local kind = roll(20)
      if i > 1 then put(joint) end
      if kind == 1 then
        put(tostring(roll(math.tointeger(10 ^ roll(6)))))
      elseif kind <= 4 then
        put(blend(word(), word()))
      else
        put(word())
      end
      if roll(8) == 1 then put(SIGNS[roll(#SIGNS)]) end
    end
    put(LANGUAGES[at].stop or ".\n")
  end
  return table.concat(out)
end

-- ---- measuring ----

local function median(values)
  table.sort(values)
  return values[(#values + 1) // 2]
end

---Seconds of a call, and its result.
local function timed(f, ...)
  local start = core.now()
  local result = assert(f(...))
  return core.now() - start, result
end

---Measure the tokenizer of a model file.
---@param path string
---@param options? kigo.tokenizer_bench.Options
---@return table<string, string|number>? figures  flat
---@return string? message
---@return integer? code
function bench.measure(path, options)
  options = check.options(options, known)
  local gguf <close>, message, code = kigo.open_gguf(path)
  if not gguf then return nil, message, code end
  local start = core.now()
  local tokenizer <close>, why, kind = core.tokenizer(gguf, { pre = options.pre })
  if not tokenizer then return nil, why, kind end
  local open_s = core.now() - start
  local text, encode_s, decode_s, ids = options.text or bench.text(), {}, {}, nil
  for i = 1, options.repeats or 5 do
    encode_s[i], ids = timed(tokenizer.encode, tokenizer, text)
    decode_s[i] = timed(tokenizer.decode, tokenizer, ids)
  end
  return { model = path, tokenizer = tokenizer.model, pre = options.pre or tokenizer.pre, vocabulary = tokenizer.size,
    open_s = open_s, text_bytes = #text, tokens = #ids, repeats = options.repeats or 5,
    encode_bytes_per_s = #text / median(encode_s), decode_bytes_per_s = #text / median(decode_s) }
end

---The figures as a table for people.
---@param about table
---@return string
function bench.describe(about)
  local out = {}
  local function add(name, ...) out[#out + 1] = ("%-12s %s"):format(name, string.format(...)) end
  add("vocabulary", "%s (%s%s, %d tokens), opened in %.0f ms", about.model, about.tokenizer,
    about.pre and " " .. about.pre or "", about.vocabulary, 1000 * about.open_s)
  add("text", "%.1f MB, %d tokens", about.text_bytes / 1e6, about.tokens)
  add("encode", "%.1f MB/s", about.encode_bytes_per_s / 1e6)
  add("decode", "%.1f MB/s", about.decode_bytes_per_s / 1e6)
  add("runs", "medians of %d, one thread", about.repeats)
  return table.concat(out, "\n") .. "\n"
end

return bench
