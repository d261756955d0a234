"""A bucket on loopback, for the tests of stores that lie in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SECRET = "a-secret-that-nobody-may-read"


class Request(NamedTuple):
    """A request as the server wrote it down."""

    method: str
    path: str
    query: str
    range: str
    fault: str | None
    going: int  # requests under way when it came, itself among them


class Server:
    """The server, as the tests see it."""

    def __init__(self, port: int, log: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.log = log

    def breaks(self, *rules: dict[str, Any]) -> None:
        """Sets the requests that are broken from now on; none without rules. See bucket_server.py."""
        request = urllib.request.Request(f"{self.address}/_faults", json.dumps(rules).encode(), method="POST")
        urllib.request.urlopen(request).close()

    def requests(self, since: int = 0) -> list[Request]:
        """The requests so far, but the first `since`."""
        lines = self.log.read_text("utf-8").split("\n")[since:-1]  # the last is being written
        return [Request(*json.loads(line)) for line in lines]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a process, in a process of its own."""
    pytest.importorskip("obstore")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto")
    log = tmp_path_factory.mktemp("server") / "log"
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("bucket_server.py"), log], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        found = Server(int(process.stdout.readline()), log)
        client = boto3.client(
            "s3", endpoint_url=found.address, region_name="us-east-1",
            aws_access_key_id="testing", aws_secret_access_key=SECRET,
        )  # fmt: skip
        client.create_bucket(Bucket="pictures")
        client.close()
        yield found
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def bucket(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a place in a bucket in which nothing lies, with the environment that lets processes read it."""
    for name in [*os.environ]:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in environment(server, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    server.breaks()
    yield f"s3://pictures/{uuid.uuid4().hex}"
    server.breaks()


def environment(server: Server, cache: Path) -> dict[str, str]:
    """What a process needs in its environment to use the bucket."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ALLOW_HTTP": "true",
        "XDG_CACHE_HOME": str(cache),
    }


def upload(folder: Path, url: str) -> str:
    """Copies a folder into a bucket as it is."""
    from curator.storage.bucket import Bucket

    for file in sorted(folder.rglob("*")):
        if file.is_file():
            Bucket(url).put(file.relative_to(folder).as_posix(), file)
    return url
