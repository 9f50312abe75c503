"""Writes a llama model of transformers' layout as a GGUF file.

All matrices are of one format, except the embedding, which is the head, too: that is Q8_0, as it is in
files that llama.cpp's converter makes for models of these sizes.
"""

import json

import gguf
import numpy
import torch
from safetensors import safe_open

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(source, out, kind):
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    describe(writer, config)
    add_vocabulary(writer, config["vocab_size"])
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():
                add(writer, config, kind, (name, tensors.get_tensor(name)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer, config):
    rope = config.get("rope_parameters") or config
    writer.add_name("bench")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def add_vocabulary(writer, vocab):
    words = ["<s>", "<pad>", "</s>", "<unk>"] + [f"t{idx}" for idx in range(4, vocab)]
    types = [gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (vocab - 4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types(types)
    writer.add_token_merges(["t 4"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)


def add(writer, config, kind, tensor):
    name, values = tensor
    values = values.to(torch.float32).numpy()
    if name == "lm_head.weight":
        return
    if name == "model.embed_tokens.weight":
        name, kind = "token_embd", gguf.GGMLQuantizationType.Q8_0
    elif name == "model.norm.weight":
        name = "output_norm"
    else:
        _, _, layer, rest = name.split(".", 3)
        rest = rest.removesuffix(".weight")
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        key = heads.get(rest.rsplit(".", 1)[-1])
        if key:
            values = permute(values, config[key])
        name = f"blk.{layer}.{NAMES[rest]}"
    if values.ndim == 1:
        return writer.add_tensor(f"{name}.weight", values)
    packed = gguf.quants.quantize(numpy.ascontiguousarray(values), kind)
    writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)


def permute(values, heads):
    """Rows in llama.cpp's order of rotary pairs."""
    rows, columns = values.shape
    split = values.reshape(heads, 2, rows // heads // 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)
