-- syllables.lua - syllables of English words by rule of thumb: groups of vowels, silent endings, and a list of words
-- that the rules get wrong. Good for a report, not for a verdict.
local syllables = {}

local EXCEPTIONS = {
  one = 1, once = 1, eleven = 3, seven = 2, eleventh = 3, every = 2, evening = 2, quiet = 2, poem = 2, being = 2,
  going = 2, seeing = 2, lion = 2, area = 3, idea = 3, radio = 3, fire = 1, hour = 1, our = 1, flower = 2, power = 2,
  tower = 2, shower = 2, world = 1, girl = 1, different = 2, family = 3, memory = 3, camera = 3, several = 2, io = 2,
  gpu = 3, cpu = 3, cuda = 2, haiku = 2, something = 2, someone = 2, sometimes = 2, somewhere = 2, lonely = 2,
  homeward = 2, people = 2, create = 2, science = 2, violin = 3, piano = 3, diary = 3, ruin = 2, cruel = 2, fuel = 2,
  moonlit = 2, firefly = 3, fireflies = 3, lifetime = 2, homework = 2, grapevine = 2, snowflake = 2, pinecone = 2,
  blueberry = 3, scarecrow = 2, scarecrows = 2, fireside = 2, sidewalk = 2, timepiece = 2, gateway = 2, wires = 1,
  eyes = 1, eye = 1, eyed = 1, naked = 2, wicked = 2, crooked = 2, jagged = 2, ragged = 2, aged = 1, hundred = 2,
}

---Syllables of one word, at least 1.
---@param word string
---@return integer
function syllables.word(word)
  word = word:lower():gsub("'s$", ""):gsub("[^a-z]", "")
  if EXCEPTIONS[word] then return EXCEPTIONS[word] end
  if word:sub(-1) == "s" and EXCEPTIONS[word:sub(1, -2)] then return EXCEPTIONS[word:sub(1, -2)] end
  local _, n = word:gsub("[aeiouy]+", "")
  local last3 = word:sub(-3)
  if word:find "[^aeiouy]e$" and not word:find "[^aeiouyl]le$" then
    n = n - 1 -- stone
  elseif word:find "[^aeiouy]es$" and not word:find "[csxz]es$" and not word:find "[cs]hes$" and not word:find "ges$"
    and not word:find "[^aeiouyl]les$" then
    n = n - 1 -- stones
  elseif last3:find "^[^td]ed$" and not last3:find "^[aeiouy]" and not word:find "[^aeiouyl]led$" then
    n = n - 1 -- turned
  end
  local _, split = word:gsub("[iu]a[^lr]", "") -- di-al, but ma-gi-cian
  if word:find "ying$" or word:find "eing$" then n = n + 1 end
  if split > 0 and not word:find "[ctsgq][iu]a" then n = n + split end
  return math.max(1, n)
end

---Syllables of a line; hyphens part words.
---@param line string
---@return integer
function syllables.line(line)
  local n = 0
  for word in line:gmatch "[%a'\u{2019}]+" do n = n + syllables.word(word) end
  return n
end

return syllables
