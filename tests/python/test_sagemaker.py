"""SageMaker's client against the container's own routes.

Between the client and a container stands SageMaker, which takes `/endpoints/NAME/invocations` and asks
the container for `/invocations`. Here a hook of the client's does that. SageMaker also wraps a
streamed body into events of its own, so `invoke_endpoint_with_response_stream` can't read what a
container sends; the stream is read as it comes, by the HTTP library under that client.
"""

import json
import unittest

import boto3
import urllib3
from botocore.config import Config
from botocore.exceptions import ClientError

from support import EMBEDDINGS_URL, URL

FRANCE = "The capital of France is"


def runtime(url: str):
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=300),
    )

    def to_the_container(request, **_):
        request.url = f"{url}/invocations"

    client.meta.events.register("before-sign.sagemaker-runtime.InvokeEndpoint", to_the_container)
    return client


def invoke(url: str, body, **fields):
    fields = {"EndpointName": "endpoint", "ContentType": "application/json", "Body": json.dumps(body), **fields}
    return runtime(url).invoke_endpoint(**fields)


class Invocations(unittest.TestCase):
    def test_text_generation(self):
        parameters = {"max_new_tokens": 8, "do_sample": False, "details": True, "return_full_text": False}
        reply = invoke(URL, {"inputs": FRANCE, "parameters": parameters})
        self.assertEqual(reply["ResponseMetadata"]["HTTPStatusCode"], 200)
        answer = json.loads(reply["Body"].read())
        answer = answer[0] if isinstance(answer, list) else answer
        self.assertTrue(answer["generated_text"].endswith(" Paris.\n\nThe answer is:"), answer)

    def test_a_conversation(self):
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        reply = invoke(URL, {"messages": messages, "max_tokens": 24, "temperature": 0})
        answer = json.loads(reply["Body"].read())
        self.assertEqual(answer["choices"][0]["message"]["content"], "The capital of France is Paris.")

    def test_features(self):
        reply = invoke(EMBEDDINGS_URL, {"inputs": "the quick fox"})
        features = json.loads(reply["Body"].read())
        self.assertGreater(len(features[0][0]), 0)

    def test_an_error_keeps_its_words(self):
        with self.assertRaises(ClientError) as caught:
            invoke(URL, {"messages": []})
        status = caught.exception.response["ResponseMetadata"]["HTTPStatusCode"]
        self.assertIn(status, (400, 422, 424))

    def test_a_stream_comes_in_lines(self):
        parameters = {"max_new_tokens": 8, "do_sample": False}
        body = {"inputs": FRANCE, "parameters": parameters, "stream": True}
        reply = urllib3.PoolManager().request(
            "POST", f"{URL}/invocations", body=json.dumps(body), preload_content=False,
            headers={"Content-Type": "application/json"})
        self.assertEqual(reply.status, 200)
        self.assertEqual(reply.headers["Transfer-Encoding"], "chunked")
        self.assertTrue(reply.headers["Content-Type"].startswith("application/jsonlines"))
        lines = [json.loads(line) for line in b"".join(reply.stream()).splitlines() if line]
        text = "".join(line["token"]["text"] for line in lines)
        self.assertEqual(text, " Paris.\n\nThe answer is:")
        self.assertEqual(lines[-1]["generated_text"], text)


if __name__ == "__main__":
    unittest.main()
