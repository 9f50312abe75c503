"""The runtime: answers, streams, many models, answers that come later, and what goes wrong."""

import json
import os
import tempfile
import time
import unittest

from botocore.exceptions import ClientError
from urllib.parse import urlparse

import local

# One handler that does what its text asks for.
SCRIPT = """
    import os, signal, time
    from djl_python import Output

    def pieces():
        for number in range(5):
            yield {"n": number}
            time.sleep(0.3)

    def broken():
        yield {"n": 0}
        time.sleep(0.5)
        os.kill(os.getppid(), signal.SIGKILL)
        yield {"n": 1}

    def handle(inputs):
        if inputs.is_empty():
            return None
        asked = inputs.get_as_string()
        if asked == "stream":
            return Output().add_stream_content(pieces())
        if asked == "break":
            return Output().add_stream_content(broken())
        if asked == "refuse":
            return Output(code=409, message="no").add("I refuse")
        if asked == "sleep":
            time.sleep(30)
        if asked == "large":
            return Output().add(b"x" * (7 << 20))
        if asked == "die":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(30)
        if asked == "tell":
            told = {k.lower(): v for k, v in inputs.get_properties().items()}
            told["greeting"] = os.environ.get("GREETING")
            told["place"] = os.environ["MODEL_PLACE"]
            told["is_place"] = os.path.samefile(os.environ["MODEL_PLACE"], os.getcwd())
            output = Output().add_as_json(told)
            return output.add_property("X-Amzn-SageMaker-Custom-Attributes", "b=2").add_property("X-Own", "1")
        return Output().add(asked.upper()).add_property("Content-Type", "text/x-loud")
"""


