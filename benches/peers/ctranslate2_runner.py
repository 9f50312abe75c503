"""CTranslate2 on a model that its converter wrote."""

import json
import pathlib
import time

import ctranslate2

from runner import Unsupported, serve

TYPES = {"f32": "float32", "int8": "int8"}


class Model:
    def __init__(self, model, vocabulary):
        self.model = model
        self.words = vocabulary
        self.ids = {word: idx for idx, word in enumerate(vocabulary)}
        self.has_encoder = isinstance(model, ctranslate2.Translator)

    def hidden(self, command):
        raise Unsupported("its models with a decoder give no hidden states")

    def prefill(self, command):
        if self.has_encoder:
            raise Unsupported("no logits of an encoder-decoder model")
        prompts, wants = self.prompts(command), command["wants_output"]
        return lambda: self.model.generate_batch(
            prompts,
            min_length=0,
            max_length=1,
            include_prompt_in_result=False,
            return_logits_vocab=wants,
        )

    def generate(self, command):
        prompts, n_new = self.prompts(command), command["n_new"]
        options = {"beam_size": command["n_beams"], "end_token": [self.words[command["eos"]]]}
        if self.has_encoder:
            return lambda: self.model.translate_batch(
                prompts, min_decoding_length=n_new, max_decoding_length=n_new, **options
            )
        return lambda: self.model.generate_batch(
            prompts,
            min_length=n_new,
            max_length=n_new,
            include_prompt_in_result=False,
            **options,
        )

    def prompts(self, command):
        return [[self.words[idx] for idx in ids] for ids in command["ids"]]

    def values(self, result, task):
        logits = result[0].logits[0][0]
        if isinstance(logits, ctranslate2.StorageView):
            import numpy

            logits = numpy.array(logits.to_device(ctranslate2.Device.cpu))
        return logits.reshape(-1).tolist()

    def tokens(self, result):
        if self.has_encoder:
            return [[self.ids[word] for word in one.hypotheses[0]] for one in result]
        return [one.sequences_ids[0] for one in result]


def load(arguments):
    folder = pathlib.Path(arguments.model)
    threads = {"inter_threads": 1, "intra_threads": arguments.threads}
    started = time.perf_counter()
    shared = folder / "shared_vocabulary.json"
    has_encoder = json.loads((folder / "kind.json").read_text())["has_encoder"]
    kind = ctranslate2.Translator if has_encoder else ctranslate2.Generator
    model = kind(
        arguments.model, device="cpu", compute_type=TYPES[arguments.format], **threads
    )
    words = shared if shared.exists() else folder / "vocabulary.json"
    return started, ctranslate2.__version__, Model(model, json.loads(words.read_text()))


if __name__ == "__main__":
    serve("ctranslate2", load)
