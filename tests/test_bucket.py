"""Objects of a bucket: what is asked again, what is refused, what a lost answer leaves, and what is said of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from bucket import SECRET, Server

from curator.errors import InputError, StoreError
from curator.storage import bucket as buckets
from curator.storage.bucket import Bucket, check_url, is_url
from curator.storage.cache import Cache


@pytest.fixture
def below(bucket: str) -> Bucket:
    return Bucket(bucket)


def rule(method: str, kind: str, times: int = 2, **more: float) -> dict[str, object]:
    return {"method": method, "match": "", "kind": kind, "times": times} | more


def test_objects_are_written_read_listed_and_removed(below: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    for name in ("a/b", "a/ü +%20.txt", "c"):
        assert below.put(name, tmp_path / "file")
    assert below.put("a/empty", b"")
    assert list(below.list()) == [("a/b", 10), ("a/empty", 0), ("a/ü +%20.txt", 10), ("c", 10)]
    assert [name for name, _ in below.list("a")] == ["a/b", "a/empty", "a/ü +%20.txt"]
    assert list(below.list("no")) == []
    assert below.read("a/ü +%20.txt") == b"0123456789"
    assert below.ranges("c", [0, 8], [2, 10]) == [b"01", b"89"]
    assert below.size("c") == 10
    below.remove(["a/b", "never was"])
    with pytest.raises(FileNotFoundError):
        below.read("a/b")
    with pytest.raises(FileNotFoundError):
        below.size("a/b")


def test_a_piece_behind_the_end(below: Bucket) -> None:
    below.put("c", b"0123456789")
    assert below.piece("c", 4, 6) == b"456789"
    for first in (5, 10, 100):
        with pytest.raises(EOFError):
            below.piece("c", first, 6)


def test_what_is_new_stays(below: Bucket) -> None:
    assert below.put("once", b"mine", new=True)
    assert not below.put("once", b"other", new=True)
    assert not below.put("once", b"mind", new=True)
    assert below.put("once", b"mine", new=True)  # the same, whoever wrote it
    assert below.read("once") == b"mine"


def test_a_lost_answer_is_no_other_writer(server: Server, below: Bucket) -> None:
    """The server took the object, nobody heard it, and the request that is made again finds it there."""
    server.breaks(rule("PUT", "lost", 1))
    before = buckets.repeated()
    assert below.put("once", b"mine", new=True)
    assert buckets.repeated() == before + 1


@pytest.mark.parametrize("kind", ["429", "500", "503", "reset", "cut"])
def test_what_breaks_is_asked_again_and_counted(server: Server, below: Bucket, kind: str) -> None:
    data = os.urandom(300_000)
    below.put("object", data)
    before = buckets.repeated()
    server.breaks(rule("GET", kind))
    assert below.read("object") == data
    server.breaks(rule("GET", kind))
    assert below.ranges("object", [1000], [200_000]) == [data[1000:200_000]]
    assert buckets.repeated() == before + 4
    if kind != "cut":
        server.breaks(rule("PUT", kind), rule("POST", kind), rule("HEAD", kind))
        below.put("other", data)
        assert below.size("other") == len(data)
        below.remove(["other"])
        assert buckets.repeated() == before + 10


def test_a_slow_answer_is_waited_for(server: Server, below: Bucket) -> None:
    below.put("object", b"data")
    server.breaks(rule("GET", "slow", 1, seconds=1.0))
    began = time.monotonic()
    assert below.read("object") == b"data"
    assert time.monotonic() - began > 0.9


def test_what_stays_broken_is_given_up_and_said(
    server: Server,
    below: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "_patience_s", 1.0)
    below.put("object", b"data")
    server.breaks(rule("GET", "503", 1000))
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"object cannot be used \(.*(SlowDown|503)") as caught:
        below.read("object")
    assert time.monotonic() - began < 10
    assert "\n" not in caught.value.what
    assert "run the same command again" in caught.value.mend


def test_what_is_refused_is_not_asked_again(
    server: Server,
    below: Bucket,
) -> None:
    elsewhere = Bucket("s3://no-such-bucket/place")
    before = len(server.requests())
    for ask in (lambda: elsewhere.put("a", b"b"), lambda: list(elsewhere.list())):
        with pytest.raises(StoreError, match="NoSuchBucket") as caught:
            ask()
        assert "make the bucket first" in caught.value.mend
    assert len(server.requests()) == before + 2


@pytest.mark.parametrize(
    ("said", "what", "mend"),
    [
        ("Error: 403 Forbidden: <Error><Code>InvalidAccessKeyId</Code></Error>", "InvalidAccessKeyId", "credentials"),
        ("\x1b[31mboom\x1b[0m\n\nDebug source:\nRetry { key: x }", "boom", "run the same command again"),
        ("error sending request for url (http://h/b?X-Amz-Signature=0123)", "error sending request for", "reached"),
    ],
)  # fmt: skip
def test_one_sentence_of_what_a_library_says(said: str, what: str, mend: str) -> None:
    told = buckets.refusal("s3://bucket/a", OSError(said))
    assert what in told.what
    assert mend in told.mend
    assert not {"\n", "\x1b"} & {*told.what}
    assert "Signature=" not in told.what
    assert "Debug" not in told.what


def test_no_error_tells_the_secret(below: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(buckets, "_patience_s", 0.1)
    other = Bucket(f"{below.url}/elsewhere")
    with pytest.raises(StoreError) as caught:
        other.read("object")
    assert SECRET not in f"{caught.value!r} {caught.value} {other!r}"
    assert "can be reached" in caught.value.mend


@pytest.mark.parametrize(
    ("url", "form"),
    [("s3://abc", "s3://abc"), ("S3A://abc/d/", "s3://abc/d"), ("gs://abc/d e/ü", "gs://abc/d e/ü")],
)
def test_urls_in_one_form(url: str, form: str) -> None:
    assert is_url(url)
    assert check_url(url) == form


@pytest.mark.parametrize(
    "url",
    [
        "http://abc/d", "s3://", "s3://a", "s3://abc//d", "s3://abc/../d", "s3://abc/./d", "s3://user:word@abc/d",
        "s3://abc/d?token=word", "s3://abc/d#word", "file:///abc", "s3://a b/c",
    ],
)  # fmt: skip
def test_urls_that_name_no_place(url: str) -> None:
    with pytest.raises(InputError) as caught:
        check_url(url)
    assert "word" not in str(caught.value)


def test_a_forked_process_is_told(below: Bucket) -> None:
    """The client's threads are not there in a forked process, which would wait for them for ever."""
    below.put("object", b"data")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # nothing of the test runner may run here
        try:
            Bucket(below.url).read("object")
            said = b"read"
        except InputError as error:
            said = str(error).encode()
        os.write(writing, said)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        assert b"spawn" in pipe.read()
    os.waitpid(child, 0)


def test_the_cache_stays_below_its_bound(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "kept", 1_000_000)
    time.sleep(0.02)  # a file's time is that of the last tick of the clock
    for number in range(300):
        cache.keep(f"object {number}", bytes(10_000))
    held = sum(file.stat().st_size for file in (tmp_path / "kept").rglob("*") if file.is_file())
    assert 900_000 < held <= 1_000_000
    found = [number for number in range(300) if cache.get(f"object {number}") is not None]
    assert found == list(range(held // 10_000))  # the first, of which a second pass finds all again
    later = Cache(tmp_path / "kept", 1_000_000)  # of another process: what was there before may go
    time.sleep(0.02)
    later._began = time.time()
    later.keep("new", bytes(500_000))
    assert later.get("new") == bytes(500_000)
    held = sum(file.stat().st_size for file in (tmp_path / "kept").rglob("*") if file.is_file())
    assert held <= 1_000_000


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"a file where the folder would be")
    cache = Cache(tmp_path / "kept", 1_000_000)
    cache.keep("object", b"data")
    assert cache.get("object") is None
    full = Cache(tmp_path / "small", 100)
    full.keep("object", bytes(1000))
    assert full.get("object") is None
