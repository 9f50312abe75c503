"""The official client of OpenAI against a real chat model.

The expected tokens were made with transformers 5.23.0 and torch 2.11.0, greedy, float32; how far they
are compared leaves out the places where two engines may differ by rounding.
"""

import json
import math
import unittest

import openai

from support import EMBEDDINGS_URL, client, served_model

FRANCE = "The capital of France is"
ASK = [{"role": "user", "content": "What is the capital of France?"}]
CAPITAL = "The capital of France is Paris."
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Completions(unittest.TestCase):
    def setUp(self):
        self.client, self.model = client(), served_model()

    def complete(self, **fields):
        fields = {"model": self.model, "prompt": FRANCE, "max_tokens": 8, "temperature": 0, **fields}
        return self.client.completions.create(**fields)

    def test_greedy_tokens_are_those_of_transformers(self):
        answer = self.complete()
        choice = answer.choices[0]
        self.assertEqual(answer.object, "text_completion")
        self.assertEqual(choice.text, " Paris.\n\nThe answer is:")
        self.assertEqual(choice.finish_reason, "length")
        usage = answer.usage
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (5, 8, 13))

    def test_a_stream_says_the_same(self):
        whole = self.complete().choices[0]
        chunks = list(self.complete(stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        self.assertEqual(text, whole.text)
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        self.assertEqual([end for end in ends if end], ["length"])
        self.assertEqual(chunks[-1].usage.completion_tokens, 8)
        self.assertGreater(len(chunks), 4, "tokens come one by one")

    def test_log_probabilities(self):
        logprobs = self.complete(max_tokens=3, logprobs=3).choices[0].logprobs
        self.assertEqual(logprobs.tokens, [" Paris", ".", "\n"])
        for found, expected in zip(logprobs.token_logprobs, [-0.2581, -0.3801, -1.0093]):
            self.assertAlmostEqual(found, expected, delta=2e-3)
        best = logprobs.top_logprobs[0]
        self.assertEqual(list(best), [" Paris", " the", " London"])
        self.assertAlmostEqual(best[" London"], -4.3844, delta=2e-3)
        self.assertEqual(logprobs.text_offset, [0, 6, 7])

    def test_an_echo_has_the_prompt_with_its_log_probabilities(self):
        choice = self.complete(max_tokens=1, echo=True, logprobs=0).choices[0]
        self.assertEqual(choice.text, FRANCE + " Paris")
        self.assertEqual(choice.logprobs.tokens, ["The", " capital", " of", " France", " is", " Paris"])
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        self.assertTrue(all(value < 0 for value in choice.logprobs.token_logprobs[1:]))

    def test_a_stop_string_ends_the_text_and_is_left_out(self):
        choice = self.complete(stop=[".\n", "zzz"]).choices[0]
        self.assertEqual((choice.text, choice.finish_reason), (" Paris", "stop"))
        chunks = list(self.complete(stop=[".\n"], stream=True))
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks if chunk.choices), " Paris")

    def test_several_prompts_and_choices_are_in_order(self):
        prompts = [FRANCE, "def fibonacci(n):\n"]
        answer = self.complete(prompt=prompts, max_tokens=4)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])
        self.assertEqual(answer.choices[0].text, " Paris.\n\n")
        self.assertEqual(answer.choices[1].text, "\ndef fibonacci")
        sampled = self.complete(prompt=prompts, n=2, temperature=1.0, seed=3, max_tokens=4)
        self.assertEqual([choice.index for choice in sampled.choices], [0, 1, 2, 3])
        self.assertEqual(sampled.usage.completion_tokens, 16)

    def test_tokens_are_a_prompt_too(self):
        answer = self.complete(prompt=[504, 3575, 282, 4649, 314], max_tokens=2)
        self.assertEqual(answer.choices[0].text, " Paris.")

    def test_a_seed_repeats_the_answer(self):
        draw = lambda seed: self.complete(temperature=1.0, seed=seed, max_tokens=12).choices[0].text
        self.assertEqual(draw(7), draw(7))
        self.assertGreater(len({draw(seed) for seed in range(5)}), 1)


