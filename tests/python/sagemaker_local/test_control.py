"""The control plane: what is created, told, listed, refused."""

import json
import unittest
import urllib.request
import uuid

from botocore.exceptions import ClientError, WaiterError

import local

ECHO = local.handler("""
    from djl_python import Output
    VERSION = "one"
    def handle(inputs):
        return None if inputs.is_empty() else Output().add(VERSION + ":" + inputs.get_as_string())
""")
OTHER = {**ECHO, "model.py": ECHO["model.py"].replace('"one"', '"two"')}
BROKEN = local.handler("import nonesuch_module\ndef handle(inputs): pass\n")


class Control(unittest.TestCase):
    def refused(self, call, **fields):
        with self.assertRaises(ClientError) as caught:
            call(**fields)
        error = caught.exception.response
        return error["Error"]["Code"], error["Error"]["Message"], error["ResponseMetadata"]["HTTPStatusCode"]

    def test_models_are_kept_and_told(self):
        name = f"m-{uuid.uuid4().hex[:8]}"
        container = {"Image": "image", "ModelDataUrl": "s3://b/model.tar.gz", "Environment": {"A": "1"}}
        create = dict(ModelName=name, ExecutionRoleArn=local.ROLE, PrimaryContainer=container)
        arn = local.sagemaker.create_model(**create)["ModelArn"]
        self.assertEqual(arn, f"arn:aws:sagemaker:{local.REGION}:000000000000:model/{name}")
        code, message, status = self.refused(local.sagemaker.create_model, **create)
        self.assertEqual((code, status), ("ValidationException", 400))
        self.assertIn("already existing model", message)
        told = local.sagemaker.describe_model(ModelName=name)
        self.assertEqual(told["PrimaryContainer"], container)
        self.assertEqual(told["ModelArn"], arn)
        listed = local.sagemaker.list_models(NameContains=name)["Models"]
        self.assertEqual([model["ModelName"] for model in listed], [name])
        self.assertEqual(listed[0]["CreationTime"], told["CreationTime"])
        local.sagemaker.delete_model(ModelName=name)
        code, message, _ = self.refused(local.sagemaker.describe_model, ModelName=name)
        self.assertEqual(code, "ValidationException")
        self.assertIn(f"Could not find model \"{arn}\"", message)

    def test_pages_follow_each_other(self):
        prefix = f"p{uuid.uuid4().hex[:6]}"
        for number in range(5):
            local.sagemaker.create_model(ModelName=f"{prefix}-{number}", ExecutionRoleArn=local.ROLE,
                                         PrimaryContainer={"Image": "i"})
        pages = local.sagemaker.get_paginator("list_models").paginate(
            NameContains=prefix, SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 2})
        names = [[model["ModelName"] for model in page["Models"]] for page in pages]
        self.assertEqual(names, [[f"{prefix}-{n}" for n in page] for page in ([0, 1], [2, 3], [4])])

    def test_what_cannot_be_is_refused(self):
        missing = self.refused(local.sagemaker.create_endpoint_config, EndpointConfigName="x",
                               ProductionVariants=[{"VariantName": "v", "ModelName": "nobody"}])
        self.assertEqual(missing[0], "ValidationException")
        self.assertIn("Could not find model", missing[1])
        missing = self.refused(local.sagemaker.create_endpoint, EndpointName="x", EndpointConfigName="nobody")
        self.assertIn("Could not find endpoint configuration", missing[1])
        missing = self.refused(local.sagemaker.delete_endpoint, EndpointName="nobody")
        self.assertIn("Could not find endpoint", missing[1])
        named = self.refused(local.sagemaker.create_model, ModelName="a_b", ExecutionRoleArn=local.ROLE,
                             PrimaryContainer={"Image": "i"})
        self.assertEqual(named[0], "ValidationException")
        self.assertIn("modelName", named[1])

    def test_unknown_calls_are_refused_in_the_services_form(self):
        code, message, status = self.refused(local.sagemaker.list_training_jobs)
        self.assertEqual((code, status), ("UnknownOperationException", 400))
        self.assertIn("ListTrainingJobs", message)

    def test_the_form_of_an_error(self):
        # A request by hand: it is not signed, which the service says in the same form.
        request = urllib.request.Request(f"{local.URL}/", data=b"{}", method="POST", headers={
            "X-Amz-Target": "SageMaker.ListModels", "Content-Type": "application/x-amz-json-1.1"})
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        error = caught.exception
        body = json.loads(error.read())
        self.assertEqual(error.status, 403)
        self.assertEqual(body["__type"], "MissingAuthenticationTokenException")
        self.assertEqual(error.headers["x-amzn-errortype"], body["__type"])
        self.assertTrue(body["message"])

    def test_signatures_are_checked(self):
        wrong = local.client("sagemaker", aws_access_key_id="AKIATESTKEY", aws_secret_access_key="guess")
        self.assertEqual(self.refused(wrong.list_models)[0], "InvalidSignatureException")
        wrong = local.client("sagemaker", aws_access_key_id="AKIAOTHER", aws_secret_access_key="guess")
        self.assertEqual(self.refused(wrong.list_models)[0], "UnrecognizedClientException")
        wrong = local.client("sagemaker-runtime", aws_access_key_id="AKIATESTKEY", aws_secret_access_key="guess")
        refused = self.refused(wrong.invoke_endpoint, EndpointName="x", Body=b"x")
        self.assertEqual(refused[0], "InvalidSignatureException")

    def test_the_first_cause_of_a_failure_is_told(self):
        endpoint = local.Endpoint(local.upload("broken/model.tar.gz", BROKEN), wait=False)
        with self.assertRaises(WaiterError):
            endpoint.wait()
        told = local.sagemaker.describe_endpoint(EndpointName=endpoint.name)
        self.assertEqual(told["EndpointStatus"], "Failed")
        self.assertIn("No module named 'nonesuch_module'", told["FailureReason"])
        refused = self.refused(local.runtime.invoke_endpoint, EndpointName=endpoint.name, Body=b"x")
        self.assertEqual(refused[0], "ValidationError")
        endpoint.delete()

    def test_data_that_is_not_there_fails_the_endpoint(self):
        local.make_bucket()
        told = local.Endpoint(f"s3://{local.BUCKET}/nothing/model.tar.gz", wait=False).settled()
        self.assertEqual(told["EndpointStatus"], "Failed")
        self.assertIn("nothing/model.tar.gz", told["FailureReason"])
        self.assertIn("no such object", told["FailureReason"])

    def test_an_endpoint_changes_what_it_serves(self):
        endpoint = local.Endpoint(local.upload("echo/one/model.tar.gz", ECHO))
        self.assertEqual(endpoint.text("a"), "one:a")
        told = local.sagemaker.describe_endpoint(EndpointName=endpoint.name)
        self.assertEqual(told["EndpointConfigName"], endpoint.config)
        self.assertEqual(told["ProductionVariants"][0]["VariantName"], "v0")
        config = local.Endpoint.configure(local.upload("echo/two/model.tar.gz", OTHER))
        local.sagemaker.update_endpoint(EndpointName=endpoint.name, EndpointConfigName=config)
        # What it served goes on until the other is healthy.
        self.assertIn(endpoint.text("a"), ("one:a", "two:a"))
        refused = self.refused(local.sagemaker.delete_endpoint, EndpointName=endpoint.name)
        self.assertIn("in-progress endpoint", refused[1])
        endpoint.wait()
        self.assertEqual(endpoint.text("a"), "two:a")
        broken = local.Endpoint.configure(local.upload("broken/model.tar.gz", BROKEN))
        local.sagemaker.update_endpoint(EndpointName=endpoint.name, EndpointConfigName=broken)
        told = endpoint.settled()
        self.assertEqual((told["EndpointStatus"], told["EndpointConfigName"]), ("InService", config))
        self.assertIn("nonesuch_module", told["FailureReason"])
        self.assertEqual(endpoint.text("a"), "two:a")
        listed = local.sagemaker.list_endpoints(NameContains=endpoint.name, StatusEquals="InService")
        self.assertEqual(len(listed["Endpoints"]), 1)
        endpoint.delete()

    def test_variants_share_by_weight(self):
        urls = [local.upload("echo/one/model.tar.gz", ECHO), local.upload("echo/two/model.tar.gz", OTHER)]
        endpoint = local.Endpoint(urls)
        self.assertEqual(endpoint.text("a", TargetVariant="v1"), "two:a")
        answers = [endpoint.text("a") for _ in range(10)]
        self.assertEqual(answers.count("one:a"), 5)
        weights = [{"VariantName": "v0", "DesiredWeight": 0.0}, {"VariantName": "v1", "DesiredWeight": 1.0}]
        local.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint.name, DesiredWeightsAndCapacities=weights)
        self.assertEqual({endpoint.text("a") for _ in range(4)}, {"two:a"})
        endpoint.delete()


if __name__ == "__main__":
    unittest.main()
