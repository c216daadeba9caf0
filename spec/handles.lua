-- handles.lua - what handles_spec runs in a process of its own, whose heap is so small that the collector comes by at
-- nearly every allocation: calls of every kind of handle, while a finalizer closes the object of that very call.
--
--   kigo spec/handles.lua [rounds [name]]
package.path = "./?.lua;" .. package.path
local core = require "kigo.core"
local tiny = require "spec.tiny"
local vocabulary = require "spec.fixtures.vocabulary"

local function tokenizer()
  local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.bpe { pieces = { "ab", "a " } }), "spec"))
  return assert(core.tokenizer(gguf))
end

-- Each makes a handle and says what to call while it is being closed.
local numbers = {}
for i = 1, 300 do numbers[i] = i end
local calls = {
  ["tensor:clone"] = function() return core.tensor(numbers), function(t) t:clone() end end,
  ["tensor:softmax"] = function() return core.tensor(numbers), function(t) t:softmax() end end,
  ["tensor:topk"] = function() return core.tensor(numbers), function(t) t:topk(9) end end,
  ["tensor:argmax"] = function() return core.zeros(30, 10), function(t) t:argmax() end end,
  ["tensor:row"] = function() return core.zeros(30, 10), function(t) t:row(3) end end,
  ["tensor[i]"] = function() return core.zeros(30, 10), function(t) return t[3] end end,
  ["tensor:totable"] = function() return core.zeros(30, 10), function(t) t:totable() end end,
  ["tensor:bytes"] = function() return core.zeros(30, 100), function(t) t:bytes() end end,
  ["tensor:fill_"] = function() return core.zeros(301), function(t) t:fill_(1, numbers) end end,
  ["chain:candidates"] = function()
    local chain = core.chain {}
    return core.tensor(numbers), function(t) chain:candidates(t) end
  end,
  ["sequence:feed"] = function(model)
    local ids = tiny.ids(9)
    return model:sequence {}, function(s) s:feed(ids) end
  end,
  ["sequence:expect"] = function(model)
    local ids = tiny.ids(9)
    return model:sequence {}, function(s) s:expect(ids) end
  end,
  ["sequence:lookup"] = function(model)
    local s = model:sequence {}
    s:feed { 1, 2, 3, 1, 2 }
    return s, function() s:lookup(3, 1, 9) end
  end,
  ["sequence.stats"] = function(model) return model:sequence {}, function(s) return s.stats end end,
  ["sequence:fork"] = function(model) return model:sequence {}, function(s) s:fork() end end,
  ["sequence:mark"] = function(model) return model:sequence {}, function(s) s:mark() end end,
  ["sequence:tokens"] = function(model)
    local s = model:sequence {}
    s:feed(tiny.ids(9))
    return s, function() s:tokens() end
  end,
  ["sequence:rewind"] = function(model)
    local s = model:sequence {}
    s.state = { 1, 2, 3 }
    local mark = s:mark()
    return s, function() s:rewind(mark) end
  end,
  ["sequence:save"] = function(model)
    local s = model:sequence {}
    s:feed { 1, 2 }
    s.state = { 1, 2, { 3 } }
    return s, function() s:save "/dev/null/nowhere" end
  end,
  ["model:restore"] = function() return tiny.model {}, function(m) m:restore "/dev/null/nowhere" end end,
  ["sequence:attached"] = function(model) return model:sequence {}, function(s) s:attached() end end,
  ["sequence.logits"] = function(model)
    local s = model:sequence {}
    s:feed { 1 }
    return s, function() return s.logits end
  end,
  ["matcher:ids"] = function()
    local grammar = assert(core.grammar { root = { "repeat", { "class", 0x61, 0x7A }, 0 } })
    return assert(grammar:matcher(tokenizer())), function(m) m:ids() end
  end,
  ["matcher:forced"] = function()
    local grammar = assert(core.grammar { root = { "seq", ("ab "):rep(9), { "bytes", 0x61, 0x62 } } })
    return assert(grammar:matcher(tokenizer())), function(m) m:forced() end
  end,
  ["grammar:matcher"] = function()
    return assert(core.grammar { root = "a" }), function(g) return g:matcher() end
  end,
  ["grammar:accepts"] = function()
    return assert(core.grammar { root = "a" }), function(g) return g:accepts "a" end
  end,
  ["sequence:constraint"] = function(model)
    local letters = assert(core.grammar { root = { "repeat", { "class", 0x21, 0x4F }, 0 } })
    model.tokenizer = model.tokenizer or tiny.tokenizer()
    local s = assert(model:sequence {}:constrain(letters))
    s:push(1)
    return s, function() return s:constraint(), s:forced(), s:is_over() end
  end,
  ["sequence:constrain"] = function(model)
    local letters = assert(core.grammar { root = { "repeat", { "class", 0x21, 0x4F }, 0 } })
    model.tokenizer = model.tokenizer or tiny.tokenizer()
    return model:sequence {}, function(s) s:constrain(letters, { after = "x" }) end
  end,
  ["sequence:constrain with points"] = function(model)
    local word = { "repeat", { "class", 0x21, 0x4F }, 1 }
    local words = assert(core.grammar { root = { "point", word, name = "w" } })
    local options = { points = { w = { complete = function() return {} end, partial = function() return {} end } } }
    model.tokenizer = model.tokenizer or tiny.tokenizer()
    return model:sequence {}, function(s)
      s:constrain(words, options)
      s:feed { 1, 2, 3 }
      s:constraint()
      return s.logits
    end
  end,
  ["matcher:copy"] = function()
    return assert(core.grammar { root = "ab" }:matcher()), function(m) return m:copy():text() end
  end,
  ["matcher:mask"] = function()
    local word = { "repeat", { "class", 0x61, 0x7A }, 1 }
    local words = assert(core.grammar { root = { "point", word, name = "w" } })
    local vocabulary_ = tokenizer()
    local matcher = words:matcher(vocabulary_, { points = { w = function() return {} end } })
    return core.zeros(vocabulary_.size), function(t) matcher:mask(t) end
  end,
  ["core.stream"] = function()
    local stop = { "ab", "b" }
    return tokenizer(), function(t) core.stream(t, { stop = stop }):copy() end
  end,
  ["core.chain"] = function()
    local breakers = { "a", "b" }
    return tokenizer(), function(t)
      core.chain { { kind = "dry", multiplier = 1, breakers = breakers, tokenizer = t } }
    end
  end,
  ["model:trace_rows"] = function(model)
    local s, list = model:sequence {}, {}
    s:feed { 1, 2, 3 }
    list[1] = s
    return s, function() model:trace_rows(list, "embd") end
  end,
  ["model:advance"] = function(model)
    local s, chain = model:sequence {}, core.chain {}
    s:feed { 1, 2, 3 }
    return s, function()
      model:advance({ { seq = s, from = 0, rows = core.zeros(3, tiny.vocab) } }, {})
      model:advance({}, { { seq = s, chain = chain } })
    end
  end,
  ["model:draw"] = function(model)
    local s, chain = model:sequence {}, core.chain {}
    s:feed { 1, 2, 3 }
    return chain, function() model:draw({ s }, chain) end
  end,
  ["model:sequence"] = function() return tiny.model {}, function(m) m:sequence() end end,
  ["model:logits"] = function()
    local ids = { 1, 2 }
    return tiny.model {}, function(m) m:logits(ids) end
  end,
  ["model:trace"] = function()
    local ids, names = { 1, 2 }, { "embd", "logits" }
    return tiny.model {}, function(m) m:trace(ids, names) end
  end,
  ["sequence:hook"] = function(model)
    local names, nop = { "embd", "logits" }, function() end
    return model:sequence {}, function(s) tostring(s:hook(names, nop)) end
  end,
  ["model:residual"] = function() return tiny.model {}, function(m) m:residual() end end,
  ["model:tensor"] = function() return tiny.model {}, function(m) m:tensor("token_embd.weight", 3, 2) end end,
  ["model:zeros"] = function() return tiny.model {}, function(m) m:zeros(30, 10) end end,
  ["model:unembed"] = function()
    local x = core.zeros(3, tiny.hidden)
    return tiny.model {}, function(m) m:unembed(x) end
  end,
  ["tensor:rows"] = function() return core.zeros(30, 10), function(t) t:rows(3, 4) end end,
  ["tensor:to"] = function(model) return core.zeros(30, 10), function(t) t:to(model) end end,
  ["model:values"] = function() return tiny.model {}, function(m) m:values() end end,
  ["model:stats"] = function() return tiny.model {}, function(m) m:stats() end end,
  ["gguf:get"] = function() return tiny.gguf(), function(g) g:get "general.architecture" end end,
  ["gguf:entries"] = function() return tiny.gguf(), function(g) g:entries() end end,
  ["gguf:tensors"] = function() return tiny.gguf(), function(g) g:tensors() end end,
  ["gguf:tensor"] = function() return tiny.gguf(), function(g) g:tensor "output_norm.weight" end end,
  ["gguf:values"] = function() return tiny.gguf(), function(g) g:values "output_norm.weight" end end,
  ["core.plan"] = function() return tiny.gguf(), function(g) core.plan(g) end end,
  ["plan:ops"] = function() return tiny.plan(), function(p) p:ops() end end,
  ["plan:weights"] = function() return tiny.plan(), function(p) p:weights() end end,
  ["plan:value_names"] = function() return tiny.plan(), function(p) p:value_names() end end,
  ["plan:value"] = function() return tiny.plan(), function(p) p:value(3) end end,
  ["plan:info"] = function() return tiny.plan(), function(p) p:info() end end,
  ["sandbox:call"] = function()
    local values = { 1, "text", { x = 2 } }
    return core.sandbox("return function(x, t) t:mul_(2) return x, { x }, 'text' .. #x end"), function(s)
      s:call(nil, values, core.zeros(30))
    end
  end,
  ["sandbox:sample"] = function()
    return core.sandbox("return function(l, s) s.state.x = { 1 } return l:argmax() end"), function(s)
      s:sample(nil, core.zeros(30), nil, {})
    end
  end,
  ["sandbox:stats"] = function() return core.sandbox "", function(s) s:stats() end end,
  ["sandbox:restart"] = function() return core.sandbox "", function(s) s:restart() end end,
  ["core.model"] = function()
    local options = { device = "reference" }
    return tiny.plan(), function(p) core.model(p, options) end
  end,
}

collectgarbage()
collectgarbage("setpause", 0)
collectgarbage("setstepmul", 1000)

local names = {}
for name in pairs(calls) do
  if not arg[2] or arg[2] == name then names[#names + 1] = name end
end
table.sort(names)
local n_closed = 0
for _, name in ipairs(names) do
  local model <close> = tiny.model {}
  collectgarbage()
  local live = core.alloc_counts()
  for i = 1, tonumber(arg[1]) or 50 do
    local handle, call = calls[name](model)
    setmetatable({}, { __gc = function() handle:close() end })
    for _ = 1, i % 10 do local _ = {} end -- so that the collector comes at another place each time
    local ok, message = pcall(call, handle)
    if not ok then
      assert(message:find("is closed", 1, true), ("%s: %s"):format(name, message))
      n_closed = n_closed + 1
    end
    handle:close()
  end
  collectgarbage()
  assert(live + 400 > core.alloc_counts(), name .. " leaks") -- Lua's own blocks are counted too
end
print(("%d calls, %d found their object closed"):format(#names, n_closed))
