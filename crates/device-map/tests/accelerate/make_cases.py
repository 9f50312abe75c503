"""Makes cases.json: what Accelerate plans for random models, limits and options.

    pip install accelerate torch    # accelerate 1.15.0 with torch 2.15.0 made cases.json
    python make_cases.py

Each line of the file is one case: a tree of modules (class `c`, parameters `p`, buffers `b`, modules `m`),
tied parameters, limits and options, and for each mode the limits from `get_balanced_memory` and the map
from `infer_auto_device_map`, with the devices that it says got nothing and the buffers that it says don't
fit. A map is left out where the limits are those of `sequential`. `error` is what Accelerate raised instead.

Accelerate takes groups of tied parameters in the order of a Python set of strings, which changes from run
to run. Here they are sorted, so that one run is as good as another.
"""

import collections
import json
import logging
import random
import re
import signal
import sys
import warnings
from pathlib import Path

import accelerate
import torch
from accelerate.utils import modeling
from torch import nn

N_CASES = 320
DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i8": torch.int8,
    "bool": torch.bool,
}
NAMES = ["0", "1", "2", "10", "11", "a", "b", "aa", "ab", "linear1", "linear2", "layers", "norm", "proj", "head"]
CLASSES = ["Block", "Linear", "Norm", "List", "Mixer"]

find_tied_parameters = modeling.find_tied_parameters
get_max_memory = modeling.get_max_memory
modeling.find_tied_parameters = lambda model: sorted(find_tied_parameters(model))


class TooLong(Exception):
    """Accelerate has not come to an end."""


def build(tree, ties):
    """The tree as modules without storage."""
    module = type(tree["c"], (nn.Module,), {})()
    for name, n, dtype in tree["p"]:
        tensor = torch.empty(n, dtype=DTYPES[dtype], device="meta")
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    for name, n, dtype in tree["b"]:
        module.register_buffer(name, torch.empty(n, dtype=DTYPES[dtype], device="meta"))
    for name, child in tree["m"]:
        module.add_module(name, build(child, []))
    for first, *others in ties:
        for other in others:
            *path, name = other.split(".")
            setattr(module.get_submodule(".".join(path)), name, module.get_parameter(first))
    return module


def random_tree(rng, depth, root=False):
    """A tree at most `depth` modules deep."""
    n_children = 0 if depth == 0 else rng.choice([0, 1, 2, 2, 3])
    if root:
        n_children = rng.randint(2, 4)
    names = rng.sample(NAMES, n_children + 4)
    size = lambda: rng.choice([1, 2, 4, 5, 12, 16, 25, 40, 64, rng.randint(0, 100)])
    n_parameters = rng.choice([0, 0, 1]) if n_children else rng.choice([0, 1, 1, 2, 2])
    parameters = [
        [name, size(), rng.choice(["f32"] * 6 + ["f16", "bf16", "f64", "i8"])]
        for name in rng.sample(["weight", "bias", "w", "scale"], n_parameters)
    ]
    buffers = [
        [name, size(), rng.choice(["f32", "f32", "i64", "f16", "bool" if rng.random() < 0.3 else "f32"])]
        for name in rng.sample(["mean", "var", "mask"], rng.choice([0, 0, 0, 1, 2]))
    ]
    children = [[name, random_tree(rng, depth - 1)] for name in names[:n_children]]
    return {"c": rng.choice(CLASSES), "p": parameters, "b": buffers, "m": children}


