"""The request as a handler sees it."""

import csv
import io
import json

from .pair_list import PairList


class Input:
    """A request, or several that are answered together.

    `properties` holds the model's settings and the request's headers, `content` its entries; a
    plain body is one entry named `data`. The call that loads the model has no content.
    """

    def __init__(self, properties=None, content=None):
        self.properties = dict(properties or {})
        self.content = content if content is not None else PairList()
        self.function_name = self.get_property("handler")
        self._batches = None

    @classmethod
    def of_batch(cls, settings, inputs):
        """One input that stands for `inputs`, with keys that say which one an entry belongs to."""
        properties = dict(settings)
        properties["batch_size"] = str(len(inputs))
        content = PairList()
        for idx, (own, one) in enumerate(inputs):
            for key, value in own.items():
                properties[f"batch_{idx:03d}_{key}"] = value
            for key, value in one.content.items():
                content.add(f"batch_{idx:03d}.{key}", value)
        batch = cls(properties, content)
        batch._batches = [one for _, one in inputs]
        return batch

    def get_properties(self):
        """All properties."""
        return self.properties

    def get_property(self, key):
        """The property of this name, without case; None if there is none."""
        if key in self.properties:
            return self.properties[key]
        wanted = str(key).lower()
        for known, value in self.properties.items():
            if known.lower() == wanted:
                return value
        return None

    def get_function_name(self):
        """The function that was asked for, where one was."""
        return self.function_name

    def get_content(self):
        """The entries."""
        return self.content

    def contains_key(self, key):
        """Whether there is an entry of this name."""
        return self.content.contains(key)

    def is_empty(self):
        """Whether this is the call that loads the model: it alone has no content."""
        return self.content.is_empty()

    def is_batch(self):
        """Whether several requests are to be answered together."""
        return "batch_size" in self.properties and not self.is_empty()

    def get_batch_size(self):
        """How many requests are to be answered together."""
        return int(self.properties["batch_size"]) if self.is_batch() else 1

    def get_batches(self):
        """The requests, one input each."""
        if self._batches is not None:
            return list(self._batches)
        if not self.is_batch():
            return [self]
        size = self.get_batch_size()
        inputs = [Input() for _ in range(size)]
        for idx, one in enumerate(inputs):
            prefix = f"batch_{idx:03d}_"
            own = {k[len(prefix):]: v for k, v in self.properties.items() if k.startswith(prefix)}
            shared = {
                k: v
                for k, v in self.properties.items()
                if k != "batch_size" and not _is_batch_key(k, "_")
            }
            one.properties = {**shared, **own}
            one.function_name = one.get_property("handler")
        for key, value in self.content.items():
            head, _, rest = key.partition(".")
            idx = int(head[len("batch_"):]) if _is_batch_key(key, ".") else size
            if idx < size:
                inputs[idx].content.add(rest, value)
        return inputs

    def get_as_bytes(self, key=None):
        """The entry `key` as it came; without a key the body, else the first entry.

        None if there is no content, KeyError if there is no such entry.
        """
        if key is None:
            if self.content.is_empty():
                return None
            key = "data" if self.content.contains("data") else self.content.key_at(0)
        if not self.content.contains(key):
            raise KeyError(f"the request has no entry {key!r}; it has {self.content.keys()}")
        return self.content.get(key)

    def get_as_string(self, key=None):
        """The entry as text."""
        value = self.get_as_bytes(key)
        return None if value is None else bytes(value).decode("utf-8")

    def get_as_json(self, key=None):
        """The entry, parsed as JSON."""
        return json.loads(self.get_as_string(key))

    def get_as_image(self, key=None):
        """The entry as a Pillow image."""
        from PIL import Image

        return Image.open(io.BytesIO(self.get_as_bytes(key))).convert("RGB")

    def get_as_numpy(self, key=None):
        """The entry as a list of arrays, read as `tensor/ndlist` or, by its signature, as npz."""
        from .np_util import from_nd_list

        return from_nd_list(self.get_as_bytes(key))

    def get_as_npz(self, key=None):
        """The entry as a list of arrays, read as npz."""
        from .np_util import from_npz

        return from_npz(self.get_as_bytes(key))

    def get_as_csv(self, key=None):
        """The entry as a list of dicts, one a row, by the names of the first row."""
        return list(csv.DictReader(io.StringIO(self.get_as_string(key))))

    def get_data(self, key=None):
        """The entry, decoded as the request's content type says."""
        content_type = (self.get_property("Content-Type") or "").split(";")[0].strip().lower()
        if content_type == "tensor/ndlist":
            return self.get_as_numpy(key)
        if content_type == "tensor/npz":
            return self.get_as_npz(key)
        if content_type == "application/json":
            return self.get_as_json(key)
        if content_type.startswith("text/"):
            return self.get_as_string(key)
        if content_type.startswith("image/"):
            return self.get_as_image(key)
        return self.get_as_bytes(key)

    def __str__(self):
        return f"Input({self.content.size()} entries)"


def _is_batch_key(key, end):
    """Whether a key is `batch_<digits><end>..`."""
    if not key.startswith("batch_"):
        return False
    digits, found, _ = key[len("batch_"):].partition(end)
    return bool(found) and digits.isdigit()
