-- Handles against the collector: a finalizer that runs in the middle of a call may close the object of that very call
-- (spec/handles.lua). The sanitized build sees what the plain one only may.
describe("handles", function()
  local core = require "kigo.core"
  local tiny = require "spec.tiny"
  local support = require "spec.support"

  it("bear that finalizers close their objects meanwhile", function()
    local pipe = assert(io.popen(("%s spec/handles.lua 2>&1"):format(support.program)))
    local said = pipe:read "a"
    assert(pipe:close(), said)
    assert.is_true(tonumber(said:match "(%d+) found their object closed") > 500, said)
  end)

  it("have finalizers that check what they are called with", function()
    local model <close> = tiny.model {}
    local s <close> = model:sequence {}
    local t <close> = core.zeros(4)
    for _, handle in ipairs { model, s, t } do
      local finalize = getmetatable(handle).__gc
      for _, wrong in ipairs { 1, "text", {}, io.stdout, handle == t and s or t } do
        assert.is_false((pcall(finalize, wrong)))
      end
    end
    assert.equal(4, #t)
    assert.equal(0, s:pos())
  end)
end)
