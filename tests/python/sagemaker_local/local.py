"""The service under test, which the Rust test that runs these files starts, and clients of it."""

import io
import os
import tarfile
import textwrap
import time
import uuid

import boto3
from botocore.config import Config

URL = os.environ["SAGEMAKER_URL"]
S3_URL = os.environ["S3_URL"]
REGION = os.environ["AWS_REGION"]
FIXTURES = os.environ["FIXTURES"]
PYTHON = os.environ["HANDLER_PYTHON"]
BUCKET = "sagemaker-models"
ROLE = "arn:aws:iam::000000000000:role/sagemaker"


def client(service, url=URL, **fields):
    config = Config(retries={"total_max_attempts": 1}, read_timeout=120)
    return boto3.client(service, endpoint_url=url, region_name=REGION, **{"config": config, **fields})


sagemaker = client("sagemaker")
runtime = client("sagemaker-runtime")
s3 = client("s3", S3_URL)


def make_bucket():
    if BUCKET not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})


def packed(files):
    """A flat model.tar.gz of these texts, and of the files at paths that are no texts' names."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            content = textwrap.dedent(content).encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def upload(key, files):
    """Packs and uploads files; the archive's address."""
    make_bucket()
    s3.put_object(Bucket=BUCKET, Key=key, Body=packed(files))
    return f"s3://{BUCKET}/{key}"


def handler(script, properties=""):
    """The files of a model with a model.py."""
    properties = f"engine=Python\noption.pythonExecutable={PYTHON}\n{properties}"
    return {"model.py": script, "serving.properties": properties}


class Endpoint:
    """An endpoint of one model or several, made as a notebook makes it."""

    def __init__(self, url, variants=1, wait=True, asynchronous=None, **container):
        self.name = f"e-{uuid.uuid4().hex[:12]}"
        self.config = self.configure(url, variants, asynchronous, **container)
        sagemaker.create_endpoint(EndpointName=self.name, EndpointConfigName=self.config)
        if wait:
            self.wait()

    @staticmethod
    def configure(url, variants=1, asynchronous=None, **container):
        name = f"c-{uuid.uuid4().hex[:12]}"
        urls = [url] * variants if isinstance(url, str) else url
        production = []
        for number, one in enumerate(urls):
            model = f"{name}-m{number}"
            definition = {"Image": "763104351884.dkr.ecr/djl-inference:0.21.0", "ModelDataUrl": one, **container}
            sagemaker.create_model(ModelName=model, ExecutionRoleArn=ROLE, PrimaryContainer=definition)
            production.append({
                "VariantName": f"v{number}", "ModelName": model, "InstanceType": "ml.g5.12xlarge",
                "InitialInstanceCount": 1, "ModelDataDownloadTimeoutInSeconds": 1800,
                "ContainerStartupHealthCheckTimeoutInSeconds": 3600,
            })
        fields = {"AsyncInferenceConfig": asynchronous} if asynchronous else {}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=production, **fields)
        return name

    def wait(self):
        waiter = sagemaker.get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=self.name, WaiterConfig={"Delay": 1, "MaxAttempts": 120})

    def settled(self):
        """What describe says once the endpoint is on its way to nothing else."""
        for _ in range(240):
            told = sagemaker.describe_endpoint(EndpointName=self.name)
            if told["EndpointStatus"] in ("InService", "Failed"):
                return told
            time.sleep(0.25)
        raise AssertionError(told)

    def invoke(self, body, **fields):
        fields = {"ContentType": "text/plain", **fields}
        return runtime.invoke_endpoint(EndpointName=self.name, Body=body, **fields)

    def text(self, body, **fields):
        return self.invoke(body, **fields)["Body"].read().decode()

    def delete(self):
        sagemaker.delete_endpoint(EndpointName=self.name)
        waiter = sagemaker.get_waiter("endpoint_deleted")
        waiter.wait(EndpointName=self.name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