def transformer(rng):
    """A tree as real models have it."""
    dim = rng.choice([4, 6, 8])
    wide = dim * rng.choice([2, 4])
    vocab = rng.choice([10, 30, 60])
    has_bias = rng.random() < 0.5

    def linear(rows, columns):
        bias = [["bias", rows, "f32"]] if has_bias else []
        return {"c": "Linear", "p": [["weight", rows * columns, "f32"]] + bias, "b": [], "m": []}

    def group(children, name="Mixer"):
        return {"c": name, "p": [], "b": [], "m": children}

    def norm():
        return {"c": "Norm", "p": [["weight", dim, "f32"]], "b": [], "m": []}

    def layer():
        attention = group([[name, linear(dim, dim)] for name in ["q", "k", "v", "o"]])
        if rng.random() < 0.3:
            attention["b"] = [["mask", 16, "bool"]]
        mlp = group([["up", linear(wide, dim)], ["down", linear(dim, wide)]])
        return group([["norm1", norm()], ["attn", attention], ["norm2", norm()], ["mlp", mlp]], "Block")

    layers = group([[str(i), layer()] for i in range(rng.choice([2, 3, 4, 6]))], "List")
    embed = {"c": "Linear", "p": [["weight", vocab * dim, "f32"]], "b": [], "m": []}
    model = group([["embed", embed], ["layers", layers], ["norm", norm()]])
    head = {"c": "Linear", "p": [["weight", vocab * dim, "f32"]], "b": [], "m": []}
    tree = group([["model", model], ["head", head]])
    ties = [["model.embed.weight", "head.weight"]] if rng.random() < 0.6 else []
    return tree, ties


def parameters_of(tree, prefix=""):
    for name, n, dtype in tree["p"]:
        yield prefix, name, n, dtype
    for name, child in tree["m"]:
        yield from parameters_of(child, f"{prefix}{name}.")


def random_ties(rng, tree):
    """Ties some parameters, and makes them alike for it."""
    free = list(parameters_of(tree))
    ties = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        rng.shuffle(free)
        group = []
        for place, name, *_ in free[: rng.choice([2, 2, 2, 3, 4])]:
            # Two in one module are one parameter to Accelerate, which then fails.
            if all(place != other for other, _ in group):
                group.append((place, name))
        free = [one for one in free if (one[0], one[1]) not in group]
        if len(group) > 1:
            n = rng.choice([4, 20, 36, 50])
            for place, name in group:
                module = tree
                for step in place.split(".")[:-1]:
                    module = dict(module["m"])[step]
                next(p for p in module["p"] if p[0] == name)[1:] = [n, "f32"]
            ties.append([place + name for place, name in group])
    return ties


