"""A SageMaker notebook's walk on this machine: an endpoint of a model.py, then the same without it.

    python docs/examples/sagemaker_local.py --drivetrain target/release/drivetrain --model DIR

DIR is a BART in Hugging Face's layout (BERT and the like will do). The Python that runs this needs boto3,
moto[server], numpy, torch and transformers; it is also the one that the endpoint's model.py runs on.
Everything between the two lines of `notebook` is what one would write for the service itself: only the
clients' `endpoint_url` is of this machine.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import boto3
import numpy as np
from moto.server import ThreadedMotoServer

REGION = "us-east-1"
BUCKET = "models"
TEXT = "I think my dog is really cute!"
N_INVOCATIONS = 20

MODEL_PY = '''\
import logging
import os

import torch
from djl_python import Input, Output
from transformers import AutoModel, AutoTokenizer

tokenizer = None
model = None


def load(properties):
    logging.info("files of the model: %s", os.listdir())
    place = properties.get("model_id")
    return AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).float().eval()


def handle(inputs: Input):
    global tokenizer, model
    properties = inputs.get_properties()
    if model is None:
        assert properties.get("task") == "feature-extraction", properties
        tokenizer, model = load(properties)
    if inputs.is_empty():
        return None
    try:
        tokens = tokenizer(inputs.get_as_string(), return_tensors="pt")
        tokens.pop("token_type_ids", None)
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state
        return Output().add_as_json(hidden.tolist())
    except Exception as error:
        return Output().error(str(error))
'''


def archive(files):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as packed:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    return data.getvalue()


def clients(service_url, s3_url):
    keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": REGION}
    return (boto3.client("s3", endpoint_url=s3_url, **keys),
            boto3.client("sagemaker", endpoint_url=service_url, **keys),
            boto3.client("sagemaker-runtime", endpoint_url=service_url, **keys))


# ---- what a notebook does ----------------------------------------------------------------------
def notebook(name, files, s3, sagemaker, runtime, measure):
    s3.put_object(Bucket=BUCKET, Key=f"{name}/model.tar.gz", Body=archive(files))
    sagemaker.create_model(
        ModelName=name,
        ExecutionRoleArn="arn:aws:iam::000000000000:role/sagemaker",
        PrimaryContainer={
            "Image": f"763104351884.dkr.ecr.{REGION}.amazonaws.com/djl-inference:0.21.0-deepspeed0.8.3-cu117",
            "ModelDataUrl": f"s3://{BUCKET}/{name}/model.tar.gz",
        })
    sagemaker.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[{
            "VariantName": "AllTraffic",
            "ModelName": name,
            "InitialInstanceCount": 1,
            "InstanceType": "ml.g5.12xlarge",
            "ModelDataDownloadTimeoutInSeconds": 1800,
            "ContainerStartupHealthCheckTimeoutInSeconds": 3600,
        }])
    begun = time.monotonic()
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    sagemaker.get_waiter("endpoint_in_service").wait(
        EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 600})
    measure["in service"] = time.monotonic() - begun
    for number in range(N_INVOCATIONS):
        begun = time.monotonic()
        reply = runtime.invoke_endpoint(EndpointName=name, ContentType="text/plain", Body=TEXT)
        answer = json.loads(reply["Body"].read())
        measure.setdefault("invocations", []).append(time.monotonic() - begun)
    return answer
# -------------------------------------------------------------------------------------------------


def children(pid):
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from (int(child) for child in (task / "children").read_text().split())


def memory(pid):
    """Bytes of a process and of all that it started; pages that several share are shared out."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) << 10
    return total + sum(memory(child) for child in children(pid))


def wait_for(url):
    import urllib.request
    for _ in range(200):
        try:
            return urllib.request.urlopen(f"{url}/ping").read()
        except OSError:
            time.sleep(0.05)
    raise SystemExit("sagemaker-local does not answer")


def by_transformers(place):
    import torch
    from transformers import AutoModel, AutoTokenizer
    tokens = AutoTokenizer.from_pretrained(place)(TEXT, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    with torch.inference_mode():
        return AutoModel.from_pretrained(place).float().eval()(**tokens).last_hidden_state.numpy()


def walk(name, files, service, connections):
    measure = {}
    answer = np.array(notebook(name, files, *connections, measure), dtype=np.float32)
    (container,) = children(service.pid)
    measure["memory"] = memory(container)
    _, sagemaker, _ = connections
    sagemaker.delete_endpoint(EndpointName=name)
    sagemaker.get_waiter("endpoint_deleted").wait(
        EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    return answer, measure


def show(columns):
    rows = {
        "in service after, s": lambda m: f"{m['in service']:.1f}",
        "first invocation, ms": lambda m: f"{m['invocations'][0] * 1e3:.1f}",
        "invocation (median), ms": lambda m: f"{np.median(m['invocations']) * 1e3:.1f}",
        "memory, MB": lambda m: f"{m['memory'] / 1e6:.0f}",
    }
    print(f"{'':26}" + "".join(f"{name:>18}" for name in columns))
    for title, value in rows.items():
        print(f"{title:26}" + "".join(f"{value(measure):>18}" for measure in columns.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drivetrain", default="drivetrain", help="the binary")
    parser.add_argument("--model", required=True, help="a model's directory")
    parser.add_argument("--port", default="8090")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of model.py")
    options = parser.parse_args()
    place = os.path.abspath(options.model)

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, s3_port = moto.get_host_and_port()
    s3_url, url = f"http://{host}:{s3_port}", f"http://127.0.0.1:{options.port}"
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    log = tempfile.NamedTemporaryFile(prefix="sagemaker-local-", suffix=".log", delete=False)
    service = subprocess.Popen(
        [options.drivetrain, "sagemaker-local", "--port", options.port, "--region", REGION, "--s3-endpoint", s3_url],
        env={**os.environ, **keys}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(url)
        connections = clients(url, s3_url)
        connections[0].create_bucket(Bucket=BUCKET)
        properties = "".join([
            "engine=Python\n", f"option.model_id={place}\n", "option.task=feature-extraction\n",
            f"option.pythonExecutable={options.python}\n"])
        files = {"model.py": MODEL_PY, "requirements.txt": "numpy\n", "serving.properties": properties}
        by_handler, handler = walk("with-model-py", files, service, connections)
        del files["model.py"]
        by_engine, engine = walk("without-model-py", files, service, connections)
        wanted = by_transformers(place)
        print(f"{TEXT!r} -> {list(by_handler.shape)}")
        print(f"model.py against transformers:  {np.abs(by_handler - wanted).max():.1e} at most")
        print(f"native against transformers:    {np.abs(by_engine - wanted).max():.1e} at most")
        show({"model.py": handler, "native": engine})
        assert np.abs(by_handler - wanted).max() <= 1e-5
        assert np.abs(by_engine - by_handler).max() <= 1e-4
    except BaseException:
        print(f"the service's log: {log.name}", file=sys.stderr)
        raise
    finally:
        service.terminate()
        service.wait(timeout=60)
        moto.stop()


if __name__ == "__main__":
    main()
