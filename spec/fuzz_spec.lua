-- Every input from outside under fire: the files of spec/fixtures/fuzz (seeds, and every finding so far), then
-- mutations of them for two seconds each. spec/fuzz.lua says how to go on for longer and how to repeat a failure.
describe("fuzz", function()
  local fuzz = require "spec.fuzz"
  local targets = require "spec.fuzz_targets"

  local names = {}
  for name in pairs(targets) do names[#names + 1] = name end
  table.sort(names)

  setup(function() io.stderr:write(("fuzz: KIGO_FUZZ_SEED=%d\n"):format(fuzz.seed)) end)

  for _, name in ipairs(names) do
    describe(name, function()
      teardown(targets[name].finish or function() end)

      for _, file in ipairs(fuzz.corpus(name)) do
        it("bears " .. file.name, function() fuzz.try(targets[name], file.bytes) end)
      end

      it("bears what nobody wrote", function() fuzz.run(name, targets[name]) end)
    end)
  end

  it("can be repeated", function()
    local function cases()
      local list = {}
      for i = 1, 100 do list[i] = fuzz.mutate(fuzz.dice(7, i), { "seed", "other seed" }) end
      return list
    end
    assert.same(cases(), cases())
    assert.not_equal(fuzz.mutate(fuzz.dice(7, 1), { "seed" }), fuzz.mutate(fuzz.dice(8, 1), { "seed" }))
  end)
end)