def random_limits(rng, total, largest):
    """Limits around what would just do."""
    some = lambda: int(rng.choice([0.1, 0.3, 0.5, 0.7, 1, 1.3]) * total + rng.choice([0, 1, 1, 2]) * largest)
    n = rng.choice([0, 1, 1, 2, 2, 2, 3, 4])
    if rng.random() < 0.06:
        limits = {"mps": some()}
        return limits | ({"cpu": some()} if rng.random() < 0.5 else {})
    indices = list(range(n)) if rng.random() < 0.9 else sorted(rng.sample(range(6), n))
    limits = {index: 0 if rng.random() < 0.06 else some() // max(1, n - 1) for index in indices}
    if rng.random() < 0.5 or not limits:
        limits["cpu"] = some()
    if rng.random() < 0.1:
        limits["disk"] = some()
    return limits


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def plan(model, limits, options):
    """The map, or what was raised."""
    heard = Lines()
    logger = logging.getLogger("accelerate.utils.modeling")
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = modeling.infer_auto_device_map(model, dict(limits), **options)
    except (IndexError, KeyError, AttributeError, TooLong) as error:
        return {"error": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        logger.removeHandler(heard)
    short = re.findall(r"- (\w+): ([\d.]+) bytes required", "\n".join(heard.lines))
    buffers = re.findall(r"requires ([\d.]+) bytes of buffer", "\n".join(str(w.message) for w in caught))
    result = {"map": {name: str(device) for name, device in sorted(found.items())}}
    if short:
        result["short"] = {device: float(size) for device, size in short}
    if buffers:
        result["buffers"] = float(buffers[0])
    return result


def balanced(model, limits, options, low_zero, measured):
    """The limits, or what was raised."""
    # `disk` is not a device to get_balanced_memory, which fails over it.
    limits = {device: size for device, size in limits.items() if device != "disk"}
    modeling.get_max_memory = lambda given=None: dict(limits) if given is None else get_max_memory(given)
    shared = {key: options[key] for key in ["no_split_module_classes", "dtype", "special_dtypes"]}
    try:
        given = None if measured else dict(limits)
        return modeling.get_balanced_memory(model, given, low_zero=low_zero, **shared)
    except KeyError:
        return None
    finally:
        modeling.get_max_memory = get_max_memory


def make_case(seed):
    rng = random.Random(seed)
    kind = seed % 4
    if kind == 0:
        tree, ties = transformer(rng)
    else:
        tree, ties = random_tree(rng, rng.choice([1, 2, 3]), root=True), []
        if kind != 1:
            ties = random_ties(rng, tree)
    model = build(tree, ties)
    sizes = modeling.compute_module_sizes(model)
    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    largest = int(max([sizes[name] for name in leaves] + [1]))
    limits = random_limits(rng, int(sizes[""]), largest)
    names = [name for name, _ in modeling.named_module_tensors(model, recurse=True)]
    special = {}
    if rng.random() < 0.15 and names:
        special = {name: rng.choice(["f64", "f16", "i8"]) for name in rng.sample(names, min(3, len(names)))}
    dtype = rng.choice([None, None, None, "f16", "bf16", "f32", "i8"])
    whole = rng.sample(CLASSES, rng.choice([0, 1, 1, 2])) if rng.random() < 0.6 else []
    if kind == 0:
        whole = ["Block"] if rng.random() < 0.7 else []
    if ties and not tree["p"] and not tree["b"] and rng.random() < 0.3:
        # The first module just fits, and what it is tied to does not.
        (first, _), *rest = model.named_children()
        kept_free, _ = modeling.get_max_layer_size(rest, sizes, whole)
        limits, dtype, special = limits | {0: int(sizes[first] + kept_free)}, None, {}
    options = {
        "no_split_module_classes": whole,
        "dtype": dtype and DTYPES[dtype],
        "special_dtypes": {name: DTYPES[dtype] for name, dtype in special.items()} or None,
    }
    calls = options | {"offload_buffers": rng.random() < 0.3, "fallback_allocation": rng.random() < 0.4}
    measured = rng.random() < 0.2
    case = {
        "seed": seed,
        "model": tree,
        "ties": ties,
        "limits": {str(device): size for device, size in limits.items()},
        "measured": measured,
        "dtype": dtype,
        "special": special,
        "whole": whole,
        "fallback": calls["fallback_allocation"],
        "offload_buffers": calls["offload_buffers"],
        "sequential": plan(model, limits, calls),
    }
    for mode in ["balanced", "balanced_low_0"]:
        even = balanced(model, limits, options, mode == "balanced_low_0", measured)
        if even is None:
            case[mode] = {"error": "KeyError"}
            continue
        case[mode] = {"limits": {str(device): size for device, size in even.items()}}
        if any(size != limits[device] for device, size in even.items()):
            case[mode] |= plan(model, even, calls)
    return case


def too_long(*_):
    raise TooLong


def main():
    signal.signal(signal.SIGALRM, too_long)
    # It says for each index that there is no such device.
    modeling.logger.addHandler(logging.NullHandler())
    cases, seed = [], 0
    while len(cases) < N_CASES:
        case = make_case(seed)
        # Accelerate fails over many models with ties; a few of these suffice.
        if "map" in case["sequential"] or seed % 7 == 0:
            cases.append(case)
        seed += 1
    head = f'"accelerate":"{accelerate.__version__}","torch":"{torch.__version__.split("+")[0]}"'
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    path = Path(__file__).with_name("cases.json")
    path.write_text(f'{{{head},"cases":[\n{lines}\n]}}\n')
    results = [case[mode] for case in cases for mode in ["sequential", "balanced", "balanced_low_0"]]
    errors = collections.Counter(result["error"] for result in results if "error" in result)
    maps = sum("map" in result for result in results)
    print(f"{len(cases)} cases, {maps} maps, errors: {dict(errors)}", file=sys.stderr)


main()
