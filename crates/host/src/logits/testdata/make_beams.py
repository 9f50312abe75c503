"""Makes beams.json and beam_groups.json: what transformers' beam search finds with a model that is a hash.

    pip install torch transformers          # 5.24.0 with torch 2.15.0 made beams.json
    python make_beams.py beams.json
    pip install torch "transformers<4.57"   # 4.53.3 made beam_groups.json
    python make_beams.py beam_groups.json

The logits after some ids depend on the last two ids and the length only; `logits` in
`logits/beams/tests.rs` is the same function. `torch.topk` does not say which of equal scores comes
first; here, as in the server, it is the first one.
"""

import itertools
import json
import random
import sys

import numpy
import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

MASK = (1 << 64) - 1


def mix(x):
    """splitmix64's finisher, on arrays of 64 bits."""
    x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return x ^ (x >> numpy.uint64(31))


def logits(seed, ids, vocab):
    last, before = ids[-1], ids[-2] if len(ids) > 1 else 0
    key = (seed * 0x9E3779B97F4A7C15 + last * 0x100000001B3 + before * 0xC2B2AE3D + len(ids) * 0x27D4EB2F165667C5) & MASK
    token = numpy.arange(vocab, dtype=numpy.uint64) * numpy.uint64(0xD6E8FEB86659FD93)
    with numpy.errstate(over="ignore"):
        hashed = mix(mix(numpy.uint64(key) + token) + numpy.uint64(0x9E3779B97F4A7C15))
    return (hashed >> numpy.uint64(40)).astype(numpy.float32) / numpy.float32(1 << 21) - numpy.float32(4)


class Config(PretrainedConfig):
    model_type = "hashed"

    def __init__(self, vocab_size=16, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.num_hidden_layers = 1
        self.hidden_size = 1


class Hashed(PreTrainedModel, GenerationMixin):
    config_class = Config
    main_input_name = "input_ids"
    _supports_cache_class = False

    def __init__(self, config, seed):
        super().__init__(config)
        self.seed = seed
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, return_dict=True, **kwargs):
        rows = [logits(self.seed, row.tolist(), self.config.vocab_size) for row in input_ids]
        return CausalLMOutput(logits=torch.from_numpy(numpy.stack(rows))[:, None, :])


def stable_topk(input, k, dim=-1, largest=True, sorted=True):
    values, indices = torch.sort(input, dim=dim, descending=True, stable=True)
    return values.narrow(dim, 0, k), indices.narrow(dim, 0, k)


def run(case):
    torch.topk = stable_topk
    vocab, eos = case["vocab"], case["eos"]
    pad = vocab - 1
    config = Config(vocab_size=vocab, is_encoder_decoder=False)
    model = Hashed(config, case["seed"])
    model.generation_config = GenerationConfig()
    settings = dict(case["settings"])
    settings["suppress_tokens"] = [pad]
    generation = GenerationConfig(
        eos_token_id=eos or None,
        pad_token_id=pad,
        use_cache=False,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    prompt = torch.tensor([case["prompt"]])
    out = model.generate(prompt, generation_config=generation, attention_mask=torch.ones_like(prompt))
    found = []
    for ids, score in zip(out.sequences.tolist(), out.sequences_scores.tolist()):
        ids = ids[len(case["prompt"]):]
        while ids and ids[-1] == pad:
            ids.pop()
        found.append({"ids": ids, "score": round(score, 6)})
    return found


def beam_cases():
    rng = random.Random(1)
    widths = list(range(1, 17))
    stopping = [False, True, "never"]
    penalties = [1.0, 0.0, 2.0, -1.0, 0.5]
    for number, (width, early, penalty) in enumerate(itertools.product(widths, stopping, penalties)):
        if width == 1:
            continue
        vocab = rng.choice([8, 12, 24, 60, 300])
        eos = sorted(rng.sample(range(vocab - 1), rng.choice([0, 1, 1, 1, 2, 3])))
        if (1 + max(1, len(eos))) * width > width * vocab:
            continue
        settings = {
            "num_beams": width,
            "num_return_sequences": rng.choice([1, width, rng.randint(1, width)]),
            "early_stopping": early,
            "length_penalty": penalty,
            "max_new_tokens": rng.randint(1, 14),
        }
        if rng.random() < 0.25:
            settings["min_new_tokens"] = rng.randint(1, 5)
        if rng.random() < 0.25:
            settings["min_length"] = rng.randint(1, 8)
        if rng.random() < 0.25:
            settings["no_repeat_ngram_size"] = rng.randint(1, 3)
        if rng.random() < 0.25:
            settings["repetition_penalty"] = rng.choice([1.3, 2.0, 0.8])
        if rng.random() < 0.2:
            settings["forced_bos_token_id"] = rng.randrange(vocab - 1)
        if rng.random() < 0.2:
            settings["forced_eos_token_id"] = rng.randrange(vocab - 1)
        if rng.random() < 0.15 and eos:
            settings["exponential_decay_length_penalty"] = (rng.randint(0, 3), 1.2)
        prompt = [rng.randrange(vocab - 1) for _ in range(rng.choice([1, 1, 2, 5]))]
        yield {"seed": number, "vocab": vocab, "eos": eos, "prompt": prompt, "settings": settings}


def group_cases():
    rng = random.Random(2)
    number = 1000
    shapes = [(2, 2), (4, 2), (4, 4), (6, 2), (6, 3), (8, 2), (8, 4), (16, 4), (16, 2), (9, 3)]
    for (width, groups), early in itertools.product(shapes, [False, True, "never"]):
        for _ in range(2):
            number += 1
            vocab = rng.choice([12, 24, 60, 300])
            eos = sorted(rng.sample(range(vocab - 1), rng.choice([1, 1, 2])))
            settings = {
                "num_beams": width,
                "num_beam_groups": groups,
                "diversity_penalty": rng.choice([0.5, 1.0, 3.0]),
                "num_return_sequences": rng.choice([1, width]),
                "early_stopping": early,
                "length_penalty": rng.choice([1.0, 0.0, 2.0, -1.0]),
                "max_new_tokens": rng.randint(1, 12),
            }
            if rng.random() < 0.25:
                settings["min_new_tokens"] = rng.randint(1, 5)
            if rng.random() < 0.25:
                settings["no_repeat_ngram_size"] = rng.randint(2, 3)
            if rng.random() < 0.25:
                settings["repetition_penalty"] = rng.choice([1.3, 2.0])
            prompt = [rng.randrange(vocab - 1) for _ in range(rng.choice([1, 2, 5]))]
            yield {"seed": number, "vocab": vocab, "eos": eos, "prompt": prompt, "settings": settings}


def main(path):
    cases = group_cases() if "groups" in path else beam_cases()
    lines = [json.dumps(case | {"found": run(case)}) for case in cases]
    with open(path, "w") as file:
        file.write("[\n" + ",\n".join(lines) + "\n]\n")


main(sys.argv[1])