class Runtime(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        url = local.upload("runtime/model.tar.gz", local.handler(SCRIPT))
        environment = {"GREETING": "hello", "MODEL_PLACE": "/opt/ml/model"}
        cls.endpoint = local.Endpoint(url, Environment=environment)

    @classmethod
    def tearDownClass(cls):
        cls.endpoint.delete()

    def refused(self, call, *args, **fields):
        with self.assertRaises(ClientError) as caught:
            call(*args, **fields)
        return caught.exception.response

    def stream(self, body, **fields):
        reply = local.runtime.invoke_endpoint_with_response_stream(
            EndpointName=self.endpoint.name, Body=body, **{"ContentType": "text/plain", **fields})
        return reply, reply["Body"]

    def test_an_answer_and_its_headers(self):
        reply = self.endpoint.invoke("quiet")
        self.assertEqual(reply["Body"].read(), b"QUIET")
        self.assertEqual(reply["ContentType"], "text/x-loud")
        reply = self.endpoint.invoke("tell", CustomAttributes="a=1", InferenceId="id-1", Accept="application/json")
        told = json.loads(reply["Body"].read())
        self.assertEqual(reply["CustomAttributes"], "b=2")
        self.assertNotIn("x-own", reply["ResponseMetadata"]["HTTPHeaders"])
        self.assertEqual((told["greeting"], told["a"]), ("hello", "1"))
        self.assertEqual(told["x-amzn-sagemaker-inference-id"], "id-1")
        self.assertEqual(told["x-amzn-sagemaker-forwarded-api"], "InvokeEndpoint")
        self.assertEqual(told["accept"], "application/json")
        self.assertNotIn("authorization", told)
        # /opt/ml/model is where the model is, whatever that is called here.
        self.assertTrue(told["is_place"], told["place"])

    def test_a_container_that_refuses_is_a_model_error(self):
        error = self.refused(self.endpoint.invoke, "refuse")
        self.assertEqual(error["Error"]["Code"], "ModelError")
        self.assertEqual(error["ResponseMetadata"]["HTTPStatusCode"], 424)
        self.assertEqual(error["OriginalStatusCode"], 409)
        self.assertEqual(error["OriginalMessage"], "I refuse")

    def test_limits_of_time_and_size(self):
        begun = time.monotonic()
        error = self.refused(self.endpoint.invoke, "sleep")
        self.assertLess(time.monotonic() - begun, 20)
        self.assertEqual((error["Error"]["Code"], error["OriginalStatusCode"]), ("ModelError", 0))
        self.assertIn("did not answer within", error["OriginalMessage"])
        error = self.refused(self.endpoint.invoke, b"x" * ((6 << 20) + 1))
        self.assertEqual(error["Error"]["Code"], "ValidationError")
        self.assertIn("6291456", error["Error"]["Message"])
        error = self.refused(self.endpoint.invoke, "large")
        self.assertEqual(error["Error"]["Code"], "ModelError")
        self.assertIn("6291456", error["OriginalMessage"])

    def test_pieces_come_as_they_are_made(self):
        begun = time.monotonic()
        reply, events = self.stream("stream")
        self.assertEqual(reply["InvokedProductionVariant"], "v0")
        came = [(time.monotonic() - begun, event["PayloadPart"]["Bytes"]) for event in events]
        numbers = [json.loads(line)["outputs"]["n"] for line in b"".join(p for _, p in came).splitlines()]
        self.assertEqual(numbers, [0, 1, 2, 3, 4])
        self.assertGreaterEqual(len(came), 5)
        self.assertGreater(came[-1][0] - came[0][0], 0.9)

    def test_a_stream_that_is_refused_is_an_error(self):
        error = self.refused(self.stream, "refuse")
        self.assertEqual((error["Error"]["Code"], error["OriginalStatusCode"]), ("ModelError", 409))

    def test_tokens_of_a_native_model_are_streamed(self):
        model = os.path.join(local.FIXTURES, "gpt2")
        properties = f"option.model_id={model}\noption.task=text-generation\noption.rolling_batch=auto\n"
        endpoint = local.Endpoint(local.upload("gpt2/model.tar.gz", {"serving.properties": properties}))
        with open(os.path.join(model, "reference.json")) as file:
            reference = json.load(file)
        greedy = reference["greedy"][0]
        prompt, wanted = reference["prompts"][greedy["prompt"]]["text"], greedy["text"]
        n_tokens = len(greedy["new_ids"])
        body = json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": n_tokens, "do_sample": False},
                           "stream": True})
        reply = local.runtime.invoke_endpoint_with_response_stream(
            EndpointName=endpoint.name, ContentType="application/json", Body=body)
        parts = [event["PayloadPart"]["Bytes"] for event in reply["Body"]]
        lines = [json.loads(line) for line in b"".join(parts).splitlines() if line.strip()]
        self.assertGreater(len(lines), 1)
        self.assertEqual(lines[-1]["generated_text"], wanted)
        endpoint.delete()

    def test_a_container_that_dies_is_started_again(self):
        url = local.upload("runtime/model.tar.gz", local.handler(SCRIPT))
        endpoint = local.Endpoint(url)
        error = self.refused(endpoint.invoke, "die")
        self.assertIn(error["Error"]["Code"], ("ModelError", "ServiceUnavailable"))
        for _ in range(120):
            try:
                self.assertEqual(endpoint.text("again"), "AGAIN")
                break
            except ClientError as error:
                self.assertIn(error.response["ResponseMetadata"]["HTTPStatusCode"], (424, 503))
                time.sleep(0.25)
        else:
            self.fail("the container did not come back")
        told = local.sagemaker.describe_endpoint(EndpointName=endpoint.name)
        self.assertEqual(told["EndpointStatus"], "InService")
        # A stream that breaks says so in the stream.
        reply = local.runtime.invoke_endpoint_with_response_stream(
            EndpointName=endpoint.name, ContentType="text/plain", Body="break")
        with self.assertRaises(ClientError) as caught:
            self.assertIn(b'"n":0', b"".join(e["PayloadPart"]["Bytes"] for e in reply["Body"]))
        self.assertEqual(caught.exception.response["Error"]["Code"], "ModelStreamError")
        endpoint.delete()


# A model that takes one of two places while its process lives: all the memory there is.
PLACE = """
    import os
    from djl_python import Output

    NAME = open("name.txt").read()
    place = None

    def take():
        folder = os.environ["PLACES"]
        taken = [name for name in os.listdir(folder) if os.path.exists("/proc/" + name.split("-")[1])]
        if len(taken) >= 2:
            raise MemoryError("both places are taken")
        path = os.path.join(folder, f"{NAME}-{os.getpid()}")
        open(path, "w").close()
        return path

    def handle(inputs):
        global place
        place = place or take()
        return None if inputs.is_empty() else Output().add(f"{NAME}:{inputs.get_as_string()}")
"""


