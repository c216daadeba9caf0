-- Examples and documentation run as they stand: what a newcomer copies must work.
local support = require "spec.support"

describe("examples", function()
  local kigo = os.getenv "KIGO" or "./build/kigo"

  local function run(command)
    local pipe = assert(io.popen(command .. " 2>&1"))
    local output = pipe:read "a"
    local ok, _, status = pipe:close()
    return output, ok and 0 or status
  end

  local function succeeds(command)
    local output, status = run(command)
    assert.equal(0, status, command .. " says:\n" .. output)
    return output
  end

  for _, name in ipairs { "01-chat", "02-sampler", "03-fork", "04-rewind", "05-look-inside", "07-tools",
    "08-template", "09-stream", "10-best-of-n", "11-self-consistency", "12-beam-search", "13-tree-of-thoughts",
    "14-guidance", "15-token-healing", "16-speculation", "17-logit-lens", "18-steering",
    "19-ban-phrase", "20-untrusted-sampler", "21-haiku-by-constraint", "22-json-extraction", "23-adapters" } do
    it("run: " .. name, function()
      assert.is_truthy(succeeds(kigo .. " examples/" .. name .. ".lua"):find "%a+ +%S")
    end)
  end

  -- A Lua without sanitizers cannot load a sanitized module.
  it("run in a Lua of your own #unsanitized", function()
    if not os.execute "command -v lua5.4 >/dev/null" then return pending "there is no lua5.4 here" end
    local folder = kigo:match "^(.*)/" or "."
    local output = succeeds(('LUA_CPATH="%s/?.so;;" lua5.4 examples/06-host.lua'):format(folder))
    assert.is_truthy(output:find("in Lua 5.4 on cpu", 1, true))
  end)

  it("run in a C program", function()
    local folder = kigo:match "^(.*)/" or "."
    local output = succeeds(folder .. "/embed " .. support.fixture "models/stories260K.gguf" .. " 'Once upon a time'")
    assert.is_truthy(output:find("Once upon a time, there was a little girl named Lily", 1, true))
  end)

  it("includes the README's first script", function()
    local code = support.read "README.md":match "```lua\n(.-)```"
    local path = support.temporary(code)
    os.rename(path, path .. ".lua")
    local output = succeeds(kigo .. " " .. path .. ".lua")
    os.remove(path .. ".lua")
    local _, n_lines = output:gsub("\n", "")
    assert.is_true(n_lines >= 6, output)
  end)

  it("names only files that exist in the README and the map", function()
    for _, document in ipairs { "README.md", "engine/README.md" } do
      local folder = document:match "^(.*/)" or ""
      for target in support.read(document):gmatch "%]%(([^)#]+)[^)]*%)" do
        if not target:find "^https?:" then
          local file = io.open(folder .. target, "rb")
          assert.is_truthy(file, document .. " points to " .. target)
          file:close()
        end
      end
    end
  end)
end)
