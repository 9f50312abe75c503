"""llama.cpp through its C interface, as llama-cpp-python exposes it."""

import ctypes
import time

import llama_cpp
import numpy

from runner import Unsupported, serve

# A sequence has its own part of the context.
N_CONTEXT, N_SEQUENCES, N_BATCH = 16 * 1024, 16, 2048


class Model:
    def __init__(self, model, context):
        self.context = context
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)

    def prefill(self, command):
        return lambda: self.begin(command["ids"])[:1]

    def generate(self, command):
        if command["n_beams"] > 1:
            raise Unsupported("no beam search")
        return lambda: self.greedy(command)

    def begin(self, prompts):
        """Reads whole prompts; the logits of the last token of each."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        pieces = [(sequence, 0, ids) for sequence, ids in enumerate(prompts)]
        rows, group, size = [], [], 0
        for piece in pieces:
            if size + len(piece[2]) > N_BATCH:
                rows += self.decode(group)
                group, size = [], 0
            group.append(piece)
            size += len(piece[2])
        return rows + self.decode(group)

    def greedy(self, command):
        rows, position = self.begin(command["ids"]), len(command["ids"][0])
        steps = []
        while True:
            steps.append([self.best(row, command["eos"]) for row in rows])
            if len(steps) == command["n_new"]:
                return numpy.array(steps).T
            rows = self.decode([(s, position, [token]) for s, token in enumerate(steps[-1])])
            position += 1

    def decode(self, pieces):
        batch, n, wanted = self.batch, 0, []
        for sequence, position, ids in pieces:
            for offset, token in enumerate(ids):
                batch.token[n] = token
                batch.pos[n] = position + offset
                batch.n_seq_id[n] = 1
                batch.seq_id[n][0] = sequence
                batch.logits[n] = offset == len(ids) - 1
                n += 1
            wanted.append(n - 1)
        batch.n_tokens = n
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        return [self.logits(idx) for idx in wanted]

    def logits(self, idx):
        pointer = llama_cpp.llama_get_logits_ith(self.context, idx)
        pointer = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return numpy.ctypeslib.as_array(pointer, (self.vocab,))

    def best(self, row, eos):
        row[eos] = -numpy.inf
        return int(row.argmax())

    def values(self, result, task):
        return result[0].tolist()

    def tokens(self, result):
        return result.tolist()


def load(arguments):
    llama_cpp.llama_backend_init()
    started = time.perf_counter()
    model = llama_cpp.llama_model_load_from_file(
        arguments.model.encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise RuntimeError(f"{arguments.model} can't be loaded")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = N_CONTEXT, N_SEQUENCES
    params.n_batch = N_BATCH
    params.n_threads = params.n_threads_batch = arguments.threads
    params.no_perf = True
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("no context")
    return started, llama_cpp.__version__, Model(model, context)


if __name__ == "__main__":
    serve("llama.cpp (llama-cpp-python)", load)
