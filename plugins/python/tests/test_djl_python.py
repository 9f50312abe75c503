"""Tests of djl_python that need no server."""

import datetime
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

from djl_python import Input, Output, PairList, concurrent  # noqa: E402
from djl_python import prepare, wire, worker  # noqa: E402
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


class Calls(unittest.TestCase):
    def test_a_header_does_not_make_a_batch(self):
        one, text = struct.pack(">I", 1), wire.pack_text
        request = struct.pack(">Q", 7) + wire.pack_pairs([("batch_size", "9999999")])
        body = text("") + one + request + one + text("data") + text("x")
        inputs = worker.Call(7, wire.Body(body)).inputs({"task": "t", "batch_size": "8"})
        self.assertFalse(inputs.is_batch())
        self.assertEqual((inputs.get_batches(), inputs.get_as_string()), ([inputs], "x"))
        self.assertEqual(inputs.get_properties(), {"task": "t"})


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

    def test_items_wider_than_a_byte_go_out_as_their_bytes(self):
        wide = memoryview(struct.pack("2f", 1, 2)).cast("f")
        self.assertEqual(Output().add(wide).body(), bytes(wide))
        self.assertEqual(Output().add_stream_content([], None).format_item(wide), bytes(wide))
        self.assertEqual(len(Output().add(wide).body()), 8)

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


class Preparing(unittest.TestCase):
    def test_an_entry_point_does_not_overwrite_what_starts_workers(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in [("start.py", "ours"), ("there/start.py", "theirs")]:
                path = os.path.join(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w") as file:
                    file.write(text)
            found = prepare.fetch(f"file://{folder}/there/start.py", folder)
            texts = []
            for path in (os.path.join(folder, "start.py"), found):
                with open(path) as file:
                    texts.append(file.read())
            self.assertEqual(texts, ["ours", "theirs"])


class Process:
    """A worker process of a script, and the server's end of its socket."""

    def __init__(self, script, *options):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "model.py")
        with open(path, "w") as file:
            file.write("import asyncio, time\nfrom djl_python import Output\n" + script)
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        start = os.path.join(os.path.dirname(wire.__file__), "..", "start.py")
        command = [sys.executable, "-B", start, "worker", "--model-dir", self.folder.name]
        command += ["--entry-point", path, *options]
        self.process = subprocess.Popen(command, stdin=theirs, stderr=subprocess.DEVNULL)
        theirs.close()
        self.ours, self.connection = ours, wire.Connection(ours)
        self.connection.send((wire.INIT, 0, wire.pack_pairs([])))

    def __enter__(self):
        assert self.frame()[0] == wire.READY
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.ours.close()
        self.folder.cleanup()

    def call(self, ident, text):
        one = struct.pack(">I", 1)
        request = struct.pack(">Q", ident) + wire.pack_pairs([])
        content = one + wire.pack_text("data") + wire.pack_text(text)
        self.connection.send((wire.CALL, ident, wire.pack_text("") + one + request + content))

    def cancel(self, ident):
        self.connection.send((wire.CANCEL, ident, b""))

    def frame(self):
        return self.connection.receive()

    def kinds_to_end(self):
        kinds = []
        while not kinds or kinds[-1] != wire.END:
            kinds.append(self.frame()[0])
        return kinds


class Workers(unittest.TestCase):
    def test_a_stream_that_can_not_be_closed_ends(self):
        items = """
    try:
        for n in range(10**9): yield n
    finally: raise OSError("not closed")
"""
        script = f"""
def sync():{items}
async def loop():{items}
def handle(inputs):
    if inputs.is_empty(): return None
    return Output().add_stream_content(globals()[inputs.get_as_string()]())
"""
        for options, kind in [((), "sync"), (("--async-mode",), "sync"), (("--async-mode",), "loop")]:
            with Process(script, *options) as worker:
                for ident in (1, 2):
                    worker.call(ident, kind)
                    self.assertEqual(worker.frame()[0], wire.REPLY)
                    worker.cancel(ident)
                    self.assertEqual(worker.kinds_to_end()[-1], wire.END)

    def test_a_task_is_not_taken_back_from_a_thread(self):
        script = """
def handle(inputs):
    if inputs.is_empty(): return None
    if inputs.get_as_string() == "slow": time.sleep(1)
    return Output().add("x")
"""
        with Process(script, "--async-mode") as worker:
            worker.call(1, "slow")
            time.sleep(0.2)
            begun = time.monotonic()
            worker.cancel(1)
            # What has the thread has the request: the server may only end the process.
            worker.kinds_to_end()
            self.assertGreater(time.monotonic() - begun, 0.5)

    def test_a_task_is_taken_back_from_the_loop(self):
        script = """
async def handle(inputs):
    if inputs.is_empty(): return None
    await asyncio.sleep(600)
"""
        with Process(script) as worker:
            worker.call(1, "x")
            worker.cancel(1)
            self.assertEqual(worker.kinds_to_end()[-1], wire.END)


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
