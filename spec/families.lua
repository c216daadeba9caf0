-- families.lua - the models of spec/fixtures/families, as make_families.py and make_more_families.py name them.
return {
  "llama_linear", "llama_yarn", "llama_factors", "qwen2moe", "qwen3moe", "phi2", "phi3_short", "phi3_long", "gemma",
  "gptneox", "gptneox_serial", "falcon", "falcon_new", "starcoder2", "stablelm", "stablelm_parallel", "stablelm_heads",
  "olmo2", "granite", "smollm3", "bert", "nomic_bert", "deepseek2", "deepseek2_kv_b", "deepseek2_v3", "lfm2", "lfm2moe",
  "olmo3", "olmoe", "granitemoe", "command_r", "cohere2", "exaone4", "exaone4_small", "glm4", "glm4moe", "dots1",
  "minimax_m2", "ernie4_5", "ernie4_5_moe", "hunyuan_dense", "hunyuan_moe", "seed_oss", "nemotron", "arcee",
  "starcoder", "ministral3",
}
