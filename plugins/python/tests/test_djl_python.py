"""Tests of djl_python that need no server."""

import datetime
import os
import struct
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

from djl_python import Input, Output, PairList, concurrent  # noqa: E402
from djl_python.encode_decode import decode, encode  # noqa: E402
from djl_python.np_util import from_nd_list, to_nd_list  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None


def request(body, content_type=None):
    properties = {} if content_type is None else {"content-type": content_type}
    return Input(properties, PairList(["data"], [body]))


class Pairs(unittest.TestCase):
    def test_keys_may_repeat(self):
        pairs = PairList(["a", "b", "a"], [1, 2, 3])
        self.assertEqual((pairs.size(), pairs.get("a"), pairs.get("c"), pairs.get(2)), (3, 1, None, 3))
        self.assertEqual((pairs.key_at(1), pairs.value_at(2)), ("b", 3))
        self.assertTrue(pairs.contains("b") and not pairs.is_empty())
        self.assertRaises(ValueError, PairList, ["a"], [])


class Inputs(unittest.TestCase):
    def test_properties_have_no_case(self):
        one = request(b"x", "text/plain")
        self.assertEqual(one.get_property("Content-Type"), "text/plain")
        self.assertIsNone(one.get_property("other"))

    def test_data_goes_first(self):
        one = Input(content=PairList(["a", "data"], [b"1", b"2"]))
        self.assertEqual((one.get_as_bytes(), one.get_as_string("a")), (b"2", "1"))
        self.assertRaises(KeyError, one.get_as_bytes, "b")
        self.assertIsNone(Input().get_as_bytes())

    def test_content_types(self):
        self.assertEqual(request(b'{"a": 1}', "application/json; charset=utf-8").get_data(), {"a": 1})
        self.assertEqual(request("é".encode(), "text/html").get_data(), "é")
        self.assertEqual(request(b"\x00", "application/x").get_data(), b"\x00")
        self.assertEqual(request(b"a,b\n1,2\n").get_as_csv(), [{"a": "1", "b": "2"}])

    def test_batches(self):
        ones = [({"h": str(n)}, Input({"h": str(n)}, PairList(["data"], [b"%d" % n]))) for n in range(2)]
        batch = Input.of_batch({"s": "x"}, ones)
        self.assertTrue(batch.is_batch())
        self.assertEqual(batch.get_content().keys(), ["batch_000.data", "batch_001.data"])
        self.assertEqual(batch.get_property("batch_001_h"), "1")
        # Put together from the keys alone it is the same.
        again = Input(batch.properties, batch.content)
        for both in (batch, again):
            self.assertEqual([one.get_as_string() for one in both.get_batches()], ["0", "1"])
            self.assertEqual([one.get_property("h") for one in both.get_batches()], ["0", "1"])
        alone = request(b"x")
        self.assertEqual((alone.get_batch_size(), alone.get_batches()), (1, [alone]))


class Outputs(unittest.TestCase):
    def test_values(self):
        output = Output().add("é").add(b"\xff", "b").add([1], batch_index=3)
        self.assertEqual(output.content.keys(), [None, "b", "batch_3.data"])
        self.assertEqual(output.content.values(), ["é".encode(), b"\xff", b"[\n  1\n]"])
        self.assertEqual(output.body_of(3), b"[\n  1\n]")
        self.assertIsNone(output.body_of(0))

    def test_json(self):
        date = datetime.datetime(2024, 1, 2, 3, 4)
        self.assertEqual(Output().add({"d": date}).body(), b'{\n  "d":"2024-01-02T03:04:00"\n}')
        self.assertRaises(ValueError, Output().add, {"x": float("inf")})
        self.assertRaises(TypeError, Output().add, {"x": object()})

    def test_errors(self):
        output = Output().add_property("content-type", "x").error("why")
        self.assertEqual((output.code, output.get_property("Content-Type")), (424, "application/json"))
        self.assertEqual(len(output.get_properties()), 1)

    def test_formats(self):
        text = request(b"hi", "text/plain")
        self.assertEqual(decode(text), {"inputs": ["hi"]})
        self.assertEqual(decode(request(b"inputs\na\nb\n", "text/csv")), {"inputs": ["a", "b"]})
        self.assertEqual(decode(request(b"", None)), {"inputs": ""})
        self.assertRaises(ValueError, decode, request(b"x\n1\n", "text/csv"))
        output = encode(Output(), [{"a": 1}], "text/csv")
        self.assertEqual(output.body(), b"a\r\n1\r\n")


class Decorators(unittest.TestCase):
    def test_numbers(self):
        for wrong in (0, -1, True, "4", None):
            self.assertRaises(ValueError, concurrent, wrong)


class Arrays(unittest.TestCase):
    def test_what_is_cut_is_refused(self):
        whole = struct.pack(">i", 1) + b"\x00\x04NDAR" + struct.pack(">ib", 3, 0) + b"\x00\x05UINT8"
        for end in range(4, len(whole)):
            self.assertRaises(ValueError, from_nd_list, whole[:end])

    @unittest.skipIf(numpy is None, "numpy is not there")
    def test_there_and_back(self):
        arrays = [
            numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
            numpy.array(True),
            numpy.zeros((0, 2), dtype=numpy.int64),
            numpy.array([1, 2], dtype=">i2"),
        ]
        for before, after in zip(arrays, from_nd_list(to_nd_list(arrays))):
            self.assertEqual((before.shape, before.tolist()), (after.shape, after.tolist()))
        self.assertEqual(Output().add({"a": arrays[0]}).body().count(b"\n"), 13)


if __name__ == "__main__":
    unittest.main()
