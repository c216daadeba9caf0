-- A conversation at a real terminal: script(1) is one, and keys are sent when the screen shows what they answer to.
describe("kigo.terminal", function()
  local support = require "spec.support"

  -- Says "a" for ever, slowly: an answer that only Ctrl-C ends in time.
  local SCRIPT = [[
    local kigo = require "kigo"
    local model <close> = assert(kigo.load(..., { threads = 1 }))
    local function slow()
      local t0 = kigo.now()
      repeat until kigo.now() - t0 > 0.02
      return 97
    end
    local chat <close> = assert(model:conversation { sample = slow })
    assert(require("kigo.terminal").chat(chat))
    io.stderr:write "good bye\n"
  ]]

  -- `steps`: { what the screen shows by then, the keys that are sent then }; every text is looked for behind the last.
  local function session(steps)
    local script, screen = os.tmpname(), os.tmpname()
    os.rename(support.temporary(SCRIPT), script .. ".lua")
    local keys = { [[
      after() { # after TEXT KEYS: wait for the text in what is new on the screen, then send the keys
        n=0
        until tail -c +$((seen + 1)) ]] .. screen .. [[ | grep -qF -- "$1"; do
          n=$((n + 1)); [ $n -lt 1000 ] || exit 1; sleep 0.02
        done
        seen=$(wc -c <]] .. screen .. [[)
        printf "$2"
      }
      seen=0
    ]] }
    for _, step in ipairs(steps) do keys[#keys + 1] = ("after '%s' '%s'\n"):format(step[1], step[2]) end
    os.execute(("( %s ) | script -qec '%s %s.lua %s' /dev/null >%s"):format(table.concat(keys), support.program, script,
      support.haiku_model, screen))
    local shown = support.read(screen)
    for _, path in ipairs { script, script .. ".lua", screen } do os.remove(path) end
    return shown
  end

  it("lives through Ctrl-C, at the prompt and in an answer, and streams", function()
    if not os.execute "command -v script >/dev/null" then return pending "there is no script(1) here" end
    local shown = session {
      { "> ", "\\003" }, { "Ctrl-C stops", "Hello.\\r" }, { "aaa", "\\003" }, { "(stopped)", "/reset\\r" },
      { "> ", "Again.\\r" }, { "aaa", "\\003" }, { "(stopped)", "/exit\\r" }, { "good bye", "" },
    }
    assert.truthy(shown:find("good bye", 1, true), shown)
    assert.equal(2, select(2, shown:gsub("%(stopped%)", "")))
  end)
end)
