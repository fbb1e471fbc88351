"""Object storage for the tests: an S3 server of their own, and ``memory://``."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from contextlib import contextmanager

# s3fs takes no smaller parts.
MULTIPART_BLOCK = 5 * 2**20


class S3Server:
    """An S3 server, read and written without Airflow and without fsspec."""

    conn_id = "s3_store"

    def __init__(self, endpoint):
        import boto3  # noqa: PLC0415 - slow, and few tests need it

        keys = {"aws_access_key_id": "made-up-key", "aws_secret_access_key": "made-up-secret"}
        self.endpoint = endpoint
        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        self.connection_json = json.dumps(
            {
                "conn_type": "aws",
                "login": keys["aws_access_key_id"],
                "password": keys["aws_secret_access_key"],
                "extra": {"endpoint_url": endpoint, "region_name": "us-east-1"},
            }
        )
        self._numbers = itertools.count(1)

    def new_bucket(self):
        name = f"bucket-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        return Bucket(self, name)


class Bucket:
    """One bucket, named ``url`` in a DAG."""

    def __init__(self, server, name):
        self.server = server
        self.name = name
        self.url = f"s3://{server.conn_id}@{name}/"

    def keys(self):
        """Return the keys that a reader of the bucket sees."""
        return [found["Key"] for found in self.server.client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def read(self, key):
        return self.server.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def unfinished_uploads(self):
        """Return the keys of uploads that have begun, have not ended, and take up space unseen."""
        found = self.server.client.list_multipart_uploads(Bucket=self.name)
        return [upload["Key"] for upload in found.get("Uploads", [])]


@contextmanager
def s3_server():
    """Run an S3 server in a process of its own: it ends with this one, even if that is killed."""
    command = [sys.executable, "-W", "ignore", __file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield S3Server(process.stdout.readline().strip())
        finally:
            process.stdin.close()
            process.wait(10)


def attach_memory(monkeypatch):
    """Attach an empty ``memory://``, which Airflow does not know by itself, and return its file system."""
    from fsspec.implementations.memory import MemoryFileSystem  # noqa: PLC0415 - few tests need it

    try:
        from airflow.sdk.io import store  # noqa: PLC0415
    except ImportError:  # Airflow 2
        from airflow.io import store  # noqa: PLC0415
    # All instances share both.
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    # Airflow keeps what is attached, and also what it could not find.
    monkeypatch.setattr(store, "_STORE_CACHE", {})
    return store.attach("memory", fs=MemoryFileSystem()).fs  # noqa: AIR311 - of Airflow 3 where there is one


def _serve():
    """Print the address, and serve until stdin ends."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - only in a process of its own

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
