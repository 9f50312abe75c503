"""The article's walk: three files in an archive, an endpoint, a sentence, the hidden states."""

import json
import os
import struct
import unittest

import numpy as np

import local

BART = os.path.join(local.FIXTURES, "bart")

# What the article's model.py does, with transformers' recorded answers in place of transformers.
SCRIPT = """
    import json, logging, os, struct
    import numpy as np
    from djl_python import Input, Output

    answers = None

    def load(model_id):
        with open(os.path.join(model_id, "reference.json")) as file:
            prompts = [prompt["text"] for prompt in json.load(file)["prompts"]]
        with open(os.path.join(model_id, "reference.safetensors"), "rb") as file:
            (n_header,) = struct.unpack("<Q", file.read(8))
            header, data = json.loads(file.read(n_header)), file.read()
        found = {}
        for number, prompt in enumerate(prompts):
            entry = header[f"feature_extraction.{number}"]
            begin, end = entry["data_offsets"]
            found[prompt] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
        return found

    def handle(inputs: Input):
        global answers
        properties = inputs.get_properties()
        if answers is None:
            assert "serving.properties" in os.listdir(), os.listdir()
            assert properties.get("task") == "feature-extraction", properties
            answers = load(properties.get("model_id"))
        if inputs.is_empty():
            return None
        try:
            rows = answers[inputs.get_as_string()]
            return Output().add_as_json(rows.reshape(1, *rows.shape[-2:]).tolist())
        except Exception as error:
            return Output().error(str(error))
"""


def reference():
    with open(os.path.join(BART, "reference.json")) as file:
        prompts = [prompt["text"] for prompt in json.load(file)["prompts"]]
    with open(os.path.join(BART, "reference.safetensors"), "rb") as file:
        (n_header,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(n_header)), file.read()
    for number, prompt in enumerate(prompts):
        entry = header[f"feature_extraction.{number}"]
        begin, end = entry["data_offsets"]
        yield prompt, np.frombuffer(data[begin:end], "<f4").reshape(1, *entry["shape"][-2:])


class Article(unittest.TestCase):
    def walk(self, files):
        """The client's code, the same for both."""
        endpoint = local.Endpoint(local.upload(f"article/{len(files)}/model.tar.gz", files))
        answers = []
        for prompt, wanted in reference():
            reply = endpoint.invoke(prompt)
            self.assertEqual(reply["InvokedProductionVariant"], "v0")
            answers.append(np.array(json.loads(reply["Body"].read()), dtype=np.float32))
            self.assertEqual(answers[-1].shape, wanted.shape)
        endpoint.delete()
        return answers

    def test_with_and_without_model_py(self):
        files = local.handler(SCRIPT, f"option.model_id={BART}\noption.task=feature-extraction\n")
        files["requirements.txt"] = "numpy\n"
        by_handler = self.walk(files)
        native = {name: text for name, text in files.items() if name == "serving.properties"}
        by_engine = self.walk(native)
        for (_, wanted), ours, theirs in zip(reference(), by_engine, by_handler):
            self.assertTrue(np.array_equal(theirs, wanted))
            self.assertLessEqual(np.abs(ours - wanted).max(), 1e-4)

    def test_a_prefix_that_is_not_packed(self):
        local.make_bucket()
        properties = f"option.model_id={BART}\noption.task=feature-extraction\n"
        local.s3.put_object(Bucket=local.BUCKET, Key="plain/serving.properties", Body=properties.encode())
        source = {"S3DataSource": {"S3Uri": f"s3://{local.BUCKET}/plain/", "S3DataType": "S3Prefix",
                                   "CompressionType": "None"}}
        local.sagemaker.create_model(ModelName="plain", ExecutionRoleArn=local.ROLE,
                                     PrimaryContainer={"Image": "i", "ModelDataSource": source})
        variant = {"VariantName": "v", "ModelName": "plain"}
        local.sagemaker.create_endpoint_config(EndpointConfigName="plain", ProductionVariants=[variant])
        local.sagemaker.create_endpoint(EndpointName="plain", EndpointConfigName="plain")
        local.sagemaker.get_waiter("endpoint_in_service").wait(
            EndpointName="plain", WaiterConfig={"Delay": 1, "MaxAttempts": 120})
        prompt, wanted = next(reference())
        reply = local.runtime.invoke_endpoint(EndpointName="plain", ContentType="text/plain", Body=prompt)
        found = np.array(json.loads(reply["Body"].read()), dtype=np.float32)
        self.assertLessEqual(np.abs(found - wanted).max(), 1e-4)
        local.sagemaker.delete_endpoint(EndpointName="plain")


if __name__ == "__main__":
    unittest.main()
