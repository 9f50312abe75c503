#!/usr/bin/env python3
"""Writes blocks.json: random blocks of GGML's types, and the float32 numbers that they stand for.

    pip install gguf==0.19.0
    python make_blocks.py            # -> blocks.json beside this script

All bits are random, so that every bit of a block is seen; what the gguf package makes of them is the truth.
Numbers are the hexadecimal digits of little-endian float32.
"""
import json
from pathlib import Path

import gguf
import numpy as np

TYPES = ["BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Where the scales of binary16 lie in a block, so that they are ordinary numbers in most blocks.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}


def main() -> None:
    random = np.random.default_rng(20240517)
    out = {}
    for name in TYPES:
        kind = getattr(gguf.GGMLQuantizationType, name)
        n_elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_blocks = 512 // n_elements
        blocks = random.integers(0, 256, size=(n_blocks, n_bytes), dtype=np.uint8)
        # The last block keeps whatever scale it has, be it infinite.
        for at in SCALES.get(name, []):
            scales = random.normal(0, 0.1, size=n_blocks - 1).astype("<f2")
            blocks[:-1, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
        with np.errstate(all="ignore"):
            values = gguf.dequantize(blocks.reshape(1, -1), kind).astype("<f4")
        assert values.size == 512, name
        out[name] = {"number": int(kind), "blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()}
    path = Path(__file__).with_name("blocks.json")
    path.write_text(json.dumps(out, indent=0) + "\n", encoding="utf-8")


main()