class ManyModels(unittest.TestCase):
    def test_models_come_and_go(self):
        with tempfile.TemporaryDirectory() as places:
            for name in ("a", "b", "c"):
                files = local.handler(PLACE, "minWorkers=1\nmaxWorkers=1\n")
                local.upload(f"many/models/{name}.tar.gz", {**files, "name.txt": name})
            local.upload("many/models/broken.tar.gz", local.handler("import nonesuch_module"))
            endpoint = local.Endpoint(f"s3://{local.BUCKET}/many/", Mode="MultiModel",
                                      Environment={"PLACES": places})

            def ask(name):
                self.assertEqual(endpoint.text("x", TargetModel=f"models/{name}.tar.gz"), f"{name}:x")
                taken = (name.split("-") for name in os.listdir(places))
                return sorted(name for name, process in taken if os.path.exists(f"/proc/{process}"))

            self.assertEqual(ask("a"), ["a"])
            self.assertEqual(ask("b"), ["a", "b"])
            self.assertEqual(ask("a"), ["a", "b"])
            # The one that was asked for longest ago goes.
            self.assertEqual(ask("c"), ["a", "c"])
            self.assertEqual(ask("b"), ["b", "c"])
            # With a slash it is the same model.
            self.assertEqual(endpoint.text("y", TargetModel="/models/c.tar.gz"), "c:y")

            def refused(**fields):
                with self.assertRaises(ClientError) as caught:
                    endpoint.text("x", **fields)
                error = caught.exception.response["Error"]
                return error["Code"], error["Message"]

            self.assertEqual(refused()[0], "ValidationError")
            with self.assertRaises(ClientError) as caught:
                local.runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint.name, Body="y")
            self.assertEqual(caught.exception.response["Error"]["Code"], "ValidationError")
            self.assertEqual(refused(TargetModel="../a.tar.gz")[0], "ValidationError")
            self.assertEqual(refused(TargetModel="models/nobody.tar.gz")[0], "ValidationError")
            code, message = refused(TargetModel="models/broken.tar.gz")
            self.assertEqual(code, "ModelError")
            self.assertIn("nonesuch_module", message)
            endpoint.delete()


class Later(unittest.TestCase):
    def wait_for(self, place):
        where = urlparse(place)
        for _ in range(240):
            if where.scheme == "file":
                if os.path.exists(where.path):
                    with open(where.path, "rb") as file:
                        return file.read()
            else:
                try:
                    return local.s3.get_object(Bucket=where.netloc, Key=where.path[1:])["Body"].read()
                except local.s3.exceptions.NoSuchKey:
                    pass
            time.sleep(0.25)
        self.fail(f"nothing comes to {place}")

    def check(self, prefix):
        url = local.upload("runtime/model.tar.gz", local.handler(SCRIPT))
        output = {"S3OutputPath": f"{prefix}/out", "S3FailurePath": f"{prefix}/failed"}
        endpoint = local.Endpoint(url, asynchronous={
            "OutputConfig": output, "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 2}})
        local.s3.put_object(Bucket=local.BUCKET, Key="later/input", Body=b"quiet")
        where = f"s3://{local.BUCKET}/later/input"
        reply = local.runtime.invoke_endpoint_async(
            EndpointName=endpoint.name, InputLocation=where, ContentType="text/plain", InferenceId="mine")
        self.assertEqual(reply["InferenceId"], "mine")
        self.assertTrue(reply["OutputLocation"].startswith(output["S3OutputPath"]))
        self.assertEqual(self.wait_for(reply["OutputLocation"]), b"QUIET")
        local.s3.put_object(Bucket=local.BUCKET, Key="later/bad", Body=b"refuse")
        reply = local.runtime.invoke_endpoint_async(
            EndpointName=endpoint.name, InputLocation=f"s3://{local.BUCKET}/later/bad", ContentType="text/plain")
        self.assertIn(b"I refuse", self.wait_for(reply["FailureLocation"]))
        with self.assertRaises(ClientError) as caught:
            endpoint.text("x")
        self.assertEqual(caught.exception.response["Error"]["Code"], "ValidationError")
        endpoint.delete()

    def test_answers_to_s3(self):
        local.make_bucket()
        self.check(f"s3://{local.BUCKET}/answers")

    def test_answers_to_this_machine(self):
        local.make_bucket()
        with tempfile.TemporaryDirectory() as folder:
            self.check(f"file://{folder}")


if __name__ == "__main__":
    unittest.main()