class Chat(unittest.TestCase):
    def setUp(self):
        self.client, self.model = client(), served_model()

    def chat(self, **fields):
        fields = {"model": self.model, "messages": ASK, "max_tokens": 24, "temperature": 0, **fields}
        return self.client.chat.completions.create(**fields)

    def test_the_template_is_the_models(self):
        answer = self.chat()
        choice = answer.choices[0]
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual((choice.message.role, choice.message.content), ("assistant", CAPITAL))
        self.assertEqual(choice.finish_reason, "stop")
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (37, 8))

    def test_contents_may_have_parts(self):
        parts = [{"type": "text", "text": ASK[0]["content"]}]
        answer = self.chat(messages=[{"role": "user", "content": parts}])
        self.assertEqual(answer.choices[0].message.content, CAPITAL)

    def test_a_stream_says_the_same(self):
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        self.assertEqual(deltas[0].role, "assistant")
        self.assertEqual("".join(delta.content or "" for delta in deltas), CAPITAL)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")
        self.assertEqual(chunks[-1].usage.prompt_tokens, 37)

    def test_a_stream_may_be_left(self):
        with self.chat(stream=True, max_tokens=2000, extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
        self.assertEqual(self.chat().choices[0].message.content, CAPITAL)

    def test_log_probabilities_have_bytes(self):
        content = self.chat(max_tokens=3, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        self.assertEqual([token.token for token in content], ["The", " capital", " of"])
        for token in content:
            self.assertEqual(bytes(token.bytes).decode(), token.token)
            self.assertEqual(len(token.top_logprobs), 2)
        self.assertAlmostEqual(content[0].logprob, -1.8827, delta=2e-3)

    def test_a_schema_is_kept_to(self):
        schema = {
            "type": "object",
            "properties": {"capital": {"type": "string", "enum": ["Paris", "Rome"]}, "is_large": {"type": "boolean"}},
            "required": ["capital", "is_large"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "capital", "schema": schema, "strict": True}}
        choice = self.chat(response_format=wanted, max_tokens=100).choices[0]
        answer = json.loads(choice.message.content)
        self.assertEqual(set(answer), {"capital", "is_large"})
        self.assertIn(answer["capital"], ["Paris", "Rome"])
        self.assertIsInstance(answer["is_large"], bool)
        self.assertEqual(choice.finish_reason, "stop")

    def test_a_tool_that_has_to_be_called_is_called(self):
        named = {"type": "function", "function": {"name": "get_weather"}}
        choice = self.chat(tools=[TOOL], tool_choice=named, max_tokens=100).choices[0]
        call = choice.message.tool_calls[0]
        self.assertEqual((call.type, call.function.name), ("function", "get_weather"))
        arguments = json.loads(call.function.arguments)
        self.assertIn(arguments["city"], ["Paris", "Rome"])
        self.assertIn(arguments["days"], [1, 2])
        answered = [
            *ASK,
            {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "rain"},
        ]
        again = self.chat(messages=answered, tools=[TOOL], tool_choice="none").choices[0]
        self.assertIsInstance(again.message.content, str)


class Errors(unittest.TestCase):
    def setUp(self):
        self.client, self.model = client(), served_model()

    def check(self, expected: str, **fields):
        fields = {"model": self.model, "messages": ASK, "max_tokens": 4, **fields}
        with self.assertRaises(openai.APIStatusError) as caught:
            self.client.chat.completions.create(**fields)
        self.assertIn(caught.exception.status_code, (400, 404, 422), caught.exception)
        self.assertIn(expected, caught.exception.message)

    def test_they_name_the_field(self):
        self.check("messages", messages=[])
        self.check("messages[0]", messages=[{"role": "user", "content": 3}])
        self.check("temperature", temperature=-1)
        self.check("top_p", top_p=2)
        self.check("max_tokens", max_tokens=-1)
        self.check("n", n=1000)
        self.check("content[0]", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}])

    def test_a_prompt_that_is_too_long_is_refused(self):
        self.check("8192", messages=[{"role": "user", "content": "a b c d " * 4000}])

    def test_a_wrong_request_streamed_has_its_status_too(self):
        self.check("temperature", temperature=-1, stream=True)


class Embeddings(unittest.TestCase):
    def test_both_encodings_are_the_same_numbers(self):
        embed, model = client(EMBEDDINGS_URL).embeddings, served_model(EMBEDDINGS_URL)
        texts = ["the quick fox", "a lazy dog"]
        # Without a word of how, the client asks for base64.
        packed = embed.create(model=model, input=texts)
        plain = embed.create(model=model, input=texts, encoding_format="float")
        self.assertEqual([item.index for item in packed.data], [0, 1])
        for one, other in zip(packed.data, plain.data):
            self.assertEqual(len(one.embedding), len(other.embedding))
            for a, b in zip(one.embedding, other.embedding):
                self.assertAlmostEqual(a, b, delta=1e-6)
            self.assertTrue(all(math.isfinite(value) for value in one.embedding))
        self.assertNotEqual(packed.data[0].embedding, packed.data[1].embedding)
        self.assertGreater(packed.usage.prompt_tokens, 0)


if __name__ == "__main__":
    unittest.main()
