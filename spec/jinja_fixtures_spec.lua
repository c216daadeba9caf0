-- Every case of the template fixtures: the exact text, or the kind of fault. And what must hold for all of them:
-- whatever a message spells, its characters are never the template's own.
describe("kigo.template.jinja", function()
  local jinja = require "kigo.template.jinja"
  local json = require "kigo.json"
  local support = require "spec.support"

  local NOW = "2026-07-29 10:29:00"

  -- Names of the fixtures, none where they are not here.
  local function names()
    local list = {}
    local pipe <close> = assert(io.popen("ls " .. (support.shared or "../shared") .. "/fixtures/templates 2>/dev/null"))
    for line in pipe:lines() do list[#list + 1] = line:match "^(.*)%.jinja$" end
    return list
  end

  local function compiled(name)
    return assert(jinja.compile(support.read(support.fixture("templates/" .. name .. ".jinja")), { name = name }))
  end

  local function check_case(template, case)
    local text, message, _, kind = template:render(case.context, { now = NOW })
    if case.expected then
      assert.equal(case.expected, text and tostring(text) or kind .. ": " .. message, case.id)
    else
      assert.equal(case.error, kind, case.id .. ": " .. tostring(message) .. "; expected: " .. tostring(case.detail))
      if case.error == "raise" then assert.equal(case.message, message, case.id) end
    end
  end

  describe("renders like Python's Jinja", function()
    if not support.shared then it("the fixtures", function() support.fixture "templates" end) end
    for _, name in ipairs(names()) do
      it(name, function()
        local cases = assert(json.decode(support.read(support.fixture("templates/" .. name .. ".json")))).cases
        local template = compiled(name)
        assert.is_true(#cases > 10)
        for _, case in ipairs(cases) do check_case(template, case) end
      end)
    end
  end)
end)
