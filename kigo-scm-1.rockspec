rockspec_format = "3.0"
package = "kigo"
version = "scm-1"
source = { url = "." }
description = {
  summary = "A Lua-scriptable inference engine for language models",
  detailed = [[
    A C engine (GGUF files, tokenizers, transformer forward pass, key/value cache, samplers) that exports tensors,
    models, tokenizers and samplers into Lua, where templates, sampling, generation and architectures are scripts.
  ]],
  license = "MIT",
}
dependencies = { "lua ~> 5.4", "lua-cjson >= 2.1" }
test_dependencies = { "busted >= 2.1", "luacheck >= 1.1" }
build = {
  type = "cmake",
  variables = { CMAKE_BUILD_TYPE = "Release", CMAKE_INSTALL_PREFIX = "$(PREFIX)" },
}
test = { type = "busted" }
