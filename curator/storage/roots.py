"""What uris start from: a folder of this machine or a prefix of a bucket, and what this machine keeps of buckets."""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import BinaryIO

from curator.errors import InputError
from curator.storage.bucket import Bucket, check_url, is_url
from curator.storage.cache import Cache

Root = Path | Bucket
# Of a bucket's objects, kept on this machine: as much of tables, and as much of pictures.
CACHE_BYTES = 10 * 10**9


def located(root: Root, name: str) -> tuple[Bucket, str]:
    """The bucket and the name in it of a uri that is a URL, or relative to a root that is one."""
    if isinstance(root, Bucket) and not is_url(name):
        return root, name
    scheme, _, where = name.partition("://")
    bucket, _, key = where.partition("/")
    return rooted(f"{scheme}://{bucket}"), key


def opened(path: str) -> BinaryIO:
    """A file for reading in pieces, by its path or URL."""
    if not is_url(path):
        return Path(path).open("rb")
    from curator.storage.blocks import Blocks

    file: BinaryIO = Blocks(located(Path(), path)[0], kept("pictures")).open(path)
    return file


def brought(url: str) -> Path:
    """A file that a URL names, on this machine.

    Raises:
        InputError: There is none.
    """
    bucket, name = located(Path(), url)
    file = home() / "brought" / hashlib.blake2b(url.encode(), digest_size=10).hexdigest() / Path(name).name
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as written:
            written.write(bucket.read(name))
        Path(beside).rename(file)
    except FileNotFoundError:
        Path(beside).unlink()
        raise InputError(f"there is no object '{url}'", "check the bucket and the name") from None
    return file


@cache
def rooted(url: str) -> Bucket:
    """What lies below a URL, with a cache of the pictures that are read from it."""
    return Bucket(check_url(url), kept("pictures"))


def kept(name: str) -> Cache:
    """The cache of a name.

    Raises:
        InputError: CURATOR_CACHE_BYTES is no number.
    """
    most = os.environ.get("CURATOR_CACHE_BYTES", str(CACHE_BYTES))
    if not most.isdigit():
        raise InputError(f"CURATOR_CACHE_BYTES is '{most}', and no number of bytes", f"e.g. {CACHE_BYTES}")
    return Cache(home() / name, int(most))


def home() -> Path:
    """Where this user's programs keep what they can have again."""
    server = os.environ.get("AWS_ENDPOINT_URL", "")  # of two servers, a bucket of one name may hold other things
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "curator" / hashlib.blake2b(server.encode(), digest_size=4).hexdigest()
