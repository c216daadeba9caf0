describe("kigo.meta", function()
  local kigo = require "kigo"
  local support = require "spec.support"

  -- Names of the functions that files declare, as { core = { now = true }, Tensor = { shape = true }, ... }.
  local function declared(...)
    local names = setmetatable({}, { __index = function(t, class)
      t[class] = {}
      return t[class]
    end })
    for _, file in ipairs { ... } do
      for class, name in support.read("lua/kigo/" .. file):gmatch "\nfunction (%w+)[.:]([%w_]+)" do
        names[class][name] = true
      end
    end
    return names
  end

  local function functions(class)
    local names = {}
    for name, value in pairs(class) do
      if type(value) == "function" then names[name] = true end
    end
    return names
  end

  it("describes every function of the engine, and no others", function()
    local names = declared("meta.lua", "model.lua", "sequence.lua", "sample.lua", "sandbox.lua", "logprobs.lua",
      "embed.lua")
    assert.same(functions(kigo.core), names.core)
    assert.same(functions(kigo.core.unicode), names.Unicode)
    for class, methods in pairs(kigo.core.classes) do assert.same(functions(methods), names[class], class) end
  end)

  -- The names of the ---@field lines of a class.
  local function fields(text, class)
    local names = {}
    for name in text:match("@class " .. class .. "\n(.-)\n[^-]"):gmatch "@field ([%w_]+)" do names[name] = true end
    return names
  end

  local function keys(t)
    local names = {}
    for name in pairs(t) do names[name] = true end
    return names
  end

  ---A tokenizer whose file names every special token.
  local function full_tokenizer()
    local vocabulary = require "spec.fixtures.vocabulary"
    local entries = {}
    for name in ("bos eos eot eom unknown seperator padding cls mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep")
      :gmatch "%S+" do
      entries[#entries + 1] = { "tokenizer.ggml." .. name .. "_token_id", "u32", 0 }
    end
    local gguf <close> = assert(kigo.core.parse_gguf(vocabulary.file(vocabulary.bpe { entries = entries }), "spec"))
    return assert(kigo.core.tokenizer(gguf))
  end

  it("describes the fields that are there", function()
    local text = support.read("lua/kigo/meta.lua"):gsub("\n\n", "\n;\n")
    assert.same(keys(kigo.err), fields(text, "kigo.err"))
    -- On the CPU wherever it runs: a GPU does not count the bytes of experts.
    local model <close> = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 }))
    local tokenizer <close> = full_tokenizer()
    local seq <close> = model:sequence()
    seq:feed { 1 }
    assert.same(keys(model:stats()), fields(text, "kigo.ModelStats"))
    assert.same(keys(model.gguf:tensors()[1]), fields(text, "kigo.TensorInfo"))
    assert.same(keys(model.gguf:entries()[1]), fields(text, "kigo.GgufEntry"))
    for name, handle in pairs { Model = model, Sequence = seq, Tokenizer = tokenizer,
      Stream = kigo.stream(model.tokenizer), Mark = seq:mark() } do
      for field in pairs(fields(text, "kigo." .. name)) do
        if field ~= "reason" then -- nil is its value here
          assert.not_nil(handle[field], name .. "." .. field)
        end
      end
    end
  end)
end)
