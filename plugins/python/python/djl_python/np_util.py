"""Lists of numpy arrays as bytes, and back: `tensor/ndlist` and npz."""

import io
import struct

_MAGIC = "NDAR"
_VERSION = 3
_TYPES = {
    "FLOAT32": "f4",
    "FLOAT64": "f8",
    "FLOAT16": "f2",
    "UINT8": "u1",
    "UINT16": "u2",
    "UINT32": "u4",
    "UINT64": "u8",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "BOOLEAN": "?",
    "COMPLEX64": "c8",
}
_NAMES = {code: name for name, code in _TYPES.items()}


def to_npz(arrays):
    """A list of arrays as npz."""
    import numpy

    buffer = io.BytesIO()
    numpy.savez(buffer, *arrays)
    return buffer.getvalue()


def from_npz(data):
    """The arrays of an npz, in order. Nothing pickled is read."""
    import numpy

    with numpy.load(io.BytesIO(bytes(data)), allow_pickle=False) as file:
        return [file[name] for name in file.files]


def to_nd_list(arrays):
    """A list of arrays as `tensor/ndlist`."""
    import numpy

    parts = [struct.pack(">i", len(arrays))]
    for array in arrays:
        # What has no dimensions keeps none.
        array = numpy.asarray(array)
        code = "?" if array.dtype.kind == "b" else f"{array.dtype.kind}{array.dtype.itemsize}"
        if code not in _NAMES:
            raise ValueError(f"arrays of {array.dtype} have no form in tensor/ndlist")
        little = array.astype(array.dtype.newbyteorder("<"))
        parts.append(_text(_MAGIC) + struct.pack(">ib", _VERSION, 0) + _text(_NAMES[code]))
        parts.append(struct.pack(f">i{array.ndim}q", array.ndim, *array.shape))
        parts.append(struct.pack(f">i{array.ndim}h", array.ndim, *([ord("?")] * array.ndim)))
        data = little.tobytes()
        parts.append(b"<" + struct.pack(">i", len(data)) + data)
    return b"".join(parts)


def from_nd_list(data):
    """The arrays of a `tensor/ndlist`; what begins like a zip file is read as npz."""
    data = bytes(data)
    if data[:2] == b"PK":
        return from_npz(data)
    reader = _Reader(data)
    return [_array(reader) for _ in range(reader.number("i"))]


def _array(reader):
    if reader.text() != _MAGIC:
        raise ValueError("not a tensor/ndlist: an array does not begin with NDAR")
    version = reader.number("i")
    if not 1 <= version <= _VERSION:
        raise ValueError(f"tensor/ndlist of version {version}: versions 1 to {_VERSION} are known")
    if reader.number("b"):
        reader.text()
    if version < 3:
        reader.text()
    name = reader.text()
    if name not in _TYPES:
        raise ValueError(f"tensor/ndlist of type {name}: expected one of {', '.join(_TYPES)}")
    rank = reader.number("i")
    shape = [reader.number("q") for _ in range(rank)]
    reader.take(2 * reader.number("i"))
    order = ">"
    if version > 1:
        order = reader.take(1).decode("latin-1")
    raw = reader.take(reader.number("i"))
    import numpy

    return numpy.frombuffer(raw, numpy.dtype(_TYPES[name]).newbyteorder(order)).reshape(shape)


def _text(text):
    return struct.pack(">h", len(text)) + text.encode("utf-8")


class _Reader:
    def __init__(self, data):
        self._data = data
        self._at = 0

    def take(self, count):
        if count < 0 or count > len(self._data) - self._at:
            raise ValueError("tensor/ndlist ends in the middle of an array")
        piece = self._data[self._at:self._at + count]
        self._at += count
        return piece

    def number(self, code):
        return struct.unpack(">" + code, self.take(struct.calcsize(">" + code)))[0]

    def text(self):
        return self.take(self.number("h")).decode("utf-8")
