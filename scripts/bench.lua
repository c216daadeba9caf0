-- bench.lua - speed and memory of models on the CPU, a line each; `kigo bench MODEL` shows all figures of one.
--   kigo scripts/bench.lua MODEL...
local bench = require "kigo.bench"

print(("%-40s %12s %12s %10s %8s"):format("model", "prefill t/s", "decode t/s", "bandwidth", "load s"))
for _, path in ipairs { ... } do
  local figures, message = bench.measure(path, { load = { device = "cpu" } })
  if not figures then
    io.stderr:write("bench: ", message, "\n")
    os.exit(1, true)
  end
  print(("%-40s %12.1f %12.1f %8.0f %% %8.3f"):format(path:match "[^/]+$", figures.prefill_tokens_per_s,
    figures.decode_tokens_per_s, 100 * figures.bandwidth_share, figures.load_s))
end
