describe("kigo.load", function()
  local kigo = require "kigo"
  local support = require "spec.support"

  local function refused(path, options)
    local model, message, code = kigo.load(path, options)
    assert.is_nil(model)
    assert.is_string(message)
    assert.truthy(message:find(path, 1, true), message)
    return code, message
  end

  ---Load bytes from a temporary file; the code of the refusal.
  local function refused_bytes(bytes)
    local path = support.temporary(bytes)
    local code, message = refused(path)
    os.remove(path)
    return code, message
  end

  it("loads a model with its tokenizer and file", function()
    local path = support.fixture "models/stories260K.gguf"
    local model <close> = assert(kigo.load(path, { device = "reference", ctx = 64 }))
    assert.equal(path, model.path)
    assert.equal("llama", model.gguf:get "general.architecture")
    assert.equal(512, model.tokenizer.size)
    assert.equal(64, model.context)
  end)

  it("leaves the tokenizer out when asked", function()
    local model <close> = assert(kigo.load(support.fixture "models/stories260K.gguf", { tokenizer = false }))
    assert.is_nil(model.tokenizer)
    local seq <close> = assert(model:sequence {})
    assert.has_error(function() seq:feed "text" end)
    assert.has_error(function() seq:generate() end)
    assert.equal(2, seq:feed { 1, 2 })
  end)

  it("reports the progress of loading, and can be cancelled by it", function()
    local last
    local model <close> = assert(kigo.load(support.haiku_model, { progress = function(what, done, total)
      last = { what, done, total }
    end }))
    assert.truthy(model)
    assert.equal("load", last[1])
    assert.equal(last[3], last[2])
    local code = refused(support.haiku_model, { progress = function() return true end })
    assert.equal(kigo.err.CANCELLED, code)
  end)

  it("notices that a file became shorter after it was opened", function()
    local path = support.temporary(support.read(support.haiku_model))
    local gguf <close> = assert(kigo.open_gguf(path))
    local plan <close> = assert(require "kigo.arch".build(gguf))
    assert(io.open(path, "wb")):close()
    assert.equal(kigo.err.IO, select(3, kigo.core.model(plan, {})))
    os.remove(path)
  end)

  it("refuses files that are no models", function()
    assert.equal(kigo.err.IO, refused "/nonexistent/model.gguf")
    assert.equal(kigo.err.FORMAT, refused_bytes "")
    assert.equal(kigo.err.FORMAT, refused_bytes "GG")
    assert.equal(kigo.err.FORMAT, refused_bytes(("not a model"):rep(100)))
    local whole = support.read(support.fixture "models/stories260K.gguf")
    assert.equal(kigo.err.FORMAT, refused_bytes(whole:sub(1, 5000)))
    assert.equal(kigo.err.FORMAT, refused_bytes(whole:sub(1, -2)))
    assert.truthy(refused_bytes("FUGG" .. whole:sub(5)))
  end)

  it("refuses a folder", function()
    assert.is_true(refused "/tmp" < 0)
  end)

  it("names the nearest architecture when it meets an unknown one", function()
    local whole = support.read(support.fixture "models/stories260K.gguf")
    local at = assert(whole:find("llama", 1, true)) -- the value of general.architecture comes first
    local code, message = refused_bytes(whole:sub(1, at - 1) .. "llana" .. whole:sub(at + 5))
    assert.equal(kigo.err.UNSUPPORTED, code)
    assert.truthy(message:find("llana", 1, true))
    assert.truthy(message:find("(llama is nearest)", 1, true))
  end)

  it("raises for the caller's mistakes", function()
    local path = support.fixture "models/stories260K.gguf"
    assert.has_error(function() kigo.load() end)
    assert.error_matches(function() kigo.load(path, { contxt = 5 }) end, "contxt")
    assert.error_matches(function() kigo.load(path, { ctx = "5" }) end, "ctx")
    assert.error_matches(function() kigo.load(path, { ctx = 5.5 }) end, "ctx")
    assert.has_error(function() kigo.load(path, 5) end)
  end)

  it("and all that belongs to it tell the caller's line when he is wrong", function()
    local model <close> = assert(kigo.load(support.haiku_model, { threads = 1 }))
    local seq <close> = assert(model:sequence())
    for _, mistake in ipairs {
      function() kigo.load(support.haiku_model, { ctx = -1 }) end, function() model:step { 1 } end,
      function() model:logits "x" end, function() model:logits {} end, function() model:logits { 1 << 30 } end,
      function() model:draw({ seq }, 5) end, function() seq:draw(5) end, function() seq:feed { 1, "x" } end,
      function() seq:rewind(99) end, function() model:trace({ 1 }, { "nothing" }) end,
      function() model:trace({ "x" }, { "logits" }) end, function() kigo.chain { 5 } end,
      function() model.tokenizer:decode { "x" } end, function() model:restore {} end,
      function() seq:generate { max = "x" } end, function() kigo.chain { { kind = "x" } } end,
    } do
      local done, message = pcall(mistake)
      local line = debug.getinfo(mistake, "S").linedefined
      assert.is_false(done, line)
      local prefix = ("load_spec.lua:%d: "):format(line)
      assert.truthy(message:find(prefix, 1, true), message)
      assert.is_nil(message:find(prefix .. ".*load_spec.lua", 1), message)
    end
  end)

  it("refuses a device that is not here", function()
    assert.equal(kigo.err.UNSUPPORTED, refused(support.fixture "models/stories260K.gguf", { device = "abacus" }))
  end)

  it("gives a model that is of no use after it is closed", function()
    local model = assert(kigo.load(support.haiku_model))
    model:close()
    model:close()
    assert.has_error(function() model:sequence {} end)
    assert.has_error(function() model:chat { { role = "user", content = "x" } } end)
    assert.truthy(tostring(model):find "closed")
  end)

  it("and everything else refuse options that nobody knows", function()
    local model <close> = assert(kigo.load(support.haiku_model, { threads = 1 }))
    local seq <close> = model:sequence()
    local unknown = { sed = 1 }
    assert.has_error(function() model:sequence(unknown) end)
    assert.has_error(function() seq:fork(unknown) end)
    assert.has_error(function() model.tokenizer:encode("a", unknown) end)
    assert.has_error(function() model.tokenizer:decode({ 1 }, unknown) end)
    assert.has_error(function() kigo.stream(model.tokenizer, unknown) end)
    assert.has_error(function() kigo.core.make_model("/nonexistent", unknown) end)
    assert.has_error(function() seq:generate(unknown) end)
  end)
end)
