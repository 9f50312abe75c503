"""ONNX Runtime on an encoder-decoder model whose hidden states were exported."""

import os
import time

import numpy
import onnxruntime

from runner import sampled, serve


class Model:
    def __init__(self, session):
        self.session = session

    def hidden(self, command):
        ids = numpy.array(command["ids"], dtype=numpy.int64)
        start = numpy.full((len(ids), 1), command["decoder_start"])
        shifted = numpy.concatenate([start, ids[:, :-1]], 1)
        names = [given.name for given in self.session.get_inputs()]
        return lambda: self.session.run(None, dict(zip(names, (ids, shifted))))

    def values(self, result, task):
        rows = [row for rows in result[0] for row in sampled(rows)]
        return numpy.concatenate(rows).tolist()


def load(arguments):
    started = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    path = os.path.join(arguments.model, "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return started, onnxruntime.__version__, Model(session)


if __name__ == "__main__":
    serve("onnxruntime", load)
