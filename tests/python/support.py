"""The server under test, which the Rust test that runs these files starts."""

import os

import openai

URL = os.environ["DRIVETRAIN_URL"]
EMBEDDINGS_URL = os.environ["DRIVETRAIN_EMBEDDINGS_URL"]
BART_URL = os.environ["DRIVETRAIN_BART_URL"]


def client(url: str = URL) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)


def served_model(url: str = URL) -> str:
    """The name of the one model that is served there."""
    models = list(client(url).models.list())
    assert len(models) == 1, models
    return models[0].id
