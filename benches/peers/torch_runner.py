"""PyTorch, eager, with transformers' models and scaled dot product attention."""

import time

import torch
import transformers

from runner import sampled, serve

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Model:
    def __init__(self, model):
        self.model = model
        self.has_encoder = model.config.is_encoder_decoder

    def hidden(self, command):
        ids = torch.tensor(command["ids"])
        inner = self.model.model
        return lambda: guarded(lambda: inner(input_ids=ids, use_cache=False).last_hidden_state)

    def prefill(self, command):
        ids = torch.tensor(command["ids"])
        return lambda: guarded(
            lambda: self.model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[:, -1]
        )

    def generate(self, command):
        ids = torch.tensor(command["ids"])
        greedy = self.with_encoder if self.has_encoder else self.decoder_only
        if command["n_beams"] == 1:
            return lambda: guarded(lambda: greedy(ids, command))
        return lambda: guarded(lambda: self.beams(ids, command))

    def decoder_only(self, ids, command):
        past, steps = None, []
        for _ in range(command["n_new"]):
            out = self.model(
                input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1
            )
            past, ids = out.past_key_values, best(out.logits[:, -1], command)
            steps.append(ids)
        return torch.cat(steps, 1)

    def with_encoder(self, ids, command):
        encoded = self.model.get_encoder()(input_ids=ids)
        step = torch.full((len(ids), 1), command["decoder_start"])
        past, steps = None, []
        for _ in range(command["n_new"]):
            out = self.model(
                encoder_outputs=encoded,
                decoder_input_ids=step,
                past_key_values=past,
                use_cache=True,
            )
            past, step = out.past_key_values, best(out.logits[:, -1], command)
            steps.append(step)
        return torch.cat(steps, 1)

    def beams(self, ids, command):
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=command["n_beams"],
            do_sample=False,
            early_stopping=False,
            min_new_tokens=command["n_new"],
            max_new_tokens=command["n_new"],
            eos_token_id=command["eos"],
            decoder_start_token_id=command["decoder_start"],
            forced_bos_token_id=None,
            forced_eos_token_id=None,
            no_repeat_ngram_size=0,
        )
        return out[:, -command["n_new"] :]

    def values(self, result, task):
        if task == "prefill":
            return result[0].float().tolist()
        rows = [row for rows in result.float() for row in sampled(rows)]
        return torch.cat(rows).tolist()

    def tokens(self, result):
        return result.tolist()


def guarded(work):
    with torch.inference_mode():
        return work()


def best(logits, command):
    logits[:, command["eos"]] = -torch.inf
    return logits.argmax(-1, keepdim=True)


def load(arguments):
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    started = time.perf_counter()
    config = transformers.AutoConfig.from_pretrained(arguments.model)
    kind = (
        transformers.AutoModelForSeq2SeqLM
        if config.is_encoder_decoder
        else transformers.AutoModelForCausalLM
    )
    model = kind.from_pretrained(
        arguments.model, dtype=DTYPES[arguments.format], attn_implementation="sdpa"
    )
    return started, torch.__version__, Model(model.eval())


if __name__ == "__main__":
    serve("torch", load)
