-- The page "Adding an architecture" of engine/README.md: what it says is run.
describe("the tutorial on architectures", function()
  local arch = require "kigo.arch"
  local core = require "kigo.core"
  local kigo = require "kigo"
  local build = require "spec.gguf_build"
  local support = require "spec.support"

  local page = support.read("engine/README.md"):match "\n## Adding an architecture\n(.-)\n## "
  local blocks = {}
  for block in page:gmatch "```lua\n(.-)```" do blocks[#blocks + 1] = block end

  -- A file as the page describes it.
  local function tale()
    local metadata = {
      ["general.architecture"] = "tale", ["tale.context_length"] = 64, ["tale.embedding_length"] = 32,
      ["tale.block_count"] = 2, ["tale.attention.head_count"] = 4, ["tale.residual_scale"] = 0.5,
      ["tale.attention.layer_norm_rms_epsilon"] = 1e-5,
    }
    local tensors = { { name = "token_embd.weight", shape = { 32, 40 } },
      { name = "output_norm.weight", shape = { 32 } } }
    for i = 0, 1 do
      for _, w in ipairs { { "attn_norm", 32 }, { "attn_q", 32, 32 }, { "attn_k", 32, 32 }, { "attn_v", 32, 32 },
        { "attn_output", 32, 32 }, { "ffn_up", 32, 48 }, { "ffn_down", 48, 32 } } do
        tensors[#tensors + 1] = { name = ("blk.%d.%s.weight"):format(i, w[1]), shape = { w[2], w[3] } }
      end
    end
    return support.temporary(build.random(metadata, tensors))
  end

  it("runs", function()
    assert.equal(2, #blocks)
    local path, printed = tale(), {}
    finally(function()
      os.remove(path)
      arch.families.tale = nil
    end)
    local model, message, code = kigo.load(path)
    assert.is_nil(model)
    assert.equal(core.err.UNSUPPORTED, code)
    assert.truthy(message:find('architecture "tale" is not known', 1, true))
    assert.truthy(message:find("engine/README.md", 1, true))
    arch.families.tale = assert(load(blocks[1], "=step 2"))()
    local env = setmetatable({ arg = { path }, print = function(x) printed[#printed + 1] = tostring(x) end },
      { __index = _G })
    assert(load(blocks[2], "=step 3", "t", env))()
    assert.equal("token_embd", printed[1])
    assert.equal("logits", printed[#printed - 1])
    assert.truthy(printed[#printed]:find "3, 40")
  end)
end)
