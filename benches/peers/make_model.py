"""Makes a model with random weights, or another library's form of one that was made.

    python make_model.py NAME hf OUT              a directory in transformers' layout
    python make_model.py NAME FORM OUT --from HF  ct2-f32, ct2-int8, openvino-f32, openvino-int8,
                                                  onnx-f32, gguf-q8_0, gguf-q4_0

The shapes are those of models that people serve; the weights have the spread of an initialised model.
"""

import argparse
import json
import pathlib
import sys

BART = {
    "model_type": "bart",
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "normalize_before": False,
    "normalize_embedding": True,
    "dropout": 0.0,
}

LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def bart(dim, layers, heads):
    shape = {"d_model": dim}
    for side in ("encoder", "decoder"):
        shape[f"{side}_layers"] = layers
        shape[f"{side}_attention_heads"] = heads
        shape[f"{side}_ffn_dim"] = 4 * dim
    return BART | shape


# Name: the config, and the type that the weights are saved in.
MODELS = {
    "bart-large": (bart(1024, 12, 16), "float32"),
    "bart-base": (bart(768, 6, 12), "float32"),
    "llama-1b": (
        LLAMA
        | {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rope_theta": 500000.0,
            "max_position_embeddings": 8192,
        },
        "bfloat16",
    ),
    "smollm2-135m": (
        LLAMA
        | {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "rope_theta": 100000.0,
            "max_position_embeddings": 8192,
        },
        "bfloat16",
    ),
}


def transformers_layout(name, out):
    import torch
    import transformers

    values, dtype = MODELS[name]
    values = dict(values)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(1)
    kind = (
        transformers.BartForConditionalGeneration
        if config.is_encoder_decoder
        else transformers.LlamaForCausalLM
    )
    model = kind(config).to(getattr(torch, dtype))
    # Biases and norms are not all equal in a trained model; a mistake with them is to show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(out)
    tokenizer(config.vocab_size).save_pretrained(out)


def tokenizer(vocab):
    """One word a token: only for converters, which want names."""
    import tokenizers
    import transformers

    words = ["<s>", "<pad>", "</s>", "<unk>"] + [f"t{idx}" for idx in range(4, vocab)]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model),
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def ctranslate2_form(source, out, kind):
    from ctranslate2.converters import TransformersConverter

    quantization = {"f32": "float32", "int8": "int8"}[kind]
    TransformersConverter(str(source)).convert(str(out), quantization=quantization)
    config = json.loads((source / "config.json").read_text())
    is_bart = config["model_type"] == "bart"
    (out / "kind.json").write_text(json.dumps({"has_encoder": is_bart}))


def gguf_form(source, out, kind):
    import gguf

    from gguf_form import write

    types = gguf.GGMLQuantizationType
    write(source, out, {"q8_0": types.Q8_0, "q4_0": types.Q4_0}[kind])


def traced(source, attention):
    """A model whose call takes token ids and gives the hidden states, and an example of its input."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    if not config.is_encoder_decoder:
        sys.exit("only encoder-decoder models are exported, for their hidden states")

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            kind = transformers.AutoModelForSeq2SeqLM
            whole = kind.from_pretrained(
                source, dtype=torch.float32, attn_implementation=attention
            )
            self.inner = whole.model

        def forward(self, ids, decoder_ids):
            out = self.inner(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False)
            return out.last_hidden_state

    ids = torch.arange(16, 16 + 2 * 24).reshape(2, 24)
    return Hidden().eval(), (ids, ids)


def openvino_form(source, out, kind):
    import openvino
    import torch

    model, example = traced(source, "sdpa")
    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=example)
    if kind == "int8":
        import nncf

        converted = nncf.compress_weights(converted)
    openvino.save_model(converted, out / "model.xml", compress_to_fp16=False)


def onnx_form(source, out, kind):
    import torch

    model, example = traced(source, "eager")
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        model, example, dynamo=True, dynamic_shapes={"ids": sizes, "decoder_ids": sizes}
    )
    program.save(str(out / "model.onnx"), external_data=True)


FORMS = {
    "ct2": ctranslate2_form,
    "gguf": gguf_form,
    "openvino": openvino_form,
    "onnx": onnx_form,
}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("name", choices=MODELS)
    arguments.add_argument("form")
    arguments.add_argument("out", type=pathlib.Path)
    arguments.add_argument("--from", dest="source", type=pathlib.Path)
    arguments = arguments.parse_args()
    if arguments.form == "hf":
        return transformers_layout(arguments.name, arguments.out)
    form, kind = arguments.form.split("-", 1)
    if form in ("openvino", "onnx"):
        arguments.out.mkdir(parents=True)
    FORMS[form](arguments.source, arguments.out, kind)


if __name__ == "__main__":
    main()
