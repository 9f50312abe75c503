"""OpenVINO on an encoder-decoder model whose hidden states were exported."""

import os
import time

import numpy
import openvino

from runner import sampled, serve


class Model:
    def __init__(self, request):
        self.request = request

    def hidden(self, command):
        ids = numpy.array(command["ids"], dtype=numpy.int64)
        start = numpy.full((len(ids), 1), command["decoder_start"])
        shifted = numpy.concatenate([start, ids[:, :-1]], 1)
        return lambda: self.request.infer([ids, shifted])

    def values(self, result, task):
        rows = [row for rows in result[0] for row in sampled(rows)]
        return numpy.concatenate(rows).tolist()


def load(arguments):
    started = time.perf_counter()
    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": arguments.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.compile_model(os.path.join(arguments.model, "model.xml"), "CPU", options)
    version = openvino.get_version().split("-")[0]
    return started, version, Model(model.create_infer_request())


if __name__ == "__main__":
    serve("openvino", load)
