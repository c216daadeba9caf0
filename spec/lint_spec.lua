local support = require "spec.support"

describe("lint", function()
  -- What the lint says of a function body, and whether it passed.
  local function lint(body)
    local path = support.temporary("static void f(void)\n{\n" .. body .. "\n}\n")
    local pipe = io.popen(support.program .. " scripts/lint.lua " .. path .. " 2>&1")
    local output = pipe:read("a")
    local passed = pipe:close()
    os.remove(path)
    return passed or false, output
  end

  it("finds nothing in the engine", function()
    local pipe = io.popen(support.program .. " scripts/lint.lua 2>&1")
    local output = pipe:read("a")
    assert.equal("", output)
    assert.is_true(pipe:close())
  end)

  for _, body in ipairs {
    "  at = at + size;", "  n_bytes = count * size;", "  n = 1 << shift;", "  at += size;", "  n *= 2;",
    "  n <<= bits;", "  p = kg_alloc(size + 1);", "  n = count * sizeof(float);", "  at = header.bytes.n + size;",
    "  at = at +\n    size;", "  for (i = 0; i < n; i++) at += size;", "  for (i = 0; i + 4 < n; i++) f();",
    "  /* sum: */ at = at + size;", "  c = '\"'; at = at + size; d = '\"';",
    "  n = 1; /* bounded: no */\n  at = at + size;",
    "  at = at + size; /* bounded: */", "  kg_grow(&items, n + 2);", "  at = text[at + size];",
  } do
    it("finds " .. body:gsub("%s+", " "), function()
      local passed, output = lint(body)
      assert.is_false(passed)
      assert.truthy(output:find("^%S+:%d+: "), output)
      assert.truthy(output:find("lint: 1 place:", 1, true), output)
    end)
  end

  for _, body in ipairs {
    "  if (!kg_add_size(at, size, &end)) return;", "  at = at + size; /* bounded: small */",
    "  /* bounded: they are\n   * small */\n  at = at + size;", "  for (i = 0; i < n; i += length) f(i);",
    "  n = 4 * BLOCK_SIZE + sizeof(int);", "  f(text + at, c->bytes + c->at);", "  kg_grow(&items, n + 1);",
    "  kg_fail_memory(err, n * sizeof *items, \"items\");", "  s = \"a + b\"; c = '+'; /* a + b */ i++; // a + b",
    "  const char *a, **b; a = (void *)b; n = -n; x = *a;",
  } do
    it("passes " .. body:gsub("%s+", " "), function()
      local passed, output = lint(body)
      assert.equal("", output)
      assert.is_true(passed)
    end)
  end

  it("fails for a file that is not there", function()
    local pipe = io.popen(support.program .. " scripts/lint.lua /nonexistent.c 2>&1")
    assert.truthy(pipe:read("a"):find("/nonexistent.c", 1, true))
    assert.is_falsy(pipe:close())
  end)
end)
