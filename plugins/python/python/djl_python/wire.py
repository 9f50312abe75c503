"""Frames between the server and a worker, over the socket that is the worker's standard input.

A frame is a head of 20 bytes (mark, kind, request's id, length) and a body. Integers are big-endian,
texts and bytes have their length in front. The server's side is `wire.rs`.
"""

import os
import socket
import struct
import threading

MARK = b"DTW1"
HEAD = struct.Struct(">4sBxxxQI")

# From the server.
INIT, CALL, CANCEL, CREDIT = 1, 2, 3, 4
# To the server.
READY, REPLY, PIECE, END, FAILED = 1, 2, 3, 4, 5

# Why a worker failed.
BAD_INPUT, OUT_OF_MEMORY, INTERNAL = 1, 2, 3

# A body above this many bytes is sent as it is; a smaller one in one write with what goes with it.
_APART = 1 << 16


def pack_text(text):
    """A text with its length."""
    data = str(text).encode("utf-8", "replace")
    return struct.pack(">I", len(data)) + data


def pack_pairs(pairs):
    """A list of names and values."""
    parts = [struct.pack(">I", len(pairs))]
    for key, value in pairs:
        parts.append(pack_text(key))
        parts.append(pack_text(value))
    return b"".join(parts)


class Body:
    """Reads a body from its beginning to its end."""

    def __init__(self, data):
        self._data = memoryview(data)
        self._at = 0

    def number(self, code):
        """An integer of one of struct's types."""
        value, = struct.unpack_from(">" + code, self._data, self._at)
        self._at += struct.calcsize(">" + code)
        return value

    def bytes(self):
        """Bytes with their length in front."""
        count = self.number("I")
        piece = self._data[self._at:self._at + count]
        self._at += count
        return bytes(piece)

    def text(self):
        """A text with its length in front."""
        return self.bytes().decode("utf-8", "replace")

    def pairs(self):
        """A list of names and texts."""
        return [(self.text(), self.text()) for _ in range(self.number("I"))]

    def entries(self):
        """A list of names and bytes."""
        return [(self.text(), self.bytes()) for _ in range(self.number("I"))]


class Connection:
    """The worker's end of the socket. Any thread may send; one receives."""

    def __init__(self, stream):
        self._socket = stream
        self._lock = threading.Lock()

    @classmethod
    def of_standard_input(cls):
        """Takes the socket over, and leaves nothing to read in its place."""
        stream = socket.socket(fileno=os.dup(0))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        return cls(stream)

    def receive(self):
        """The next frame: kind, request's id, body; None when the server has gone."""
        head = self._read(HEAD.size)
        if head is None:
            return None
        mark, kind, ident, count = HEAD.unpack(head)
        if mark != MARK:
            return None
        body = self._read(count)
        return None if body is None else (kind, ident, Body(body))

    def _read(self, count):
        data = bytearray(count)
        view = memoryview(data)
        while view:
            try:
                got = self._socket.recv_into(view)
            except OSError:
                return None
            if got == 0:
                return None
            view = view[got:]
        return data

    def send(self, *frames):
        """Sends frames, each a kind, a request's id and a body, one after the other."""
        small = []
        with self._lock:
            for kind, ident, body in frames:
                small.append(HEAD.pack(MARK, kind, ident, len(body)))
                if len(body) > _APART:
                    self._socket.sendall(b"".join(small))
                    self._socket.sendall(body)
                    small = []
                else:
                    small.append(bytes(body))
            if small:
                self._socket.sendall(b"".join(small))


def reply_head(ident, code, message, properties):
    """The frame with a reply's status, reason and headers."""
    body = struct.pack(">H", code) + pack_text(message) + pack_pairs(list(properties.items()))
    return REPLY, ident, body


def failed(ident, kind, message):
    """The frame that ends a request, or a load, with an error of the server's making."""
    return FAILED, ident, struct.pack(">B", kind) + pack_text(message)
