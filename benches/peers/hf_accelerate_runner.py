"""Hugging Face Accelerate: a quarter of the weights in memory, the rest read from their file in each pass."""

import tempfile
import time

import accelerate
import torch
import transformers

from runner import serve
from torch_runner import DTYPES, Model


def placed(n_layers):
    """The embeddings, which are the head, too, and a layer in memory; the rest on the disk."""
    inner = {"embed_tokens": "cpu", "norm": "cpu", "rotary_emb": "cpu", "layers.0": "cpu"}
    on_disk = {f"model.layers.{idx}": "disk" for idx in range(1, n_layers)}
    return {f"model.{name}": device for name, device in inner.items()} | {"lm_head": "cpu"} | on_disk


def load(arguments):
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    started = time.perf_counter()
    config = transformers.AutoConfig.from_pretrained(arguments.model)
    folder = tempfile.TemporaryDirectory()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model,
        dtype=DTYPES[arguments.format],
        attn_implementation="sdpa",
        device_map=placed(config.num_hidden_layers),
        offload_folder=folder.name,
    )
    model = Model(model.eval())
    model.folder = folder
    return started, accelerate.__version__, model


if __name__ == "__main__":
    serve("accelerate", load)
