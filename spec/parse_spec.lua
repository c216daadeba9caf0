describe("kigo.parse", function()
  local kigo = require "kigo"
  local parse = require "kigo.parse"
  local support = require "spec.support"

  ---The answer as plain data: { content, reasoning, { name, arguments, id }... }
  local function flat(answer)
    local list = { answer.content, answer.reasoning or false }
    for _, call in ipairs(answer.tool_calls) do list[#list + 1] = { call.name, call.arguments, call.id } end
    return list
  end

  local function check(format, text, expected, options)
    assert.same(expected, flat(parse.text(format, text, options)), text)
  end

  ---What somebody who sees nothing but the deltas knows in the end; the deltas keep their own rules.
  local function collect(parser, pieces, hold)
    local got = { content = "", reasoning = "", tool_calls = {} }
    local ended = 0
    local function take(deltas)
      for _, delta in ipairs(deltas) do
        local call = got.tool_calls[delta.index]
        if delta.type == "content" or delta.type == "reasoning" then
          assert.is_true(#delta.text > 0)
          got[delta.type] = got[delta.type] .. delta.text
        elseif delta.type == "call" then
          assert.equal(#got.tool_calls + 1, delta.index)
          got.tool_calls[delta.index] = { name = delta.name, id = delta.id, arguments = "" }
        elseif delta.type == "arguments" then
          assert.equal(#got.tool_calls, delta.index)
          call.arguments = call.arguments .. delta.text
        elseif delta.type == "call_end" then
          ended = ended + 1
          assert.equal(ended, delta.index)
          assert.equal(call.arguments, delta.call.arguments)
          assert.equal(call.name, delta.call.name)
          call.id = delta.call.id
        else
          assert.equal("withdrawn", delta.type)
          assert.is_falsy(hold)
          assert.equal(#got.tool_calls, delta.index)
          got.tool_calls[delta.index] = nil
        end
      end
    end
    for _, piece in ipairs(pieces) do take(parser:add(piece)) end
    take(parser:finish())
    assert.equal(#got.tool_calls, ended)
    if got.reasoning == "" then got.reasoning = nil end
    return got
  end

  local CALL = '{"name": "get_weather", "arguments": {"city": "Z\u{fc}rich", "days": 3}}'
  local ARGUMENTS = '{"city": "Z\u{fc}rich", "days": 3}'

  describe("reasoning", function()
    it("stands between its markers at the start, without the line breaks beside them", function()
      check("plain", "<think>\nHm.\n\n  So.\n</think>\n\nYes.\n", { "Yes.\n", "Hm.\n\n  So." })
      check("plain", "\n<think>Hm.</think>Yes.", { "Yes.", "Hm." })
      check("plain", "[THINK]Hm.[/THINK]Yes.", { "Yes.", "Hm." }, { think = { "[THINK]", "[/THINK]" } })
      check("plain", "<think>\n\n</think>\n\nYes.", { "Yes.", false })
    end)

    it("goes on where the prompt has opened it", function()
      check("plain", "Hm.\n</think>\n\nYes.", { "Yes.", "Hm." }, { thinking = true })
      check("plain", "<think>\nHm.\n</think>\n\nYes.", { "Yes.", "Hm." }, { thinking = true })
      check("plain", "Hm. But", { "", "Hm. But" }, { thinking = true })
      assert.is_true(parse.is_thinking "<|im_start|>assistant\n<think>\n")
      assert.is_false(parse.is_thinking "<|im_start|>assistant\n<think>\n\n</think>\n\n")
      assert.is_false(parse.is_thinking "")
    end)

    it("is text anywhere else", function()
      check("plain", "The tag <think> opens, </think> closes.", { "The tag <think> opens, </think> closes.", false })
    end)
  end)

  describe("formats", function()
    it("hermes: JSON between tags", function()
      check("hermes", "<tool_call>\n" .. CALL .. "\n</tool_call>", { "", false, { "get_weather", ARGUMENTS } })
      check("hermes", "<think>\nHm.\n</think>\n\nLet me see.\n<tool_call>\n" .. CALL .. "\n</tool_call>\n<tool_call>\n"
        .. '{"arguments": {}, "name": "now"}\n</tool_call>\n', { "Let me see.", "Hm.", { "get_weather", ARGUMENTS },
          { "now", "{}" } })
      check("hermes", '<tool_call>{"name": "now"}</tool_call>Done.', { "Done.", false, { "now", "{}" } })
      check("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"\\u00e9\\"}"}</tool_call>',
        { "", false, { "f", '{"x": "\u{e9}"}' } })
      check("hermes", '<tool_call>[{"name": "f"}, {"name": "g", "arguments": null, "id": "7"}]</tool_call>',
        { "", false, { "f", "{}" }, { "g", "{}", "7" } })
      check("hermes", "<tool_call>" .. CALL, { "", false, { "get_weather", ARGUMENTS } }) -- the end took its place
    end)

    it("qwen3_coder: arguments between tags, which become JSON", function()
      local function tagged(value)
        return "<tool_call>\n<function=f>\n<parameter=x>\n" .. value .. "\n</parameter>\n</function>\n</tool_call>"
      end
      check("qwen3_coder", "I look.\n\n" .. tagged "3", { "I look.", false, { "f", '{"x": 3}' } })
      check("qwen3_coder", tagged "Z\u{fc}rich \"CH\"", { "", false, { "f", '{"x": "Z\u{fc}rich \\"CH\\""}' } })
      check("qwen3_coder", tagged "line\n  line\n", { "", false, { "f", '{"x": "line\\n  line\\n"}' } })
      check("qwen3_coder", tagged "True", { "", false, { "f", '{"x": true}' } })
      check("qwen3_coder", tagged "[1, {}]", { "", false, { "f", '{"x": [1, {}]}' } })
      check("qwen3_coder", "<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nNone\n</parameter>\n"
        .. "</function>", { "", false, { "f", '{"a": 1, "b": null}' } })
      local tools = { { type = "function", ["function"] = { name = "f", parameters = { type = "object",
        properties = { x = { type = "string" } } } } } }
      check("qwen3_coder", tagged "3", { "", false, { "f", '{"x": "3"}' } }, { tools = tools })
    end)

    it("llama3: an object, built-in calls, code", function()
      check("llama3", '{"name": "f", "parameters": {"x": 1}}', { "", false, { "f", '{"x": 1}' } })
      check("llama3", '\n{"type": "function", "name": "f", "parameters": {"x": 1}}; '
        .. '{"name": "g", "parameters": null}\n', { "", false, { "f", '{"x": 1}' }, { "g", "{}" } })
      check("llama3", '<|python_tag|>{"name": "f", "parameters": {}}', { "", false, { "f", "{}" } })
      check("llama3", '<|python_tag|>brave_search.call(query="a \\"b\\", c", n=3)',
        { "", false, { "brave_search", '{"query": "a \\"b\\", c", "n": 3}' } })
      check("llama3", '<|python_tag|>print("x")\nprint("y")',
        { "", false, { "python", [[{"code": "print(\"x\")\nprint(\"y\")"}]] } })
      check("llama3", 'See: <function=f>{"x": 1}</function>', { "See: ", false, { "f", '{"x": 1}' } })
    end)

    it("llama3: not every object is a call", function()
      for _, text in ipairs { '{"name": "Ada", "born": 1815}', '{"name": "f"}', '{"name": "f", "parameters": 3}',
        '{"name": "f", "parameters": {}, "description": "a tool"}', '{"name": "f", "parameters": {}} is the answer' } do
        check("llama3", text, { text, false })
      end
      local tools = { { ["function"] = { name = "f" } } }
      check("llama3", '{"name": "f", "parameters": {}}', { "", false, { "f", "{}" } }, { tools = tools })
      local other = '{"name": "g", "parameters": {}}'
      check("llama3", other, { other, false }, { tools = tools })
    end)

    it("mistral: a list, or names with arguments", function()
      check("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}, "id": "abc"}, '
        .. '{"name": "g", "arguments": {}}]', { "", false, { "f", '{"x": 1}', "abc" }, { "g", "{}" } })
      check("mistral", 'Wait.[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]77[ARGS]{}',
        { "Wait.", false, { "f", '{"x": 1}' }, { "g", "{}", "77" } })
    end)

    it("deepseek: control tokens around each call, old and new", function()
      check("deepseek", "</think>Wait.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        .. '{"x": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```'
        .. "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", { "Wait.", false, { "f", '{"x": 1}' }, { "g", "{}" } },
        { thinking = true })
      check("deepseek", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>'
        .. "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        { "", false, { "f", '{"x": 1}' }, { "g", "{}" } })
      check("deepseek", '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>', { "", false, { "f", '{"x": 1}' } })
      for name, block in pairs { ["deepseek_v3.2"] = "function_calls", deepseek_v4 = "tool_calls" } do
        check(name, ('ok\n\n<｜DSML｜%s>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="true">3'
          .. '</｜DSML｜parameter>\n<｜DSML｜parameter name="y" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
          .. '<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n</｜DSML｜%s>'):format(block, block),
          { "ok", false, { "f", '{"x": "3", "y": 3}' }, { "g", "{}" } })
      end
    end)

    it("harmony: channels", function()
      check("harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
        .. "<|return|>", { "Yes.", "Hm." })
      check("harmony", "<|channel|>analysis<|message|>1<|end|><|start|>assistant<|channel|>commentary<|message|>I look."
        .. "<|end|><|start|>assistant<|channel|>analysis<|message|>2<|end|><|start|>assistant<|channel|>commentary "
        .. 'to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>', { "I look.", "1\n\n2", { "f", '{"x": 1}' } })
      check("harmony", ' to=functions.f<|channel|>commentary json<|message|>{"x": 1}',
        { "", false, { "f", '{"x": 1}' } })
      check("harmony", "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        { "", false, { "python", '{"code": "print(1)"}' } })
      check("harmony", "<|channel|>final<|message|>Yes.", { "Yes.", false })
    end)

    it("gemma4: a token for quotes", function()
      check("gemma4", '<|tool_call>call:f{x:<|"|>Z\u{fc}rich, "CH"<|"|>,n:3,on:true,off:None,l:[1,{a:<|"|>b<|"|>}]}'
        .. "<tool_call|>",
        { "", false, { "f", '{"x": "Z\u{fc}rich, \\"CH\\"", "n": 3, "on": true, "off": null, "l": [1, {"a": "b"}]}' } })
      check("gemma4", "<|channel>thought\nHm.<channel|>ok<|tool_call>call:f{}<tool_call|>"
        .. "<|tool_call>call:g{}<tool_call|>",
        { "ok", "Hm.", { "f", "{}" }, { "g", "{}" } }, { think = { "<|channel>thought", "<channel|>" } })
    end)

    it("pythonic: calls as Python writes them", function()
      check("pythonic", [[<|tool_call_start|>[f(x='it\'s', y="a\n", z=[1, {'k': None}, True]), g()]<|tool_call_end|>]],
        { "", false, { "f", [[{"x": "it's", "y": "a\n", "z": [1, {"k": null}, true]}]] }, { "g", "{}" } })
    end)

    it("others: minimax, minicpm5, kimi, tool_calls, command, gigachat", function()
      check("minicpm5", [[<function name="f"><param name="x">[{'a': 'b'}]</param></function>]],
        { "", false, { "f", '{"x": [{"a": "b"}]}' } })
      check("gigachat", '<|function_call|>{"name": "f", "arguments": {}}', { "", false, { "f", "{}" } })
      check("minimax", '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">a b</parameter>\n</invoke>\n'
        .. '<invoke name="g">\n</invoke>\n</minimax:tool_call>', { "", false, { "f", '{"x": "a b"}' }, { "g", "{}" } })
      check("kimi", "ok<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        .. '{"x": 1}<|tool_call_end|><|tool_calls_section_end|>', { "ok", false, { "f", '{"x": 1}', "functions.f:0" } })
      check("tool_calls", '<tool_calls>[{"name": "f", "arguments": {}, "id": "1"}]</tool_calls>',
        { "", false, { "f", "{}", "1" } })
      check("command", '<|START_ACTION|>[\n  {"tool_call_id": "0", "tool_name": "f", "parameters": {"x": 1}}\n]'
        .. "<|END_ACTION|>", { "", false, { "f", '{"x": 1}', "0" } })
    end)

    it("hands arguments over decoded, too", function()
      local text = '<tool_call>{"name": "f", "arguments": {"b": [1, 2.5, null], "a": {}}}</tool_call>'
      local call = parse.text("hermes", text).tool_calls[1]
      assert.equal(1, call.values.b[1])
      assert.equal("integer", math.type(call.values.b[1]))
      assert.equal(2.5, call.values.b[2])
      assert.equal(kigo.json.null, call.values.b[3])
      assert.equal("table", type(call.values.a))
    end)
  end)

  describe("what fits no format", function()
    local odd = {
      hermes = { "<tool_call>", "<tool_call>\n</tool_call>", "<tool_call>{}</tool_call>", "<tool_call>f(x)</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"x": tru}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1}',
        '<tool_call>{"name": "f", "arguments": {"x": 1}}}</tool_call>', '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>', '<tool_call>{"name": "f", "name": "g"}</tool_call>',
        '<tool_call>[{"name": "f"}, {"nam": "g"}]</tool_call>', "<tool_call>{'name': 'f'}</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"x": "\n"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 01}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 18446744073709551616}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": "\\x"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1,}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": ' .. ('{"x":'):rep(200) .. "1" .. ("}"):rep(200) .. "}</tool_call>" },
      qwen3_coder = { "<tool_call>\n<function=f>\n<parameter=x>\n1\n</function>", "<function=",
        "<function=>\n</function>", "<tool_call><function=f></function></tool>",
        ("<function=" .. ("f"):rep(300) .. "></function>") },
      llama3 = { '<|python_tag|>{"name": "f"}', "{", "{}", '<function=f>x</function>' },
      mistral = { "[TOOL_CALLS]", "[TOOL_CALLS][", "[TOOL_CALLS]f", "[TOOL_CALLS]f[ARGS]", "[TOOL_CALLS]f[ARGS]{}x",
        "[TOOL_CALLS][1]", "[TOOL_CALLS][ARGS]{}" },
      deepseek = { "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>f", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>1",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{}", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}x",
        "<｜tool▁call▁begin｜><｜tool▁sep｜>{}<｜tool▁call▁end｜>" },
      ["deepseek_v3.2"] = { "<｜DSML｜function_calls>", '<｜DSML｜function_calls><｜DSML｜invoke name="f">',
        '<｜DSML｜function_calls><｜DSML｜invoke name="f"><｜DSML｜parameter name="x">1</｜DSML｜parameter>' },
      harmony = { "<|channel|>", "<|channel|>final", "<|channel|>commentary to=functions.f<|message|>{x}<|call|>",
        "<|start|>" .. ("x"):rep(600) .. "<|message|>", "Hello.", " to=functions.f" },
      gemma4 = { "<|tool_call>", "<|tool_call>call:f", "<|tool_call>call:f{", "<|tool_call>call:f{x:y}<tool_call|>",
        "<|tool_call>call:{}<tool_call|>", '<|tool_call>call:f{x:<|"|>}<tool_call|>', "<|tool_call>call:f{}x" },
      pythonic = { "<|tool_call_start|>", "<|tool_call_start|>[f]", "<|tool_call_start|>[f(1)]",
        "<|tool_call_start|>[f(x=y)]", "<|tool_call_start|>[f(x='a)]", "<|tool_call_start|>[f()]x" },
      minimax = { "<minimax:tool_call>", '<minimax:tool_call><invoke name="f">' },
      kimi = { "<|tool_call_begin|>", "<|tool_call_begin|>f<|tool_call_argument_begin|>x", "<|tool_call_begin|>"
        .. "<|tool_call_argument_begin|>{}" },
    }
    for format, texts in pairs(odd) do
      it("stays text: " .. format, function()
        for _, text in ipairs(texts) do
          check(format, text, { text, false })
          check(format, "before\n" .. text .. "\nafter\n", { "before\n" .. text .. "\nafter\n", false })
        end
      end)
    end

    it("is code behind <|python_tag|>, where there is something", function()
      check("llama3", "<|python_tag|>", { "<|python_tag|>", false })
      check("llama3", "<|python_tag|>{}", { "<|python_tag|>{}", false })
    end)

    it("does not hide the calls behind it", function()
      check("hermes", "<tool_call>oops <tool_call>" .. CALL .. "</tool_call>",
        { "<tool_call>oops ", false, { "get_weather", ARGUMENTS } })
    end)

    it("is withdrawn from who watches, or never told", function()
      local text = '<tool_call>{"name": "f", "arguments": {"x": 1}}!</tool_call>'
      local kinds = {}
      local parser = parse.new "hermes"
      for _, deltas in ipairs { parser:add(text), parser:finish() } do
        for _, delta in ipairs(deltas) do
          if kinds[#kinds] ~= delta.type then kinds[#kinds + 1] = delta.type end
        end
      end
      assert.same({ "call", "arguments", "withdrawn", "content" }, kinds)
      local held = collect(parse.new("hermes", { hold = true }), { text }, true)
      assert.same({ content = text, tool_calls = {} }, held)
    end)
  end)

  describe("streaming", function()
    it("tells of a call before it is complete", function()
      local parser = parse.new "hermes"
      assert.same({}, parser:add "<tool_")
      assert.same({}, parser:add 'call>\n{"na')
      assert.same({}, parser:add 'me": "f", ')
      assert.same({ { type = "call", index = 1, name = "f" }, { type = "arguments", index = 1, text = "{" },
        { type = "arguments", index = 1, text = '"' }, { type = "arguments", index = 1, text = "x" } },
        parser:add '"arguments": {"x')
      assert.same({}, parser:result().tool_calls)
      parser:add '": 1}}\n</tool_call>'
      assert.equal('{"x": 1}', parser:result().tool_calls[1].arguments)
    end)

    it("holds back no more than what may become a marker", function()
      local parser = parse.new "hermes"
      assert.equal("a < b", parser:add "a < b <tool"[1].text)
      assert.equal(" <toolbox", parser:add "box"[1].text)
    end)

    -- The property: texts glued together from markers and noise, cut anywhere, mean what they mean whole.
    it("does not depend on where the text is cut", function()
      local words = { "<think>", "</think>", "<tool_call>", "</tool_call>", "\n", "\n\n", " ", "text", "\u{fc}", "{",
        "}", '{"name": "f", "arguments": {"x": [1, "a\\n", null]}}', '{"name": "g", "parameters": {}}', '"name"', ": ",
        "<function=f>", "<parameter=x>", "3", "</parameter>", "</function>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]",
        "<|python_tag|>", "a.call(x=1)", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>",
        "f<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```json\n{}\n```", "<|channel|>", "analysis",
        "final", "commentary to=functions.f", "<|message|>", "<|end|>", "<|start|>assistant", "<|call|>", ";", "\\",
        "\xff", "<｜DSML｜function_calls>", '<｜DSML｜invoke name="f">', '<｜DSML｜parameter name="x" string="true">',
        "</｜DSML｜parameter>", "</｜DSML｜invoke>", "</｜DSML｜function_calls>",
        "<tool_call>" .. CALL .. "</tool_call>", "[TOOL_CALLS]f[ARGS]" .. ARGUMENTS, '<|python_tag|>f.call(x="1")',
        "<function=f>\n<parameter=x>\n3\n</parameter>\n</function>", "<tool_calls>[" .. CALL .. "]</tool_calls>",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>" .. ARGUMENTS .. "<｜tool▁call▁end｜>",
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>" }
      local state = 29
      local function dice(n)
        state = (state * 6364136223846793005 + 1442695040888963407)
        return (state >> 33) % n + 1
      end
      local n_calls = 0
      for _, format in ipairs(parse.formats) do
        for _ = 1, 100 do
          local parts = {}
          for i = 1, dice(12) do parts[i] = words[dice(#words)] end
          local text = table.concat(parts)
          local options = { thinking = dice(4) == 1, hold = dice(4) == 1 }
          local whole = parse.text(format.name, text, options)
          n_calls = n_calls + #whole.tool_calls
          local pieces, at = {}, 1
          local longest = ({ 1, 3, 20 })[dice(3)]
          while at <= #text do
            local n = dice(longest)
            pieces[#pieces + 1] = text:sub(at, at + n - 1)
            at = at + n
          end
          local got = collect(parse.new(format.name, options), pieces, options.hold)
          assert.same(flat(whole), flat(got), format.name .. ": " .. text)
        end
      end
      assert.is_true(n_calls > 50)
    end)

    it("takes a long text in its stride", function()
      local long = ("<tool_call>{" .. (" "):rep(50)):rep(2000)
      assert.equal(long, parse.text("hermes", long).content)
      local value = ("a   "):rep(50000)
      local answer = parse.text("qwen3_coder", "<function=f><parameter=x>" .. value .. "</parameter></function>")
      assert.equal(#value + #'{"x": ""}', #answer.tool_calls[1].arguments)
    end)
  end)

  describe("the format of a model", function()
    it("is read out of its chat template", function()
      local expected = {
        ["Qwen-Qwen2.5-7B-Instruct"] = "hermes", ["Qwen-Qwen3-0.6B"] = "hermes", ["MiMo-VL"] = "hermes",
        ["ibm-granite-granite-4.1"] = "hermes", ["Qwen3-Coder"] = "qwen3_coder", ["Qwen3.5-4B"] = "qwen3_coder",
        ["StepFun3.5-Flash"] = "qwen3_coder", ["meta-llama-Llama-3.1-8B-Instruct"] = "llama3",
        ["meta-llama-Llama-3.2-3B-Instruct"] = "llama3", ["mistralai-Mistral-Nemo-Instruct-2407"] = "mistral",
        ["unsloth-mistral-Devstral-Small-2507"] = "mistral", ["deepseek-ai-DeepSeek-V3.1"] = "deepseek",
        ["deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"] = "deepseek", ["deepseek-ai-DeepSeek-V3.2"] = "deepseek_v3.2",
        ["deepseek-ai-DeepSeek-V4-Flash-0731"] = "deepseek_v4", ["openai-gpt-oss-120b"] = "harmony",
        ["Kimi-K2-Instruct"] = "kimi", ["MiniMax-M2"] = "minimax", ["google-gemma-2-2b-it"] = "plain",
        ["microsoft-Phi-3.5-mini-instruct"] = "plain", ["unsloth-Apriel-1.5"] = "tool_calls",
        ["CohereForAI-c4ai-command-r7b-12-2024-tool_use"] = "command",
      }
      for name, format in pairs(expected) do
        assert.equal(format, (parse.recognise(support.read(support.fixture("templates/" .. name .. ".jinja")))), name)
      end
      assert.equal("plain", (parse.recognise(nil)))
      assert.same({ "[THINK]", "[/THINK]" }, select(2, parse.recognise "x [THINK] y"))
    end)
  end)

  -- What templates write for calls of earlier turns is what their models were taught to write.
  describe("the calls that public templates write", function()
    local ENDS = { "<|im_end|>", "</s>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<｜end▁of▁sentence｜>", "[e~[",
      "<|call|>", "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>", "<sep>", "<turn|>", "<|message_sep|>",
      "<|tool_response>" }

    ---The text without the last end token and what follows it.
    local function cut(text)
      local last
      for _, token in ipairs(ENDS) do
        local at = text:find(token, 1, true)
        while at do
          if not last or at > last then last = at end
          at = text:find(token, at + 1, true)
        end
      end
      return last and text:sub(1, last - 1) or text
    end

    local function render(template, context, n, generate)
      local variables = {}
      for name, value in pairs(context) do variables[name] = value end
      variables.messages, variables.add_generation_prompt = table.move(context.messages, 1, n, 1, {}), generate
      local segments = template:render_with(variables, "2026-07-29 10:29:00")
      return segments and kigo.template.text(segments)
    end

    ---Calls and arguments as the message has them.
    local function wanted_of(message)
      local list = {}
      for i, call in ipairs(message.tool_calls) do
        local f = call["function"] or call
        local arguments = f.arguments
        if type(arguments) == "string" then arguments = kigo.json.decode(arguments) end
        list[i] = { f.name, arguments }
      end
      return list
    end

    ---How many turns with calls of the fixture were read back.
    local function read_back(name)
      local source = support.read(support.fixture("templates/" .. name .. ".jinja"))
      local format, think = parse.recognise(source)
      local template = assert(kigo.template.new(source))
      local n = 0
      for _, case in ipairs(kigo.json.decode(support.read(support.fixture("templates/" .. name .. ".json"))).cases) do
        local context = case.context
        for k, message in ipairs(case.id:find "/gen$" and context.messages or {}) do
          local is_call = type(message.tool_calls) == "table" and #message.tool_calls > 0
          local prompt = is_call and render(template, context, k - 1, true)
          local whole = prompt and render(template, context, k, false)
          if whole and whole:sub(1, #prompt) == prompt then
            local answer = parse.text(format, cut(whole:sub(#prompt + 1)), { think = think,
              thinking = parse.is_thinking(prompt, think),
              tools = context.tools ~= kigo.json.null and context.tools or nil })
            local got = {}
            for i, call in ipairs(answer.tool_calls) do got[i] = { call.name, call.values } end
            assert.same(wanted_of(message), got, name .. " " .. case.id)
            n = n + 1
          end
        end
      end
      return n
    end

    for name, least in pairs {
      ["Qwen-Qwen2.5-7B-Instruct"] = 6, ["Qwen-Qwen3-0.6B"] = 3, ["Qwen3-Coder"] = 5, ["Qwen3.5-4B"] = 5,
      ["meta-llama-Llama-3.1-8B-Instruct"] = 9, ["meta-llama-Llama-3.2-3B-Instruct"] = 8,
      ["mistralai-Mistral-Nemo-Instruct-2407"] = 1, ["unsloth-mistral-Devstral-Small-2507"] = 4,
      ["deepseek-ai-DeepSeek-V3.1"] = 7, ["deepseek-ai-DeepSeek-V3.2"] = 2, ["deepseek-ai-DeepSeek-V4-Flash-0731"] = 10,
      ["openai-gpt-oss-120b"] = 9, ["ibm-granite-granite-4.1"] = 8, ["MiniMax-M2"] = 4, ["unsloth-Apriel-1.5"] = 8,
      ["LFM2.5-8B-A1B"] = 5, ["google-gemma-4-31B-it"] = 1, ["openbmb-MiniCPM5-1B"] = 4,
      ["CohereForAI-c4ai-command-r7b-12-2024-tool_use"] = 4,
    } do
      it("are read back: " .. name, function() assert.is_true(read_back(name) >= least) end)
    end
  end)

  describe("a format of one's own", function()
    it("is registered by name", function()
      local shout = { name = "shout", markers = { "!!" }, recognise = function(source) return source == "shout" end,
        read = function(reader, answer)
          local name = reader:name({ "!" }, 64)
          if not name then return nil end
          answer:call(name)
          answer:arguments "{}"
          return true
        end }
      parse.register(shout)
      finally(function() table.remove(parse.formats, 1) end)
      assert.equal("shout", (parse.recognise "shout"))
      check("shout", "a!!f!b!!", { "ab!!", false, { "f", "{}" } })
      assert.has_error(function() parse.register { name = "x" } end)
      assert.has_error(function() parse.register { name = "x", recognise = function() end } end)
    end)

    it("that raises is its owner's to mend", function()
      parse.register { name = "broken", markers = { "!" }, recognise = function() return false end,
        read = function() error "my mistake" end }
      finally(function() table.remove(parse.formats, 1) end)
      local parser = parse.new "broken"
      local ok, message = pcall(parser.add, parser, "a!")
      assert.is_false(ok)
      assert.truthy(message:find("my mistake", 1, true))
    end)
  end)

  it("refuses what is no use of it", function()
    assert.has_error(function() parse.new "hermess" end)
    assert.has_error(function() parse.new(nil) end)
    assert.has_error(function() parse.new("plain", { thinkin = true }) end)
    assert.has_error(function() parse.text("plain", nil) end)
    local parser = parse.new "plain"
    parser:finish()
    assert.has_error(function() parser:add "more" end)
    assert.same({}, parser:finish())
    assert.equal(parse, kigo.parse)
  end)
end)
