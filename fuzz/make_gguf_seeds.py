#!/usr/bin/env python3
"""Writes the seeds of the fuzz target `gguf`: the GGUF fixtures with one layer, few tokens and small types.

    pip install gguf==0.19.0 numpy
    python make_gguf_seeds.py        # -> tests/__fuzz__/gguf/corpus/*.gguf

A fixture is mostly weights, whose bytes are all alike to a reader. Without most of them a change of a few bytes hits the
header, where the reader decides.
"""
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "tests/fixtures"
SEEDS = {
    "llama": FIXTURES / "gguf_llama/model-F16.gguf",
    "gemma3": FIXTURES / "gguf_families/gemma3.gguf",
    "bert": FIXTURES / "gguf_families/bert.gguf",
    "flan_t5": FIXTURES / "gguf_families/flan_t5.gguf",
    "gpt2": FIXTURES / "gguf_families/gpt2.gguf",
    "mixtral": FIXTURES / "gguf_families/mixtral.gguf",
}
TABLES = ("token_embd.weight", "output.weight", "output.bias")
SKIPPED = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")


def cut(key, value, tokens):
    n_tokens = len(tokens)
    if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        return value[:n_tokens]
    if key == "tokenizer.ggml.merges":
        parts = [merge.split(" ") for merge in value]
        return [f"{a} {b}" for a, b in parts if {a, b, a + b} <= set(tokens)]
    if key.endswith(("block_count", "decoder_block_count")):
        return 1
    if key.endswith("vocab_size"):
        return n_tokens
    return value


def main():
    out = HERE / "tests/__fuzz__/gguf/corpus"
    out.mkdir(parents=True, exist_ok=True)
    for number, (name, path) in enumerate(SEEDS.items()):
        reader = gguf.GGUFReader(str(path))
        fields = {key: field for key, field in reader.fields.items() if key not in SKIPPED}
        # Byte-level vocabularies begin with the 256 bytes, and merges follow.
        n_tokens = 300 if fields["tokenizer.ggml.model"].contents() == "gpt2" else 64
        tokens = fields["tokenizer.ggml.tokens"].contents()[:n_tokens]
        writer = gguf.GGUFWriter(str(out / f"{name}.gguf"), reader.fields["general.architecture"].contents())
        for key, field in fields.items():
            value = cut(key, field.contents(), tokens)
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, value, field.types[0], sub_type=inner)
        quants = [gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q5_1]
        for tensor in reader.tensors:
            if ".blk." in f".{tensor.name}" and ".blk.0." not in f".{tensor.name}":
                continue
            data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if tensor.name in TABLES:
                data = data[:n_tokens]
            if data.ndim < 2:
                writer.add_tensor(tensor.name, data)
            elif data.shape[-1] % 32:
                writer.add_tensor(tensor.name, data.astype(np.float16))
            else:
                kind = quants[number % len(quants)]
                writer.add_tensor(tensor.name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()
