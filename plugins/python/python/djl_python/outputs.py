"""The reply as a handler makes it."""

import datetime
import json

from .pair_list import PairList


def to_plain(value):
    """What JSON has no form of as something it has: numpy's values, dates, bytes, sets."""
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8")
    if isinstance(value, (set, frozenset)):
        return list(value)
    for method in ("tolist", "item", "_asdict"):
        convert = getattr(value, method, None)
        if callable(convert):
            return convert()
    raise TypeError(f"{type(value).__name__} has no form in JSON: convert it before it is added")


def to_json(value):
    """JSON as replies have it; NaN and infinities are refused."""
    text = json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        indent=2,
        separators=(",", ":"),
        default=to_plain,
    )
    return text.encode("utf-8")


def json_lines(item):
    """The default form of a stream's item: a line `{"outputs": item}`."""
    line = json.dumps({"outputs": item}, ensure_ascii=False, allow_nan=False, default=to_plain)
    return line + "\n"


def to_bytes(value):
    """Text as UTF-8, bytes as they are, anything else as JSON."""
    return value.encode("utf-8") if isinstance(value, str) else raw_or_json(value)


def raw_or_json(value):
    """Bytes as they are, anything else as JSON."""
    if isinstance(value, memoryview):
        # Its length may count items that are wider than a byte.
        return value.tobytes()
    return value if isinstance(value, (bytes, bytearray)) else to_json(value)


class Output:
    """A reply: status, reason, headers, and the content or a stream of it."""

    def __init__(self, code=200, message="OK"):
        self.code = code
        self.message = message
        self.properties = {}
        self.content = PairList()
        self.stream_content = None
        self.output_formatter = json_lines
        self._finalizers = []

    def set_code(self, code):
        """Sets the status code."""
        self.code = code
        return self

    def set_message(self, message):
        """Sets the reason that goes with the status code."""
        self.message = message
        return self

    def add_property(self, key, value):
        """Sets a header."""
        self.properties[str(key)] = str(value)
        return self

    def get_properties(self):
        """All headers."""
        return self.properties

    def get_property(self, key):
        """The header of this name, without case; None if there is none."""
        wanted = str(key).lower()
        for known, value in self.properties.items():
            if known.lower() == wanted:
                return value
        return None

    def add(self, value, key=None, batch_index=None):
        """Adds content: text as UTF-8, bytes as they are, anything else as JSON.

        `batch_index` says which request of a batch it answers.
        """
        return self._add(to_bytes(value), key, batch_index)

    def add_as_string(self, value, key=None, batch_index=None):
        """Adds text."""
        return self._add(str(value).encode("utf-8"), key, batch_index)

    def add_as_json(self, value, key=None, batch_index=None):
        """Adds a value as JSON."""
        return self._add(to_json(value), key, batch_index)

    def add_as_numpy(self, arrays, key=None, batch_index=None):
        """Adds a list of arrays as `tensor/ndlist`."""
        from .np_util import to_nd_list

        return self._add(to_nd_list(arrays), key, batch_index)

    def add_as_npz(self, arrays, key=None, batch_index=None):
        """Adds a list of arrays as npz."""
        from .np_util import to_npz

        return self._add(to_npz(arrays), key, batch_index)

    def _add(self, value, key, batch_index):
        if batch_index is not None:
            key = f"batch_{batch_index}." + ("data" if key is None else key)
        self.content.add(key, value)
        return self

    def add_stream_content(self, iterator, output_formatter=json_lines):
        """Makes the reply a stream of what `iterator` yields, which may be an async iterator.

        `output_formatter` makes text or bytes of an item; with None bytes go out as they are and
        anything else as JSON.
        """
        self.stream_content = iterator
        self.output_formatter = output_formatter
        return self

    def error(self, text, code=424, message="invoke handler failure"):
        """Makes the reply an error."""
        self.code = code
        self.message = message
        self.stream_content = None
        for key in [k for k in self.properties if k.lower() == "content-type"]:
            del self.properties[key]
        self.add_property("Content-Type", "application/json")
        body = {"code": code, "message": message, "error": str(text)}
        self.content = PairList(["data"], [to_json(body)])
        return self

    def finalize(self, function, *args):
        """Has `function` called after the reply has been sent."""
        self._finalizers.append((function, args))
        return self

    def run_finalizers(self):
        """Calls what `finalize` was given, once."""
        finalizers, self._finalizers = self._finalizers, []
        for function, args in finalizers:
            function(*args)

    def format_item(self, item):
        """The bytes of a stream's item."""
        if self.output_formatter is None:
            return raw_or_json(item)
        return to_bytes(self.output_formatter(item))

    def body(self):
        """What is sent: the entry `data`, else the first one; None without content."""
        if self.content.is_empty():
            return None
        key = "data" if self.content.contains("data") else self.content.key_at(0)
        return self.content.get(key)

    def body_of(self, index):
        """What is sent to request `index` of a batch; None if there is nothing for it."""
        prefix = f"batch_{index}."
        found = [(k, v) for k, v in self.content.items() if k is not None and k.startswith(prefix)]
        for key, value in found:
            if key == prefix + "data":
                return value
        return found[0][1] if found else None

    def __str__(self):
        return f"Output({self.code}, {self.content.size()} entries)"
