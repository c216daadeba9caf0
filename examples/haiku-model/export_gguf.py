"""Write a trained haiku model as a GGUF file (qwen2 architecture, byte-level BPE, ChatML template).

usage: export_gguf.py MODEL.pt OUT.gguf [q8_0|f16|f32]      (needs torch, regex, numpy, gguf)
"""

import sys

import gguf
import numpy as np

import haiku_data as H
from train import load_checkpoint

Q8_0 = gguf.GGMLQuantizationType.Q8_0
FILE_TYPES = {
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "f32": gguf.LlamaFileType.ALL_F32,
}
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
# Our names of a block's parts, and GGUF's.
PARTS = {
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def add_hyperparameters(writer, config):
    writer.add_context_length(config["context"])
    writer.add_embedding_length(config["dim"])
    writer.add_block_count(config["layers"])
    writer.add_feed_forward_length(config["ffn"])
    writer.add_head_count(config["heads"])
    writer.add_head_count_kv(config["kv_heads"])
    writer.add_rope_freq_base(config["theta"])
    writer.add_layer_norm_rms_eps(config["eps"])
    writer.add_vocab_size(config["vocab"])


def add_tokenizer(writer, bpe):
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(bpe.tokens)
    writer.add_token_types([control if token in H.SPECIAL else normal for token in bpe.tokens])
    writer.add_token_merges([f"{a} {b}" for a, b in bpe.merges])
    writer.add_bos_token_id(bpe.id["<|endoftext|>"])
    writer.add_eos_token_id(bpe.id["<|im_end|>"])
    writer.add_pad_token_id(bpe.id["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def add_tensor(writer, name, tensor, kind):
    """Matrices in the kind asked for; vectors always in float32."""
    values = tensor.float().numpy()
    if values.ndim == 1 or kind == "f32":
        writer.add_tensor(name, values.astype(np.float32))
    elif kind == "f16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, Q8_0), raw_dtype=Q8_0)


def main(source, out, kind="q8_0"):
    checkpoint, bpe = load_checkpoint(source)
    config, state = checkpoint["config"], checkpoint["state"]
    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_name("kigo haiku 4M")
    writer.add_description("Writes haiku with a required word; trained from scratch on line banks written for kigo")
    writer.add_license("MIT")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(2)
    add_hyperparameters(writer, config)
    add_tokenizer(writer, bpe)
    add_tensor(writer, "token_embd.weight", state["embed.weight"], kind)
    add_tensor(writer, "output_norm.weight", state["norm.weight"], kind)
    for i in range(config["layers"]):
        for ours, theirs in PARTS.items():
            for part in ("weight", "bias"):
                key = f"blocks.{i}.{ours}.{part}"
                if key in state:
                    add_tensor(writer, f"blk.{i}.{theirs}.{part}", state[key], kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
