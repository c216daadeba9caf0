describe("kigo.cli", function()
  local build = require "spec.gguf_build"
  local cjson = require "cjson"
  local core = require "kigo.core"
  local kigo = require "kigo"
  local options = require "kigo.cli.options"
  local support = require "spec.support"
  local tiny = require "spec.tiny"

  local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

  -- Commands that compute do it on one thread of the CPU here: tiny models gain nothing from more, and the machine may
  -- be busy.
  local COMPUTES = { run = 3, chat = 2, haiku = 1, bench = 3, logits = 3, perplexity = 2, embed = 2 } -- arguments

  ---Run the program: exit status, standard output, standard error.
  local function run(arguments, input)
    local out, err, stdin = os.tmpname(), os.tmpname(), support.temporary(input or "")
    local words = {}
    for i, argument in ipairs(arguments) do words[i] = quote(argument) end
    if #arguments >= (COMPUTES[arguments[1]] or math.huge) then
      words[#words + 1] = "--threads 1"
      if not table.concat(words, " "):find("--device", 1, true) then words[#words + 1] = "--device cpu" end
    end
    local line = ("%s %s <%s >%s 2>%s"):format(quote(support.program), table.concat(words, " "), stdin, out, err)
    local _, _, status = os.execute(line)
    local texts = { support.read(out), support.read(err) }
    for _, path in ipairs { out, err, stdin } do os.remove(path) end
    return status, texts[1], texts[2]
  end

  local function stories() return support.fixture "models/stories260K.gguf" end

  describe("options", function()
    local command = { name = "x", usage = "FILE", summary = "", arguments = { min = 1, max = 1 }, options = {
      { name = "temp", type = "number", min = 0, max = 2, help = "" },
      { name = "top-k", short = "k", type = "integer", help = "" },
      { name = "stop", type = "string", many = true, help = "" },
      { name = "json", help = "" },
    } }
    local function parse(...) return options.parse(command, { ... }) end

    it("are parsed in every spelling", function()
      local parsed, rest = parse("--temp", "1.5", "-k", "40", "a.gguf", "--json", "--stop=x", "--stop", "-y")
      assert.same({ temp = 1.5, top_k = 40, json = true, stop = { "x", "-y" } }, parsed)
      assert.same({ "a.gguf" }, rest)
      assert.same({ "--temp" }, select(2, parse("--", "--temp")))
      assert.same({ "-" }, select(2, parse "-"))
      assert.same({ stop = { "" } }, (parse("--stop=", "f")))
      assert.is_true(parse("--help", "--wrong").help)
    end)

    it("are refused with a reason", function()
      for _, case in ipairs {
        { "--wrong", "f" }, { "-z", "f" }, { "--temp" }, { "f", "--temp" }, { "--temp", "hot", "f" },
        { "--temp", "3", "f" }, { "--temp", "-1", "f" }, { "--temp", "nan", "f" },
        { "--top-k", "1.5", "f" }, { "--top-k", "0x10", "f" },
        { "--json=yes", "f" }, {}, { "f", "g" }, { "--temp=", "f" },
      } do
        local parsed, message = parse(table.unpack(case))
        assert.is_nil(parsed, table.concat(case, " "))
        assert.is_string(message)
      end
    end)
  end)

  describe("the program", function()
    it("tells what it can do", function()
      local status, out, err = run { "--help" }
      assert.equal(0, status)
      assert.equal("", err)
      for _, name in ipairs { "run", "chat", "haiku", "bench", "inspect", "tokenize", "template", "logits",
        "perplexity", "embed", "make-model" } do
        assert.truthy(out:find("\n  " .. name .. " ", 1, true), name)
        local code, text = run { name, "--help" }
        assert.equal(0, code)
        assert.truthy(text:find("usage: kigo " .. name, 1, true))
        assert.equal(text, (select(2, run { "help", name })))
      end
      assert.equal("kigo " .. core.version .. "\n", (select(2, run { "--version" })))
    end)

    it("ends with 2 for mistakes on the command line, and says which", function()
      for _, case in ipairs {
        { {}, "usage" }, { { "runn" }, "runn" }, { { "help", "runn" }, "runn" }, { { "run" }, "MODEL" },
        { { "run", "--temp" }, "--temp" }, { { "run", "m.gguf", "--wrong" }, "--wrong" },
        { { "run", "m.gguf", "-n", "many" }, "many" }, { { "logits", "m.gguf" }, "--tokens" },
        { { "inspect", "a", "b" }, '"b"' }, { { "logits", stories(), "--tokens", "1,x", "--out", "/dev/null" }, '"x"' },
        { { "logits", stories(), "--tokens", "1,512", "--out", "/dev/null" }, "512" },
        { { "run", "m.gguf", "-n", "0" }, "-n:" }, { { "run", "m.gguf", "--tokens=0" }, "--tokens:" },
        { { "template", "m.gguf" }, "--context" }, { { "chat", support.haiku_model, "--set", "x" }, "NAME=JSON" },
        { { "chat", support.haiku_model, "--set", "x={" }, "x" },
        { { "template", "x.jinja", "--context", "c", "--ids" }, "--vocab" },
        { { "m.gguf" }, "kigo run m.gguf" }, { { "./m.gguf" }, "kigo run ./m.gguf" },
        { { "chta" }, "did you mean chat?" }, { { "run", "m", "--topk", "3" }, "did you mean --top-k?" },
        { { "run", "m", "--json", "f" }, "did you mean --json-schema?" }, { { "--runn" }, "option --runn" },
      } do
        local status, out, err = run(case[1])
        assert.equal(2, status, table.concat(case[1], " ") .. "\n" .. err)
        assert.equal("", out)
        assert.truthy(err:find(case[2], 1, true), err)
        assert.is_nil(err:find("stack traceback", 1, true), err)
      end
    end)

    it("ends with 1 and one line for the world's faults", function()
      local empty = support.temporary ""
      for _, case in ipairs {
        { "run", "/nonexistent.gguf" }, { "inspect", "/nonexistent.gguf" }, { "run", empty }, { "bench", empty },
        { "run", stories(), "--device", "abacus" }, { "tokenize", empty },
        { "chat", empty }, { "haiku", "--model", empty },
        { "logits", empty, "--tokens", "1", "--out", "/dev/null" }, { "chat", stories() },
        { "logits", stories(), "--tokens", "1", "--out", "/nonexistent/x" },
        { "run", stories(), "-n", "64", "--ctx", "32" },
        { "run", stories(), "--prompt", ("a "):rep(500), "--ctx", "32" },
        { "run", stories(), "--ctx", "1" }, { "bench", stories(), "--prompt-tokens", "513" },
        { "run", "/tmp" }, { "run", "README.md" }, { "tokenize", "/tmp" },
        { "tokenize", support.haiku_model, "--pre", "gpt-3" },
        { "make-model", "/tmp", "--like", "tiny" }, { "make-model", "/dev/null", "--like", "tiny" },
        { "/nonexistent.lua" }, { "/tmp" }, { "template", "/nonexistent.gguf", "--context", "/dev/null" },
        { "template", support.haiku_model, "--context", "/nonexistent.json" },
        { "template", support.haiku_model, "--context", empty },
        { "template", "/nonexistent.jinja", "--context", empty },
        { "chat", support.haiku_model, "--template", "no.jinja" },
      } do
        local status, out, err = run(case)
        assert.equal(1, status, table.concat(case, " ") .. "\n" .. err)
        assert.equal("", out)
        assert.truthy(err:find "^kigo: [^\n]+\n$", err)
      end
      os.remove(empty)
    end)

    it("reports output that got lost", function()
      for _, words in ipairs { "--help", "inspect " .. support.haiku_model, "run " .. quote(stories()) .. " -n 4" } do
        for _, lost in ipairs { ">/dev/full", ">&-" } do
          local _, _, status = os.execute(("%s %s %s 2>/dev/null"):format(quote(support.program), words, lost))
          assert.equal(1, status, words .. lost)
        end
      end
    end)

    it("does not mistake a file for a stream that is closed", function()
      local pipe = io.popen(("%s tokenize %s --ids <&- 2>&1"):format(quote(support.program), support.haiku_model))
      assert.equal("\n", pipe:read "a")
      pipe:close()
    end)

    it("runs scripts", function()
      local script = support.temporary 'local kigo = require "kigo"; io.write(kigo.version, " ", ...)'
      assert(os.rename(script, script .. ".lua"))
      local status, out = run { script .. ".lua", "a", "b" }
      os.remove(script .. ".lua")
      assert.equal(0, status)
      assert.equal(core.version .. " ab", out)
    end)

    it("runs scripts with any number of arguments", function()
      local script = support.temporary 'io.write(select("#", ...))'
      assert(os.rename(script, script .. ".lua"))
      local command = { script .. ".lua" }
      for i = 1, 300 do command[i + 1] = tostring(i) end
      local status, out = run(command)
      os.remove(script .. ".lua")
      assert.equal(0, status)
      assert.equal("300", out)
    end)
  end)

  describe("device auto", function()
    it("says once why the CPU computes where a GPU was looked for, and not among the results", function()
      local model <close> = assert(kigo.load(support.haiku_model))
      local note = model:stats().note
      for _, line in ipairs {
        { "haiku", "--device", "auto" }, { "run", support.haiku_model, "-p", "x", "-n", "2", "--device", "auto" },
        { "bench", support.haiku_model, "--json", "--prompt-tokens", "8", "--tokens", "4", "--repeat", "1",
          "--device=auto" },
      } do
        local status, out, err = run(line)
        assert.equal(0, status, err)
        assert.is_nil(out:find("GPU:", 1, true))
        local _, n = err:gsub("no GPU: ", "")
        assert.equal(note == "" and 0 or 1, n)
        if note ~= "" then assert.truthy(err:find("kigo: " .. note .. "; the CPU computes\n", 1, true), err) end
      end
    end)
  end)

  describe("bench --tokenizer", function()
    it("measures encoding and decoding, of a text of its own or of a file", function()
      local status, out, err = run { "bench", "--tokenizer", support.haiku_model, "--json", "--repeat", "1" }
      assert.equal(0, status, err)
      local figures = cjson.decode(out)
      assert.is_true(figures.encode_bytes_per_s > 0 and figures.decode_bytes_per_s > 0 and figures.tokens > 0)
      assert.is_true(figures.text_bytes >= 2000000)
      local path = support.temporary "Once upon a time"
      status, out, err = run { "bench", "--tokenizer", support.haiku_model, path, "--repeat", "2", "--pre", "gpt-2" }
      os.remove(path)
      assert.equal(0, status, err)
      for _, word in ipairs { "gpt-2", "encode", "decode", "MB/s" } do assert.truthy(out:find(word, 1, true), out) end
    end)

    it("refuses what it cannot read", function()
      assert.equal(1, (run { "bench", "--tokenizer", support.haiku_model, "/nonexistent.txt" }))
      assert.equal(1, (run { "bench", "--tokenizer", "/nonexistent.gguf" }))
      assert.equal(2, (run { "bench", support.haiku_model, "text.txt" }))
    end)
  end)

  describe("run", function()
    local STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
      .. "One day, she saw a big, red ball. She wanted to play with it, but it was too high."

    it("writes the published text, and nothing else, to standard output", function()
      local status, out, err = run { "run", stories(), "--temp", "0", "-n", "90" }
      assert.equal(0, status, err)
      assert.equal(STORY, out:sub(1, #STORY))
      assert.truthy(err:find "90 tokens")
      assert.is_nil(err:find("\27", 1, true))
    end)

    it("gives the same text from the same seed, another from another", function()
      local function text(seed)
        local _, out = run { "run", stories(), "-n", "30", "--seed", seed, "--temp", "1" }
        return out
      end
      assert.equal(text "7", text "7")
      assert.not_equal(text "7", text "8")
    end)

    it("completes a prompt, without repeating it, up to a stop text", function()
      local status, out = run { "run", stories(), "--prompt", "Once upon a time, there was a little", "--temp", "0",
        "-n", "40", "--stop", " She" }
      assert.equal(0, status)
      assert.equal(" girl named Lily.", out)
    end)

    it("samples as it is told", function()
      local prompt = "Tim and Tim and Tim and"
      local function text(...)
        return select(2, run { "run", stories(), "-p", prompt, "-n", "30", "--seed", "7", ... })
      end
      local plain = text()
      for _, told in ipairs {
        { "--top-n-sigma", "0.5" }, { "--xtc-probability", "1", "--xtc-threshold", "0.05" },
        { "--dynatemp-range", "0.7", "--dynatemp-exponent", "0.5" }, { "--mirostat-tau", "4", "--mirostat-eta", "0.5" },
        { "--dry-multiplier", "9", "--dry-allowed-length", "1", "--dry-base", "2", "--dry-last", "20",
          "--dry-breaker", "x" },
        { "--bias", " the=-inf", "--bias", " a=-2.5" },
      } do
        local changed = text(table.unpack(told))
        assert.not_equal("", changed)
        assert.not_equal(plain, changed, told[1])
      end
      for _, bad in ipairs { { "--bias", "x" }, { "--bias", "x=y" }, { "--bias", "=1" }, { "--xtc-threshold", "0.1" },
        { "--mirostat-tau", "-1" }, { "--dry-base", "0.5", "--dry-multiplier", "1" } } do
        assert.equal(2, (run { "run", stories(), "-n", "4", table.unpack(bad) }))
      end
    end)

    it("writes what a constraint allows", function()
      local function constrained(...)
        local status, out, err = run { "run", support.haiku_model, "-p", "moon", "--seed", "1", ... }
        assert.equal(0, status, err)
        return out, err
      end
      local schema = support.temporary [[{ "type": "object", "required": ["season", "n"], "additionalProperties": false,
        "properties": { "season": { "enum": ["spring", "winter"] }, "n": { "enum": [1, 2] } } }]]
      local grammar = support.temporary 'root ::= "yes" | "no, " [a-z]{3,9}'
      local written = cjson.decode((constrained("--json-schema", schema)))
      assert.truthy(written.season == "spring" or written.season == "winter")
      assert.truthy(written.n == 1 or written.n == 2)
      local answer = constrained("--grammar", grammar)
      assert.truthy(answer == "yes" or answer:find "^no, %l+$", answer)
      assert.matches("^%d%d%d%d%-%d%d$", (constrained("--regex", "\\d{4}-\\d\\d")))
      local out, err = constrained("--choice", "an early spring", "--choice", "late autumn")
      assert.truthy(out == "an early spring" or out == "late autumn", out)
      assert.truthy(err:find("ended by: end", 1, true), err)
      assert.matches("^.+|%d$", (constrained("--regex", "\\d", "--after", "|", "--within", "5")))
      assert.matches("^%d$", (select(2, run({ "chat", support.haiku_model, "--regex", "\\d" }, "moon\n"))):sub(1, 1))
      for _, bad in ipairs { { 2, "--choice", "x", "--regex", "y" }, { 2, "--after", "x" }, { 1, "--regex", "(" },
        { 2, "--regex", "x", "--within", "3" }, { 1, "--grammar", "/nonexistent" }, { 1, "--json-schema", grammar } } do
        local status, text, message = run { "run", support.haiku_model, table.unpack(bad, 2) }
        assert.equal(bad[1], status, message)
        assert.equal("", text)
        assert.matches("^kigo: [^\n]+\n$", message)
      end
      os.remove(schema)
      os.remove(grammar)
    end)

    it("guesses, and says the same", function()
      local function text(...)
        local status, out, err = run { "run", support.haiku_model, "-p", "moon sun moon sun moon", "-n", "30", "--seed",
          "3", ... }
        assert.equal(0, status, err)
        return out, err
      end
      local plain, about = text()
      assert.is_nil(about:find("guessed", 1, true))
      for _, how in ipairs { { "--speculate", "lookup" }, { "--speculate", "ngrams" },
        { "--draft-model", support.haiku_model } } do
        local out, err = text(table.unpack(how))
        assert.equal(plain, out)
        assert.matches("%d+ of %d+ guessed tokens were right: %d+ forward passes", err)
      end
      assert.equal(plain, (text("--speculate", "no")))
      assert.equal(2, (run { "run", support.haiku_model, "--speculate", "maybe" }))
      assert.equal(2, (run { "run", support.haiku_model, "--speculate", "no", "--draft-model", support.haiku_model }))
      assert.equal(1, (run { "run", support.haiku_model, "--draft-model", "/nonexistent" }))
      assert.equal("moon", (select(2, run({ "chat", support.haiku_model, "--speculate", "lookup", "--choice", "moon" },
        "sun\n"))):sub(1, 4))
    end)

    it("takes adapters, with their scales", function()
      local function adapter(model)
        local gguf <close> = assert(require("kigo").open_gguf(model))
        local cols, rows = table.unpack(gguf:tensor("blk.0.ffn_down.weight").shape)
        return support.temporary(build.random({ ["general.type"] = "adapter", ["adapter.type"] = "lora",
          ["general.architecture"] = gguf:get "general.architecture", ["adapter.lora.alpha"] = 8.0 }, {
          { name = "blk.0.ffn_down.weight.lora_a", shape = { cols, 2 } },
          { name = "blk.0.ffn_down.weight.lora_b", shape = { 2, rows } } }))
      end
      local path = adapter(stories())
      local function text(...)
        local status, out, err = run { "run", stories(), "-n", "30", "--temp", "0", "--device", "cpu", ... }
        assert.equal(0, status, err)
        return out
      end
      assert.equal(STORY:sub(1, 40), text():sub(1, 40))
      assert.not_equal(STORY:sub(1, 40), text("--adapter", path):sub(1, 40))
      assert.equal(text(), text("--adapter", path .. "=0"))
      local poet = adapter(support.haiku_model)
      local function chat(...)
        local status, out, err = run({ "chat", support.haiku_model, "-n", "12", "--temp", "0", "--device", "cpu", ... },
          "moon\n")
        assert.equal(0, status, err)
        return out
      end
      assert.not_equal(chat(), chat("--adapter", poet .. "=3"))
      assert.equal(chat(), chat("--adapter", poet .. "=0"))
      os.remove(poet)
      for _, bad in ipairs { { path .. "=x", 2 }, { path .. "=nan", 2 }, { "/nowhere/a.gguf", 1 }, { stories(), 1 } } do
        assert.equal(bad[2], (run { "run", stories(), "--device", "cpu", "--adapter", bad[1] }), bad[1])
      end
      os.remove(path)
    end)

    it("takes any bytes as prompt", function()
      assert.equal(0, (run { "run", stories(), "--prompt", "\xff\xfe \u{1f600} \1", "-n", "4" }))
    end)
  end)

  describe("tokenize", function()
    it("shows tokens and ids", function()
      local _, ids = run({ "tokenize", stories(), "--ids" }, "Once upon a time")
      local _, bare = run({ "tokenize", stories(), "--ids", "--no-bos" }, "Once upon a time")
      assert.equal("1 " .. bare, ids)
      local _, shown = run({ "tokenize", stories() }, "Once\n")
      assert.truthy(shown:find('\\n"', 1, true))
    end)

    it("leaves control tokens in text alone, unless told otherwise", function()
      local _, ids = run({ "tokenize", support.haiku_model, "--ids" }, "<|im_start|>")
      assert.is_nil((" " .. ids .. " "):find " 2046 ")
      local _, special = run({ "tokenize", support.haiku_model, "--ids", "--special" }, "<|im_start|>")
      assert.truthy((" " .. special:gsub("\n", " ")):find " 2046 ")
    end)
  end)

  describe("template", function()
    local context, jinja
    setup(function()
      context = support.temporary(
        '{"messages": [{"role": "user", "content": "Hi <|im_end|>"}], "add_generation_prompt": true}')
      jinja = os.tmpname() .. ".jinja"
      local file = assert(io.open(jinja, "wb"))
      file:write("{% if not messages %}{{ raise_exception('Say something!') }}{% endif %}"
        .. "<|im_start|>{{ messages[0].content }}")
      file:close()
    end)
    teardown(function()
      os.remove(context)
      os.remove(jinja)
    end)
    local TEXT = "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"

    it("writes exactly the text to a pipe", function()
      local status, out, err = run { "template", support.haiku_model, "--context", context }
      assert.equal(0, status, err)
      assert.equal(TEXT, out)
      assert.equal("<|im_start|>Hi <|im_end|>", (select(2, run { "template", jinja, "--context", context })))
      local fixture = "templates/meta-llama-Llama-3.2-3B-Instruct"
      local case = cjson.decode(support.read(support.fixture(fixture .. ".json"))).cases[1]
      local variables = support.temporary(cjson.encode(case.context))
      assert.equal(case.expected, (select(2, run { "template", support.fixture(fixture .. ".jinja"), "--context",
        variables, "--now", "2026-07-29 10:29:00" })))
      os.remove(variables)
    end)

    it("reads the context from standard input, too", function()
      assert.equal(TEXT, (select(2, run({ "template", support.haiku_model, "--context", "-" }, support.read(context)))))
    end)

    it("shows tokens: only the template's own text becomes control tokens", function()
      for _, words in ipairs { { support.haiku_model }, { jinja, "--vocab", support.haiku_model } } do
        local status, out, err = run { "template", "--ids", "--context", context, table.unpack(words) }
        assert.equal(0, status, err)
        assert.truthy(out:find('^ *2046  "<|im_start|>"\n'), out)
        local _, n = out:gsub('  "<|im_end|>"\n', "")
        assert.equal(words[2] and 0 or 1, n)
      end
    end)

    it("takes other templates by name", function()
      local status, out = run { "template", support.haiku_model, "--template", "chatml", "--context", context }
      assert.equal(0, status)
      assert.equal(TEXT, out)
      assert.equal(1, (run { "template", support.haiku_model, "--template", "llama3", "--context", context }))
    end)

    it("shows segments in colours on a terminal", function()
      if not os.execute "command -v script >/dev/null" then return pending "there is no script(1) here" end
      local pipe = assert(io.popen(("script -qec %s /dev/null"):format(
        quote(("%s template %s --context %s"):format(support.program, support.haiku_model, context)))))
      local out = pipe:read "a":gsub("\r\n", "\n")
      pipe:close()
      assert.equal(TEXT .. "\n", (out:gsub("\27%[[%d;]*m", "")))
      assert.truthy(out:find("\27%[[%d;]+m<|im_start|>\27"))
      assert.truthy(out:find("\27%[[%d;]+mHi <|im_end|>\27"))
    end)

    it("ends with the template's own message", function()
      local nothing = support.temporary '{"messages": []}'
      local status, out, err = run { "template", jinja, "--context", nothing }
      os.remove(nothing)
      assert.equal(1, status)
      assert.equal("", out)
      assert.equal("kigo: Say something!\n", err)
    end)
  end)

  describe("logits", function()
    it("writes float32 of every position", function()
      local reference = support.read_json(support.fixture "models/qwen2.json")
      local out = os.tmpname()
      local ids = {}
      for i, id in ipairs(reference.prompt) do ids[i] = math.tointeger(id) end
      local status, text, err = run { "logits", support.fixture "models/qwen2.gguf", "--tokens", table.concat(ids, ","),
        "--out", out, "--device", "reference" }
      assert.equal(0, status, err)
      assert.equal("", text)
      local got, expected = support.read_f32(out), support.read_f32(support.fixture "models/qwen2.logits.f32")
      os.remove(out)
      assert.equal(#expected, #got)
      for i = 1, #expected do
        assert.is_true(math.abs(got[i] - expected[i]) < 1e-3)
      end
    end)
  end)

  describe("logits, where they cannot be written,", function()
    it("fails, and leaves a device alone", function()
      local status, _, err = run { "logits", stories(), "--tokens", "1,2", "--out", "/dev/full" }
      assert.equal(1, status)
      assert.truthy(err:find("/dev/full", 1, true))
      assert(io.open("/dev/full", "rb")):close()
    end)
  end)

  describe("perplexity", function()
    local text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."

    it("measures a file or standard input", function()
      local path = support.temporary(text)
      local status, out, err = run { "perplexity", stories(), path, "--ctx", "16", "--stride", "4" }
      assert.equal(0, status, err)
      assert.matches("^perplexity 1%.%d%d%d%d %+%- 0%.%d+\n$", out)
      assert.matches("^31 tokens of .* in 5 windows of 16, cpu; [%d.]+ tokens/s\n$", err)
      assert.equal(out, (select(2, run({ "perplexity", stories(), "-", "--ctx", "16", "--stride", "4" }, text))))
      os.remove(path)
    end)

    it("says what is wrong", function()
      assert.equal(1, (run { "perplexity", stories(), "/nonexistent" }))
      assert.equal(1, (run({ "perplexity", stories(), "-" }, "")))
      assert.equal(2, (run({ "perplexity", stories(), "-", "--ctx", "16", "--stride", "16" }, text)))
      assert.equal(2, (run { "perplexity", stories() }))
    end)
  end)

  describe("embed", function()
    it("writes a vector a line", function()
      local status, out, err = run { "embed", stories(), "Once upon a time", "Lily" }
      assert.equal(0, status, err)
      local first, second = out:match "^(%[.-%])\n(%[.-%])\n$"
      local vector = cjson.decode(first)
      assert.equal(64, #vector)
      assert.near(-0.016442, vector[1], 1e-6)
      assert.equal(second .. "\n" .. first .. "\n",
        (select(2, run({ "embed", stories() }, "Lily\n\nOnce upon a time\n"))))
      assert.not_equal(first .. "\n", (select(2, run { "embed", stories(), "Once upon a time", "--raw" })))
      assert.equal(2, (run { "embed", stories(), "x", "--pooling", "most" }))
    end)
  end)

  describe("inspect", function()
    it("shows metadata, tensors and sums", function()
      local status, out = run { "inspect", support.haiku_model }
      assert.equal(0, status)
      for _, text in ipairs { "qwen2", "blk.0.attn_q.weight", "tokenizer.ggml.tokens", "3.7 M parameters", "q8_0" } do
        assert.truthy(out:lower():find(text:lower(), 1, true), text)
      end
    end)

    it("writes JSON", function()
      local status, out = run { "inspect", support.haiku_model, "--json" }
      assert.equal(0, status)
      local about = cjson.decode(out)
      assert.equal("qwen2", about.architecture)
      assert.equal(3674368, about.parameters)
      assert.is_true(#about.tensors > 40 and #about.metadata > 10)
    end)
  end)

  describe("bench", function()
    it("measures, for people and as JSON", function()
      local arguments = { "bench", support.haiku_model, "--prompt-tokens", "32", "--tokens", "8", "--repeat", "2" }
      local status, out, err = run(arguments)
      assert.equal(0, status, err)
      assert.truthy(out:find "decode")
      arguments[#arguments] = "1" -- every run reads half a GB to measure the memory
      arguments[#arguments + 1] = "--json"
      local first, second = cjson.decode((select(2, run(arguments)))), cjson.decode((select(2, run(arguments))))
      for _, name in ipairs { "load_s", "prefill_tokens_per_s", "decode_tokens_per_s", "bandwidth_bytes_per_s",
        "bandwidth_share", "peak_bytes", "kv_bytes", "weight_bytes_per_token" } do
        assert.is_true(first[name] > 0, name)
      end
      assert.equal(first.logits_hash, second.logits_hash)
    end)

    it("counts what is read of experts", function()
      local path = "spec/fixtures/families/qwen3moe.gguf"
      local words = { "bench", path, "--device", "cpu", "--prompt-tokens", "8", "--tokens", "4", "--repeat", "1" }
      local status, out, err = run(words)
      assert.equal(0, status, err)
      assert.truthy(out:find "experts +%d.- %(33 %%%), counted", out)
      table.move({ "--batch", "1,9", "--context", "8", "--json" }, 1, 5, #words + 1, words)
      local about = cjson.decode((select(2, run(words))))
      assert.equal(about.expert_bytes * 2 / 6, about.rows[1].expert_bytes)
      assert.is_true(about.rows[2].expert_bytes > about.rows[1].expert_bytes)
    end)
  end)

  describe("bench, in a table,", function()
    local arguments = { "bench", support.haiku_model, "--batch", "1,3", "--context", "20,40,99999", "--tokens", "4",
      "--repeat", "1" }

    it("measures sequences together, whose logits do not depend on that", function()
      local words = table.move(arguments, 1, #arguments, 1, {})
      words[#words + 1] = "--json"
      local status, out, err = run(words)
      assert.equal(0, status, err)
      local about = cjson.decode(out)
      assert.equal(6, #about.rows)
      for i, row in ipairs(about.rows) do
        assert.same({ ({ 20, 20, 40, 40, 99999, 99999 })[i], ({ 1, 3 })[2 - i % 2] }, { row.context, row.batch })
        if i > 4 then
          assert.truthy(row.note:find("context ends", 1, true))
        else
          assert.is_true(row.prefill_tokens_per_s > 0 and row.step_s > 0 and row.decode_tokens_per_s > 0)
        end
      end
      assert.equal(about.rows[1].logits_hash, about.rows[2].logits_hash)
      assert.equal(about.rows[3].logits_hash, about.rows[4].logits_hash)
      assert.not_equal(about.rows[1].logits_hash, about.rows[3].logits_hash)
      assert.is_true(about.first_token_s > 0)
      local _, text = run(arguments)
      assert.truthy(text:find("\n     20     3 ", 1, true), text)
    end)

    it("wants lists of numbers, and a device that has stages", function()
      assert.equal(2, (run { "bench", support.haiku_model, "--batch", "1,x" }))
      assert.equal(2, (run { "bench", support.haiku_model, "--context", "" }))
      assert.equal(2, (run { "bench", support.haiku_model, "--context", "0" }))
      assert.equal(1, (run { "bench", support.haiku_model, "--batch", "1", "--context", "8", "--stages" }))
    end)

    it("measures a GPU without being asked for a table #gpu", function()
      if not tiny.has_gpu then return pending "there is no GPU here" end
      local status, out, err = run { "bench", support.haiku_model, "--device", "cuda", "--stages", "--json",
        "--context", "300", "--repeat", "2" }
      assert.equal(0, status, err)
      local about = cjson.decode(out)
      assert.equal(3, #about.rows)
      assert.is_true(about.copy_bytes_per_s > 1e11 and about.tensor_flops > 1e13)
      for _, row in ipairs(about.rows) do
        assert.is_true(row.prefill_share > 0 and row.prefill_share < 1 and row.decode_share > 0)
        assert.equal(about.rows[1].logits_hash, row.logits_hash)
      end
      assert.equal(4, #about.stages)
      assert.equal("sample", about.stages[3].stages[#about.stages[3].stages].name)
      status, out = run { "bench", support.haiku_model, "--device", "cuda", "--stages", "--batch", "1", "--context",
        "300", "--repeat", "1" }
      assert.equal(0, status)
      assert.truthy(out:find("\ngate_up ", 1, true), out)
    end)
  end)

  describe("arch", function()
    it("lists the architectures, and the parameters of one", function()
      local status, out = run { "arch" }
      assert.equal(0, status)
      assert.truthy(out:find("\ngpt%-oss +gpt%-oss 20B"))
      local families = cjson.decode((select(2, run { "arch", "--json" })))
      assert.equal("arcee", families[1].name)
      status, out = run { "arch", "gemma2" }
      assert.equal(0, status)
      assert.truthy(out:find("\ngemma2.attn_logit_softcapping +number", 1), out)
      assert.is_true(out:find("gemma2.attn_logit_softcapping", 1, true) < out:find("gemma2.context_length", 1, true))
      assert.truthy(out:find("\ngemma2.attention.head_count_kv +integer +1 to 65536 +attention.head_count\n"), out)
      local about = cjson.decode((select(2, run { "arch", "gpt2", "--json" })))
      assert.equal("halves", about.rope)
    end)

    it("names the nearest of an unknown one", function()
      local status, _, err = run { "arch", "lama" }
      assert.equal(1, status)
      assert.truthy(err:find("llama is nearest", 1, true), err)
      assert.equal(1, (run { "arch", "../arch/llama" }))
    end)
  end)

  describe("make-model", function()
    it("writes a model that runs", function()
      local path = os.tmpname()
      local status, _, err = run { "make-model", path, "--like", "tiny", "--type", "q8_0" }
      assert.equal(0, status, err)
      local code, out = run { "inspect", path, "--json" }
      assert.equal(0, code)
      assert.is_true(cjson.decode(out).parameters > 0)
      os.remove(path)
      assert.equal(2, (run { "make-model", path, "--like", "nothing" }))
    end)

    it("leaves nothing behind when Ctrl-C stops it", function()
      local folder = os.tmpname()
      os.remove(folder)
      assert(os.execute("mkdir " .. folder))
      os.execute(("timeout -s INT 0.3 %s make-model %s/m.gguf --like qwen2.5-7b --type f32 2>/dev/null")
        :format(quote(support.program), folder))
      assert.is_true(os.execute("rmdir " .. folder)) -- which wants it empty
    end)
  end)

  describe("chat", function()
    it("answers every line of a pipe, and writes only the answers to standard output", function()
      local status, out, err = run({ "chat", support.haiku_model, "--temp", "0" },
        'Write a haiku about the autumn moon that includes the word "twenty-nine".\n'
        .. "/reset\nWrite a haiku.\n/exit\nnever\n")
      assert.equal(0, status, err)
      local _, lines = out:gsub("\n", "")
      assert.equal(6, lines)
      assert.truthy(out:find("twenty-nine", 1, true))
    end)

    it("takes another template and its variables", function()
      local path = os.tmpname() .. ".jinja"
      local file = assert(io.open(path, "wb"))
      file:write("{% if mood != 'calm' %}{{ raise_exception('mood?') }}{% endif %}"
        .. "<|im_start|>user\n{{ messages[0].content }}")
      file:close()
      local words = { "chat", support.haiku_model, "--temp", "0", "-n", "2", "--template", path }
      assert.equal(1, (run(words, "Hi\n")))
      table.move({ "--set", 'mood="calm"' }, 1, 2, #words + 1, words)
      assert.equal(0, (run(words, "Hi\n")))
      os.remove(path)
      assert.equal(0, (run({ "chat", support.haiku_model, "-n", "2", "--template", "chatml" }, "Hi\n")))
    end)

    it("says what to do when the context is full", function()
      local status, _, err = run({ "chat", support.haiku_model, "--ctx", "64" },
        ("a very long question "):rep(40) .. "\nWrite a haiku.\n")
      assert.equal(0, status)
      assert.truthy(err:find("/reset", 1, true))
    end)

    it("takes commands with any line end, and says which ones it does not know", function()
      local status, out, err = run({ "chat", support.haiku_model }, "/foo\r\n/reset \r\n\r\n/exit\r\nnever\n")
      assert.equal(0, status)
      assert.equal("", out)
      assert.truthy(err:find("/foo", 1, true))
    end)
  end)

  describe("haiku", function()
    it("prints a haiku and its verdict", function()
      local status, out, err = run { "haiku" }
      assert.equal(0, status, out .. err)
      assert.truthy(out:find("Haiku anti-cheat PASSED (real CPU inference)\n", 1, true))
      assert.truthy(out:find "tokens/s")
    end)

    it("fails a model that writes no haiku", function()
      local status, out = run { "haiku", "--model", stories() }
      assert.equal(1, status)
      assert.truthy(out:find("Haiku anti-cheat FAILED: ", 1, true))
    end)
  end)
end)
