"""Makes tokenizers in every form that files come in, and what transformers makes of them.

    python make_tokenizers.py            the committed reference
    python make_tokenizers.py --many N   N random texts more and every fixture of --fixtures DIR

Needs transformers 5.23.0. Writes tokenizers/<variant>/* and tokenizers/reference.json.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

from transformers import AutoTokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
OUT = HERE / "tokenizers"

TEXTS = [
    "", " ", "  ", "\n", "Hello world", "Hello, my name is Ünïcödé. It's 3.14!", "  two  spaces  and\ttabs\n\nlines \r\n",
    "don't you'll we've I'm he's they're", "naïve café résumé", "東京は日本の首都です。", "مرحبا بالعالم", "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 end",
    "a\u0300 e\u0301 combining", "zero\u200bwidth\u00a0nbsp\ufeffbom", "control \x00\x01\x1f\x7f chars", "<s>special</s> <mask> [CLS] [SEP] [MASK] <|endoftext|>",
    " <mask> <s>a", "UPPER lower MiXeD", "1234567890 12 345 6,789.00", "a.b,c;d:e!f?g-h_i(j)k[l]{m}\"n\"'o'", "﷽ \U0010ffff \ufffd", "▁under ▁score", "x" * 150,
    "the quick brown fox " * 12, "ﬁ ligature Ⅷ ½ ① ｆｕｌｌ", "\u2028line\u2029para", "tail ", "trailing newline\n", "<0x41><0xE2>", "it 's a test , do n't you think ? yes !",
    "the ext a new<tok>en here <new> tok", "[INST] hi [/INST]</s><unk>",
]
PAIRS = [("Hello world", "how are you"), ("", "second")]


def write(name, files, base=None, keep=()):
    target = OUT / name
    target.mkdir(parents=True)
    for file in keep:
        shutil.copy(ROOT / "tests/fixtures" / base / file, target / file)
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (target / file).write_text(text, encoding="utf-8")


def stored(base):
    return json.loads((ROOT / "tests/fixtures" / base / "tokenizer.json").read_text(encoding="utf-8"))


def bpe_files(base):
    model = stored(base)["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {"vocab.json": model["vocab"], "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n"}


def vocab_txt(base):
    vocab = stored(base)["model"]["vocab"]
    return {"vocab.txt": "\n".join(sorted(vocab, key=vocab.get)) + "\n"}


def make_variants():
    shutil.rmtree(OUT, ignore_errors=True)
    write("gpt2_files", bpe_files("gpt2") | {"config.json": {"model_type": "gpt2"}, "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}})
    write("opt_files", bpe_files("opt") | {
        "config.json": {"model_type": "opt"},
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace",
            "unk_token": {"content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "__type": "AddedToken"},
            "bos_token": {"content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "__type": "AddedToken"},
            "eos_token": {"content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "__type": "AddedToken"}, "pad_token": "<pad>"},
        "special_tokens_map.json": {"bos_token": {"content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True},
            "eos_token": {"content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True},
            "unk_token": {"content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}, "pad_token": "<pad>"}})
    write("bart_files", bpe_files("bart") | {"config.json": {"model_type": "bart"}, "tokenizer_config.json": {"model_max_length": 1024},
        "special_tokens_map.json": {"bos_token": "<s>", "mask_token": {"content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}}})
    write("roberta_prefix", {"config.json": {"model_type": "roberta"}, "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": True, "trim_offsets": True}}, "roberta", ["tokenizer.json"])
    write("bert_vocab", vocab_txt("bert") | {"config.json": {"model_type": "bert"}, "tokenizer_config.json": {"do_lower_case": False, "strip_accents": True, "model_max_length": 512}})
    write("bert_clean", {"config.json": {"model_type": "bert"}, "tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast", "clean_up_tokenization_spaces": True, "model_max_length": 1e30}}, "bert", ["tokenizer.json"])
    cased = stored("bert")
    cased["normalizer"]["lowercase"] = False
    cased["decoder"]["cleanup"] = False
    write("bert_stored", {"config.json": {"model_type": "bert"}, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True, "unk_token": "[UNK]"}, "tokenizer.json": cased})
    write("llama_legacy", {"config.json": {"model_type": "llama"}, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, "add_bos_token": False, "add_eos_token": True}}, "llama_mha", ["tokenizer.json"])
    decoder = {str(t["id"]): {k: t[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")} for t in stored("llama_mha")["added_tokens"]}
    n = len(stored("llama_mha")["model"]["vocab"])
    decoder[str(n)] = {"content": "<new>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False, "special": False}
    decoder[str(n + 1)] = {"content": "<tok>", "lstrip": True, "normalized": True, "rstrip": False, "single_word": False, "special": True}
    write("llama_added", {"config.json": {"model_type": "llama"}, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "legacy": False, "added_tokens_decoder": decoder, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>", "additional_special_tokens": ["[INST]"]}}, "llama_mha", ["tokenizer.json"])
    write("gpt2_added", {"config.json": {"model_type": "gpt2"}, "tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast", "clean_up_tokenization_spaces": True}, "added_tokens.json": {"<tok>": 320, "<pad>": 321}, "special_tokens_map.json": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<pad>", "additional_special_tokens": ["<new>"]}}, "gpt2", ["tokenizer.json"])
    cut = stored("bart")
    cut["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    cut["padding"] = {"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    write("bart_cut", {"config.json": {"model_type": "bart"}, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "extra_special_tokens": {"image_token": "<new>"}}, "tokenizer.json": cut})
    write("bart_plain", {"config.json": {"model_type": "bart"}}, "bart", ["tokenizer.json"])
    bare = stored("gpt2")
    bare["post_processor"] = None
    write("gpt2_bare", {"config.json": {"model_type": "gpt2"}, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "bos_token": "<|endoftext|>"}, "tokenizer.json": bare})
    write("gpt2_split", {"config.json": {"model_type": "gpt2"}, "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "split_special_tokens": True, "clean_up_tokenization_spaces": True, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}}, "gpt2", ["tokenizer.json"])


def describe(path, texts, rng):
    tokenizer = AutoTokenizer.from_pretrained(path)
    top = max(tokenizer.get_vocab().values())
    cases = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        cases.append([ids, tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode(ids)])
    pairs = [[e["input_ids"], e["token_type_ids"]] for e in (tokenizer(a, b, return_token_type_ids=True) for a, b in PAIRS)]
    # Tokens as a model may say them, halves of letters and unknown ids included.
    said = [[rng.randrange(top + 3) for _ in range(rng.choice([1, 5, 40, 200]))] for _ in range(8)]
    random_ids = [[ids, tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode(ids)] for ids in said]
    limit = tokenizer.model_max_length
    return {
        "class": type(tokenizer).__name__, "vocab_size": top + 1, "cases": cases, "pairs": pairs, "decode": random_ids,
        "special": {k: getattr(tokenizer, k + "_token_id") for k in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")},
        "model_max_length": None if limit > 2**32 else int(limit), "chat_template": tokenizer.chat_template,
    }


def random_text(rng):
    pools = [(32, 127), (32, 127), (0, 256), (0x300, 0x370), (0x4E00, 0x4E80), (0x1F600, 0x1F650), (0, 0xD7FF), (0xE000, 0x10FFFF)]
    parts = []
    for _ in range(rng.randrange(1, 6)):
        low, high = rng.choice(pools)
        parts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 12))))
        parts.append(rng.choice(["", " ", "  ", "<s>", "\n", "<mask>"]))
    return "".join(parts)


parser = argparse.ArgumentParser()
parser.add_argument("--many", type=int, default=0)
parser.add_argument("--fixtures", type=Path, default=ROOT / "tests/fixtures")
arguments = parser.parse_args()
rng = random.Random(7)
make_variants()
texts = TEXTS + [random_text(rng) for _ in range(arguments.many)]
if arguments.many:
    texts += ["word " * 4000, "x" * 20000, "😀" * 1000]
reference = {"texts": texts, "pairs": PAIRS, "tokenizers": {}}
folders = sorted(OUT.iterdir()) + sorted(p for p in arguments.fixtures.iterdir() if (p / "tokenizer.json").exists())
folders += [ROOT / "config/models/bart-g2p"]
for folder in folders:
    if folder.is_dir():
        shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
        reference["tokenizers"][str(shown)] = describe(folder, texts, rng)
(OUT / "reference.json").write_text(json.dumps(reference, ensure_ascii=True, separators=(",", ":")))
