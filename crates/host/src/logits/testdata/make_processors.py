"""Writes processors.json: what transformers' own classes make of random logits.

    pip install torch transformers
    python make_processors.py > processors.json

Each case has parameters by the names of `generate`, ids of the decoder and of the encoder, logits, and
the scores after all processors, in the order in which `generate` puts them together. Scores of minus
infinity are null.
"""

import json
import math
import random

import torch
import transformers
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

VOCAB = 40
EOS = [2]

PROCESSORS = {
    "sequence_bias": lambda r: [
        [ids(r, r.randint(1, 2)), round(r.uniform(-4, 4), 3)] for _ in range(r.randint(1, 6))
    ],
    "encoder_repetition_penalty": lambda r: round(r.uniform(0.6, 1.8), 3),
    "repetition_penalty": lambda r: round(r.uniform(0.6, 1.8), 3),
    "no_repeat_ngram_size": lambda r: r.randint(1, 3),
    "encoder_no_repeat_ngram_size": lambda r: r.randint(1, 3),
    "bad_words_ids": lambda r: [ids(r, r.randint(1, 2)) for _ in range(r.randint(1, 8))],
    "min_length": lambda r: r.randint(1, 20),
    "min_new_tokens": lambda r: r.randint(1, 12),
    "forced_bos_token_id": lambda r: r.randrange(VOCAB),
    "forced_eos_token_id": lambda r: ids(r, r.randint(1, 2)),
    "exponential_decay_length_penalty": lambda r: [r.randint(0, 5), round(r.uniform(1, 1.6), 3)],
    "suppress_tokens": lambda r: ids(r, r.randint(1, 5)),
    "begin_suppress_tokens": lambda r: ids(r, r.randint(1, 5)),
    "remove_invalid_values": lambda r: True,
}

WARPERS = {
    "temperature": lambda r: round(r.uniform(0.3, 2), 3),
    "top_k": lambda r: r.randint(1, 30),
    "top_p": lambda r: r.choice([0.0, 0.5, 0.9, 0.95, round(r.uniform(0, 1), 3)]),
    "min_p": lambda r: round(r.uniform(0, 0.4), 3),
    "typical_p": lambda r: round(r.uniform(0.1, 0.99), 3),
    "epsilon_cutoff": lambda r: round(r.uniform(0.001, 0.1), 4),
    "eta_cutoff": lambda r: round(r.uniform(0.001, 0.1), 4),
}


def ids(r, n):
    return [r.randrange(VOCAB) for _ in range(n)]


def unique(pairs):
    return list({tuple(run): [run, bias] for run, bias in pairs}.values())


class Model(GenerationMixin):
    """What `_get_logits_processor` asks of a model."""

    class config:
        is_encoder_decoder = False

        @staticmethod
        def get_text_config():
            return None


def run(r, params, beams):
    n_prompt = r.randint(1, 6)
    decoder = ids(r, n_prompt + r.choice([0, 0, 1, 3, 9]))
    # Few ids, so that runs come twice.
    decoder = [i % r.choice([5, VOCAB]) for i in decoder]
    encoder = [i % r.choice([5, VOCAB]) for i in ids(r, r.randint(1, 12))]
    max_length = len(decoder) + r.choice([1, 5])
    logits = [round(r.gauss(0, 3), 3) for _ in range(VOCAB)]
    if r.random() < 0.3:
        logits = [float(round(x)) for x in logits]
    if beams > 1:
        logits = torch.tensor([logits]).log_softmax(-1)[0].tolist()
    config = GenerationConfig(**params, do_sample=True, num_beams=beams, max_length=max_length)
    for warper in WARPERS:
        if warper not in params:
            setattr(config, warper, None)
    config._eos_token_tensor = torch.tensor(EOS)
    processors = Model()._get_logits_processor(
        config, input_ids_seq_length=n_prompt, encoder_input_ids=torch.tensor([encoder]), device="cpu"
    )
    scores = processors(torch.tensor([decoder]), torch.tensor([logits]))[0].tolist()
    return {
        "params": params,
        "beams": beams,
        "n_prompt": n_prompt,
        "max_length": max_length,
        "ids": decoder,
        "encoder": encoder,
        "logits": [float(f"{x:.7g}") for x in logits],
        "scores": [None if x == -math.inf else float(f"{x:.7g}") for x in scores],
    }


def make(r, names, beams=1):
    """A case; another one where transformers makes NaN of it (an end token's minus infinity decays)."""
    while True:
        try:
            case = attempt(r, names, beams)
        except ValueError as error:
            if "nan" not in str(error):
                raise
            continue
        if all(score is None or score == score for score in case["scores"]):
            return case


def attempt(r, names, beams):
    params = {name: {**PROCESSORS, **WARPERS}[name](r) for name in names}
    if "sequence_bias" in params:
        params["sequence_bias"] = unique(params["sequence_bias"])
    # No token is both forced and suppressed: `generate` refuses that.
    forced = params.get("forced_eos_token_id", []) + [params.get("forced_bos_token_id")]
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if name in params:
            params[name] = [token for token in params[name] if token not in forced] or [0]
    if 0 in forced:
        params.pop("suppress_tokens", None)
        params.pop("begin_suppress_tokens", None)
    return run(r, params, beams)


def main():
    r = random.Random(20240)
    cases = []
    for name in PROCESSORS:
        cases += [make(r, [name]) for _ in range(4)]
    for name in WARPERS:
        cases += [make(r, [name], beams) for beams in (1, 1, 1, 4)]
    for _ in range(45):
        names = r.sample(list(PROCESSORS), r.randint(2, 6))
        cases.append(make(r, [name for name in PROCESSORS if name in names]))
    for _ in range(60):
        names = r.sample(list(WARPERS), r.randint(2, 7))
        beams = r.choice([1, 1, 4])
        cases.append(make(r, [name for name in WARPERS if name in names], beams))
    for _ in range(45):
        every = {**PROCESSORS, **WARPERS}
        names = r.sample(list(every), r.randint(4, 12))
        cases.append(make(r, [name for name in every if name in names], r.choice([1, 1, 4])))
    head = {"transformers": transformers.__version__, "torch": torch.__version__, "vocab": VOCAB, "eos": EOS}
    print(json.dumps(head)[:-1] + ', "cases": [')
    print(",\n".join(json.dumps(case, separators=(",", ":")) for case in cases))
    print("]}")


main()
