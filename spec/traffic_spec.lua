-- What attention must compute and read, against a count of the pairs of positions that see each other.
describe("traffic", function()
  local kigo = require "kigo"
  local tiny = require "spec.tiny"
  local traffic = require "kigo.traffic"

  local WINDOWS = { plain = { 0, 20 }, narrow = { 20, 5 }, mixed = { 40, 0, 70, 1, 25, 90 }, hybrid = { 0 },
    both = { 0, 20 } } -- of layers with attention

  ---Positions that token number n sees in a layer.
  local function seen(window, n)
    local count = 0
    for position = 1, n do
      if window == 0 or position > n - window then count = count + 1 end
    end
    return count
  end

  for _, kind in ipairs { "plain", "narrow", "hybrid", "both" } do
    it("of attention ends where windows do: " .. kind, function()
      local model <close> = tiny.model { kind = kind }
      local stats, prompt = model:stats(), 0
      local each = 2 * tiny.heads * 2 * tiny.head_dim -- q.k, and the sum of values
      for n = 1, 60 do
        local flops, bytes = 0, 0
        for _, window in ipairs(WINDOWS[kind]) do
          flops = flops + each * seen(window, n)
          bytes = bytes + 4 * 2 * tiny.kv_heads * tiny.head_dim * seen(window, n)
        end
        prompt = prompt + flops
        assert.equal(flops, traffic.attention_flops(stats, n))
        assert.equal(prompt, traffic.prompt_attention_flops(stats, n))
        assert.equal(bytes, traffic.kv_bytes(stats, n))
      end
    end)
  end

  it("of attention is at most that of the widest, where more windows than four share their pages", function()
    local model <close> = tiny.model { kind = "mixed" }
    local stats, exact = model:stats(), 0
    for _, window in ipairs(WINDOWS.mixed) do exact = exact + 4 * tiny.heads * tiny.head_dim * seen(window, 100) end
    local counted, full = traffic.attention_flops(stats, 100), #WINDOWS.mixed * 4 * tiny.heads * tiny.head_dim * 100
    assert.is_true(counted >= exact and counted < full)
  end)

  it("of snapshots is memory of the cache too", function()
    local model <close> = tiny.model { kind = "hybrid" }
    local seq <close> = model:sequence {}
    seq:feed(tiny.ids(100))
    assert(seq:step())
    local stats = model:stats()
    assert.is_true(stats.n_states > 0 and stats.state_bytes > 0)
    assert.equal(stats.kv_bytes + stats.n_states * stats.state_bytes, traffic.cache_bytes(stats))
  end)

  it("of latent attention counts keys and values of their own width", function()
    local model <close> = assert(kigo.load "spec/fixtures/families/deepseek2.gguf")
    local flops = 0
    for _, group in ipairs(model:stats().page_groups) do flops = flops + group.attention_flops end
    local function of_arch(key) return model.gguf:get("deepseek2." .. key) end
    local widths = of_arch "attention.key_length" + of_arch "attention.value_length"
    assert.equal(2 * of_arch "block_count" * of_arch "attention.head_count" * widths, flops)
  end)
end)
