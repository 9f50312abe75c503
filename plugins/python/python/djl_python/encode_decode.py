"""Bodies by content type: what a request's becomes, and how a result is written."""

import csv
import io

from .np_util import to_nd_list, to_npz
from .outputs import to_json


def decode(inputs, content_type=None, key=None):
    """The body of a request as `{"inputs": ..}`, or as its JSON is."""
    content_type = content_type or inputs.get_property("Content-Type") or ""
    content_type = content_type.split(";")[0].strip().lower()
    if content_type in ("", "application/json"):
        body = inputs.get_as_bytes(key)
        return inputs.get_as_json(key) if body else {"inputs": ""}
    if content_type == "text/csv":
        return _from_csv(inputs, key)
    if content_type == "application/x-www-form-urlencoded":
        return {"inputs": inputs.get_as_string(key)}
    if content_type.startswith("text/"):
        return {"inputs": [inputs.get_as_string(key)]}
    if content_type.startswith("image/"):
        return {"inputs": inputs.get_as_image(key)}
    if content_type == "tensor/npz":
        return {"inputs": inputs.get_as_npz(key)}
    if content_type == "tensor/ndlist":
        return {"inputs": inputs.get_as_numpy(key)}
    if content_type == "application/x-npy":
        import numpy

        return {"inputs": [numpy.load(io.BytesIO(inputs.get_as_bytes(key)), allow_pickle=False)]}
    return {"inputs": inputs.get_as_bytes(key)}


def _from_csv(inputs, key):
    rows = inputs.get_as_csv(key)
    names = set(rows[0]) if rows else set()
    if "inputs" in names:
        return {"inputs": [row["inputs"] for row in rows]}
    if names & {"question", "context"}:
        return {"inputs": rows}
    raise ValueError("text/csv: the first row has to name a column inputs, question or context")


def encode(outputs, result, accept=None, key=None):
    """Adds a result to a reply in the form that `accept` asks for."""
    accept = (accept or "application/json").split(",")[0].split(";")[0].strip().lower()
    if accept in ("*/*", "", "application/json", "application/*"):
        outputs.add_property("Content-Type", "application/json")
        return outputs.add_as_json(result, key)
    outputs.add_property("Content-Type", accept)
    if accept == "text/csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(result[0]))
        writer.writeheader()
        writer.writerows(result)
        return outputs.add_as_string(text.getvalue(), key)
    if accept == "tensor/npz":
        return outputs.add(to_npz(result), key)
    return outputs.add(to_nd_list(result), key)
