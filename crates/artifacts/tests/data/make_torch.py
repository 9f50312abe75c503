"""Makes the tiny PyTorch checkpoints of the tests, good and hostile. Needs torch 2.11.0.

    python make_torch.py
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

OUT = Path(__file__).parent / "torch"
torch.manual_seed(0)

base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
shared = torch.arange(12, dtype=torch.float32)
good = OrderedDict(
    f32=base,
    f16=base.half(),
    bf16=base.bfloat16(),
    f64=base.double(),
    i64=torch.tensor([-1, 2, 2**40]),
    i32=torch.tensor([[1], [-2]], dtype=torch.int32),
    i16=torch.tensor([3, -4], dtype=torch.int16),
    i8=torch.tensor([-5, 6], dtype=torch.int8),
    u8=torch.tensor([7, 255], dtype=torch.uint8),
    bool=torch.tensor([True, False, True]),
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 3),
    transposed=base.t(),
    slice=base[1:3, 2:5],
    permuted=torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).permute(2, 0, 1),
    tied_a=shared.reshape(3, 4),
    tied_b=shared.reshape(3, 4),
    tail=shared[8:],
    parameter=torch.nn.Parameter(base + 1),
)
modern = OrderedDict(
    good,
    f8e4m3=base.to(torch.float8_e4m3fn),
    f8e5m2=base.to(torch.float8_e5m2),
    u16=torch.tensor([1, 65535], dtype=torch.uint16),
)
torch.save(modern, OUT / "zip.bin")
torch.save(dict(good), OUT / "protocol4.bin", pickle_protocol=4)
torch.save(good, OUT / "legacy.bin", _use_new_zipfile_serialization=False)
torch.save(torch.nn.Linear(2, 3).state_dict(), OUT / "state_dict.bin")
torch.save({"epoch": 3, "lr": 0.1, "state_dict": {"w": base}}, OUT / "wrapped.bin")

expect = {}
for name, tensor in modern.items():
    tensor = tensor.detach()
    expect[name] = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "contiguous": tensor.is_contiguous(),
        "values": tensor.float().flatten().tolist(),
    }
(OUT / "expect.json").write_text(json.dumps(expect))


def zipped(name, program, entries=()):
    """A checkpoint with a pickle of our own."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, content in entries:
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    (OUT / name).write_bytes(data.getvalue())


class Run:
    def __reduce__(self):
        return os.system, ("touch /tmp/drivetrain-pickle-ran",)


zipped("hostile_system.bin", pickle.dumps({"w": Run()}, protocol=2))
zipped("hostile_system4.bin", pickle.dumps({"w": Run()}, protocol=4))
(OUT / "hostile_bare.bin").write_bytes(pickle.dumps(Run(), protocol=0))
zipped("hostile_inst.bin", b"(S'true'\nios\nsystem\n.".replace(b"S'true'\n", b"X\x04\x00\x00\x00true"))
zipped("hostile_eval.bin", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.")
zipped("hostile_newobj.bin", b"\x80\x02ccollections\nOrderedDict\n)\x81.")
zipped("hostile_whole_model.bin", pickle.dumps(torch.nn.Linear(1, 1), protocol=2))


def tensor_program(shape, strides, offset, numel, kind="FloatStorage", key="0"):
    """A pickle of {"w": tensor} with any numbers."""

    def number(n):
        raw = n.to_bytes((n.bit_length() + 8) // 8 or 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw

    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def numbers(ns):
        return b"(" + b"".join(map(number, ns)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    return (
        b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset)
        + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


data = [("0", bytes(64))]
zipped("tensor_fine.bin", tensor_program([4, 4], [4, 1], 0, 16), data)
zipped("tensor_short_storage.bin", tensor_program([4, 8], [8, 1], 0, 32), data)
zipped("tensor_out_of_range.bin", tensor_program([4, 4], [5, 1], 0, 16), data)
zipped("tensor_bad_offset.bin", tensor_program([4], [1], 13, 16), data)
zipped("tensor_negative_stride.bin", tensor_program([4], [-1], 8, 16), data)
zipped("tensor_negative_shape.bin", tensor_program([-4], [1], 0, 16), data)
zipped("tensor_overflow.bin", tensor_program([2**40, 2**40], [1, 1], 0, 16), data)
zipped("tensor_expanded.bin", tensor_program([2**30], [0], 0, 16), data)
zipped("tensor_huge_stride.bin", tensor_program([2], [2**62], 0, 16), data)
zipped("tensor_huge_numel.bin", tensor_program([4], [1], 0, 2**62), data)
zipped("tensor_no_data.bin", tensor_program([4, 4], [4, 1], 0, 16, key="7"), data)
zipped("tensor_path_key.bin", tensor_program([4, 4], [4, 1], 0, 16, key="../data/0"), data)
zipped("tensor_odd_storage.bin", tensor_program([4], [1], 0, 16, kind="QInt8Storage"), data)
