"""The official client of OpenAI against the model that ships with Drivetrain, an encoder-decoder.

The expected texts are those that the model's own README gives, made with transformers.
"""

import unittest

import openai

from support import BART_URL, client, served_model


class Bart(unittest.TestCase):
    def setUp(self):
        self.client, self.model = client(BART_URL), served_model(BART_URL)

    def complete(self, prompt, **fields):
        fields = {"max_tokens": 32, "temperature": 0, **fields}
        return self.client.completions.create(model=self.model, prompt=prompt, **fields)

    def test_an_encoder_decoder_completes(self):
        choice = self.complete("serving").choices[0]
        self.assertEqual((choice.text, choice.finish_reason), ("s\u02c8\u025dv\u026a\u014b", "stop"))

    def test_several_prompts_are_answered_in_order(self):
        words = ["serving", "engine", "model"]
        together = self.complete(words)
        alone = [self.complete(word).choices[0].text for word in words]
        self.assertEqual([choice.index for choice in together.choices], [0, 1, 2])
        self.assertEqual([choice.text for choice in together.choices], alone)

    def test_a_stream_says_the_same(self):
        chunks = self.complete("engine", stream=True)
        text = "".join(chunk.choices[0].text for chunk in chunks)
        self.assertEqual(text, self.complete("engine").choices[0].text)

    def test_log_probabilities(self):
        logprobs = self.complete("serving", logprobs=2).choices[0].logprobs
        for own, top in zip(logprobs.token_logprobs, logprobs.top_logprobs):
            self.assertLessEqual(own, 0)
            self.assertAlmostEqual(own, max(top.values()), places=5)

    def test_choices_repeat_with_their_seed(self):
        ask = {"temperature": 1.2, "n": 4, "seed": 11}
        first, second = (self.complete("serving", **ask) for _ in range(2))
        texts = [choice.text for choice in first.choices]
        self.assertEqual(texts, [choice.text for choice in second.choices])
        self.assertGreater(len(set(texts)), 1)

    def test_a_chat_needs_a_template(self):
        ask = [{"role": "user", "content": "serving"}]
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model=self.model, messages=ask)
        self.assertIn("chat_template", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
