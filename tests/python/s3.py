"""Fills an S3 server with boto3: `s3.py ENDPOINT put BUCKET KEY PATH`, or `many BUCKET PREFIX N`."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import boto3


def main(endpoint, action, bucket, key, what):
    client = boto3.client("s3", endpoint_url=endpoint, region_name=os.environ["AWS_REGION"])
    buckets = [known["Name"] for known in client.list_buckets()["Buckets"]]
    if bucket not in buckets:
        where = {"LocationConstraint": os.environ["AWS_REGION"]}
        client.create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
    if action == "many":
        with ThreadPoolExecutor(8) as pool:
            for number in range(int(what)):
                path = f"{key}/n/{number}.txt"
                pool.submit(client.put_object, Bucket=bucket, Key=path, Body=b"%d" % number)
    elif action == "public":
        for known in client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]:
            client.put_object_acl(Bucket=bucket, Key=known["Key"], ACL="public-read")
    elif action == "remove":
        client.delete_object(Bucket=bucket, Key=key)
    elif action == "text":
        client.put_object(Bucket=bucket, Key=key, Body=what.encode())
    elif os.path.isdir(what):
        for folder, _, names in os.walk(what):
            for name in names:
                path = os.path.join(folder, name)
                client.upload_file(path, bucket, f"{key}/{os.path.relpath(path, what)}")
    else:
        client.upload_file(what, bucket, key)


if __name__ == "__main__":
    main(*sys.argv[1:])
