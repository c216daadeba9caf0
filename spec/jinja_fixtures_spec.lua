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

  -- The cases of one fixture; the file read last is kept, since specs about one template stand together.
  local last_name, last_cases
  local function cases_of(name)
    if name ~= last_name then
      local file = support.read(support.fixture("templates/" .. name .. ".json"))
      last_name, last_cases = name, assert(json.decode(file)).cases
    end
    return last_cases
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
        local cases, template = cases_of(name), compiled(name)
        assert.is_true(#cases > 10)
        for _, case in ipairs(cases) do check_case(template, case) end
      end)
    end
  end)

  -- ---- where text came from ----

  local OPEN, CLOSE = "\u{e000}", "\u{e001}"

  -- A copy of data with `change` applied to every text that a user, a tool or a document may hold.
  local function changed(v, change, key)
    if type(v) == "string" then return (key == "role" or key == "type") and v or change(v) end
    if type(v) ~= "table" or v == json.null then return v end
    if json.is_array(v) then
      local list = {}
      for i, item in ipairs(v) do list[i] = changed(item, change) end
      return json.array(list)
    end
    local fields, keys = {}, json.keys(v)
    for _, name in ipairs(keys) do fields[name] = changed(v[name], change, name) end
    return json.object(fields, keys)
  end

  local function with_texts(context, change)
    local copy = {}
    for name, v in pairs(context) do
      local is_text = name == "messages" or name == "tools" or name == "documents"
      copy[name] = is_text and changed(v, change) or v
    end
    return copy
  end

  -- What looks like a control token in the text of a template.
  local function tokens_of(source)
    local list, seen = {}, {}
    for _, pattern in ipairs { "<|[^|<>%s]+|>", "<[%w_/|\u{ff5c}\u{2581}]+>", "%[/?[%u_]+%]" } do
      for token in source:gmatch(pattern) do
        -- a template that splits a text at a token and joins the parts again writes the token itself
        local is_cut = source:find("join('" .. token .. "')", 1, true)
        if not seen[token] and not is_cut then list[#list + 1], seen[token] = token, true end
      end
    end
    return list
  end

  local function each_case(name, change, check)
    local cases, template, rendered = cases_of(name), compiled(name), 0
    for i = 1, #cases, 3 do -- some with the generation prompt and some without
      local case = cases[i]
      local text = template:render(with_texts(case.context, change), { now = NOW })
      if text then
        check(text, case.id)
        rendered = rendered + 1
      end
    end
    assert.is_true(rendered > 0)
  end

  -- Which bytes of the whole text are the template's own: "+" or "-" each.
  local function provenance(text)
    local marks = {}
    for i, run in ipairs(text) do marks[i] = (run.own and "+" or "-"):rep(#run.text) end
    return table.concat(marks)
  end

  describe("keeps texts foreign", function()
    if not support.shared then it("in the fixtures", function() support.fixture "templates" end) end
    for _, name in ipairs(names()) do
      it("whatever they are, in " .. name, function()
        -- every letter becomes one that no template has
        local function disguise(text)
          return (text:gsub("%w", function(c) return utf8.char(0xe000 + c:byte()) end))
        end
        each_case(name, disguise, function(text, id)
          for _, run in ipairs(text) do
            assert.is_false(run.own and run.text:find "[\xee\xef][\x80-\xa3]" ~= nil, id .. ": " .. run.text)
          end
        end)
      end)

      it("and control tokens in them, in " .. name, function()
        local source = support.read(support.fixture("templates/" .. name .. ".jinja"))
        local tokens, seen = tokens_of(source), 0
        local all = OPEN .. table.concat(tokens, CLOSE .. OPEN) .. CLOSE
        each_case(name, function(text) return text .. all end, function(text, id)
          local whole, marks = tostring(text), provenance(text)
          for _, token in ipairs(tokens) do
            local marked, at = OPEN .. token .. CLOSE, 1
            while true do
              local first, last = whole:find(marked, at, true)
              if not first then break end
              assert.is_nil(marks:sub(first, last):find("+", 1, true), id .. ": " .. token)
              at, seen = last + 1, seen + 1
            end
          end
        end)
        assert.is_true(seen > 0 or #tokens == 0)
      end)
    end
  end)
end)
