-- Grammars against a slow matcher, masks against brute force, rewinds against matchers that never went there.
-- KIGO_GRAMMAR_ROUNDS=1000 goes on for longer.
describe("masks of random grammars", function()
  local kigo = require "kigo"
  local core = require "kigo.core"
  local support = require "spec.support"
  local vocabulary = require "spec.fixtures.vocabulary"
  local random_grammar = require "spec.random_grammar"

  local rounds = math.tointeger(os.getenv "KIGO_GRAMMAR_ROUNDS" or 30)

  local function open(entries)
    local gguf <close> = assert(core.parse_gguf(vocabulary.file(entries), "spec"))
    return assert(core.tokenizer(gguf))
  end

  local pieces = { "ab", "abc", "ba", "aa", "aab", "aba", "b\"", "\"a", "é", "aé", "éa", "\xC3", "a\xC3", "\xA9b", "{a",
    "a}", ",a", "a,", "a,b", "}}", "\\n", "\\u00", "é", "ab", "\n", "\na", " a", "zz", "cab", "}\n" }

  -- Byte-level BPE with texts that several tokens write, a control token and an end.
  local bpe = open(vocabulary.bpe { pieces = pieces, special = { { "<eos>", 3 }, { "<thing>", 3 }, { "ab{", 4 } },
    entries = { { "tokenizer.ggml.eos_token_id", "u32", 256 + #pieces } } })
  -- SentencePiece: behind special tokens, and at the start, the first space is nobody's.
  local spm_pieces = {}
  for i, piece in ipairs { "a", "b", "▁", "▁a", "▁ab", "ab", "▁▁a", "é", "▁é", "\"", "{", "▁{" } do
    spm_pieces[i] = { piece, -i }
  end
  local spm = open(vocabulary.spm { pieces = spm_pieces })

  ---What the mask allows must be what is accepted alone.
  local function check_mask(matcher, tokenizer, name, step)
    local ids = assert(matcher:ids())
    local allowed = {}
    for _, id in ipairs(ids) do allowed[id] = true end
    for id = 0, tokenizer.size - 1, step or 1 do
      if matcher:allowed(id) ~= (allowed[id] or false) then
        error(("%s: behind %q token %d (%q) is %s"):format(name, matcher:text(), id, tokenizer:piece(id),
          allowed[id] and "in the mask" or "missing"), 0)
      end
    end
    return ids
  end

  ---Walk at random under the mask; every text that comes to an end must be accepted.
  local function walk(grammar, tokenizer, seed, options)
    local matcher <close> = assert(grammar:matcher(tokenizer, { start = options.start }))
    local seen = {}
    for i = 1, options.steps do
      local ids = check_mask(matcher, tokenizer, options.name, options.step)
      if #ids == 0 then
        -- only where a space must be written that every token loses at the start
        assert.is_true(options.start and i == 1, options.name .. ": a dead end behind " .. matcher:text())
        break
      end
      seen[i] = { text = matcher:text(), ids = ids, complete = matcher:is_complete() }
      local id = ids[1 + math.floor(core.uniform(seed, i, 0) * #ids)]
      if tokenizer:is_end(id) then break end
      assert.is_true(matcher:accept(id))
    end
    if matcher:is_complete() then assert.is_true(grammar:accepts(matcher:text()), options.name) end
    while matcher:text() ~= "" do -- and back
      local n = matcher:rewind()
      assert.equal(seen[n + 1].text, matcher:text())
      assert.same(seen[n + 1].ids, matcher:ids())
      assert.equal(seen[n + 1].complete, matcher:is_complete())
    end
    return #seen
  end

  it("agree with a slow matcher on texts", function()
    local n_accepted, n = 0, 0
    for seed = 1, rounds do
      local rules = random_grammar.make(seed)
      local grammar <close> = kigo.grammar(rules)
      local roll = random_grammar.dice(seed + 1000000)
      for i = 1, grammar and 20 or 0 do
        local text = i % 2 == 0 and random_grammar.derive(rules, rules.root, roll) or random_grammar.text(roll)
        if #text < 24 then
          local wanted = random_grammar.accepts(rules, text)
          assert.equal(wanted, grammar:accepts(text), ("seed %d: %q"):format(seed, text))
          n, n_accepted = n + 1, n_accepted + (wanted and 1 or 0)
        end
      end
    end
    assert.is_true(n > 10 * rounds and n_accepted > n // 4)
  end)

  it("allow what is accepted alone, and come back", function()
    local n = 0
    for seed = 1, rounds do
      local grammar <close> = kigo.grammar(random_grammar.make(seed))
      if grammar then n = n + walk(grammar, bpe, seed, { steps = 8, name = "seed " .. seed }) end
    end
    assert.is_true(n > 2 * rounds)
  end)

  it("know about the space that SentencePiece leaves out", function()
    for seed = 1, rounds do
      local rules = random_grammar.make(seed)
      rules.begin = rules.root
      rules.root = { "seq", seed % 3 == 0 and " " or { "repeat", " ", 0, 2 }, { "rule", "begin" } }
      if seed % 2 == 0 then rules.root = rules.begin end
      local grammar <close> = kigo.grammar(rules)
      if grammar then walk(grammar, spm, seed, { steps = 6, start = true, name = "seed " .. seed }) end
    end
  end)

  it("are those of all tokens of a full vocabulary", function()
    local gguf <close> = assert(kigo.open_gguf(support.fixture "vocab/qwen2.gguf"))
    local tokenizer <close> = assert(core.tokenizer(gguf))
    local step = rounds > 500 and 1 or 97
    local ANY, LETTER = { "class", negate = true }, { "class", 0x61, 0x7A }
    local function text(node) return { "regular", { "seq", '"', { "json", node }, '"' } } end
    local grammars = {
      { root = text { "repeat", ANY, 0 } },
      { root = text { "repeat", ANY, 3, 7 } },
      { root = text { "repeat", ANY, 2, 30 } },
      { root = text { "and", { "repeat", ANY, 0, 12 }, { "not", { "alt", "the", "name" } } } },
      { root = { "seq", text { "repeat", LETTER, 1 }, { "repeat", { "seq", ", ", { "rule", "root" } }, 0, 1 } } },
      { root = { "repeat", { "seq", { "repeat", { "class", 0x0A, 0x0A, negate = true }, 1 }, "\n" }, 2 } },
      { root = { "regular", { "repeat", { "class", 0xC0, 0x24F, 0x20, 0x20, 0x61, 0x7A }, 0 } } },
    }
    for i, rules in ipairs(grammars) do
      local grammar <close> = assert(kigo.grammar(rules))
      walk(grammar, tokenizer, i, { steps = 5, step = step, name = "grammar " .. i })
    end
  end)

  it("stay the same when the automaton's memory is used up", function()
    local other_than = { "class", 0x62, 0x62, negate = true }
    local item = { "regular", { "seq", { "repeat", other_than, 0, 400 }, "b", { "repeat", other_than, 0, 8 }, "b" } }
    local rules = { root = { "repeat", item, 0 } }
    local roomy <close> = assert(kigo.grammar(rules))
    local tight <close> = assert(kigo.grammar(rules, { memory = 1 << 18 }))
    local one <close> = assert(roomy:matcher(bpe))
    local other <close> = assert(tight:matcher(bpe))
    for i = 1, 150 do
      local ids = one:ids()
      assert.same(ids, other:ids())
      local id = ids[1 + math.floor(core.uniform(5, i, 0) * #ids)]
      if bpe:is_end(id) then break end
      assert.is_true(one:accept(id))
      assert.is_true(other:accept(id))
    end
    assert.equal(one:text(), other:text())
    assert.is_true(#one:text() > 50)
  end)
end)
