"""Objects of a bucket: read whole or in part, written, listed and removed.

The network breaks, and a bucket that has much to do says "slow down": such requests are made again, with pauses that
grow, and counted. Whatever else goes wrong ends in one sentence, without an answer's own text of many lines.

Credentials come from the environment, as obstore and deltalake read it: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from curator.errors import CuratorError, InputError, StoreError
from curator.storage.cache import Cache

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
# Requests of one process that may be under way at once. A picture of 100 KB from 30 ms away comes 92 times a second
# with 3 of them, 484 with 16, 1471 with 64 (one core's time for 4000 a second).
AT_ONCE = 64
_LONGEST_PAUSE_S = 5.0
_MULTIPART = 2**30  # above it an object is sent in pieces, and "only if it is new" cannot be asked for

T = TypeVar("T")
_repeated = 0
_patience_s = 60.0
_lock = threading.Lock()
_thread = threading.local()


def repeated() -> int:
    """Requests that this process made again so far; those that deltalake repeats by itself are not known."""
    return _repeated


def patience(seconds: float | None = None) -> float:
    """For how many seconds this process makes a request again that fails; sets it where a number is given."""
    global _patience_s
    _patience_s = seconds or _patience_s
    return _patience_s


def patient_until(ended: threading.Event) -> None:
    """Lets requests of the calling thread be made again only as long as an event has not come."""
    _thread.ended = ended


def is_url(text: str) -> bool:
    """Whether a text names a place by a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def check_url(url: str) -> str:
    """A bucket's URL in its one form, without a slash at the end.

    Raises:
        InputError: It names no bucket, or holds what does not belong into a name: a password, a query.
    """
    scheme, _, rest = url.partition("://")
    scheme = {"s3a": "s3"}.get(scheme.lower(), scheme.lower())
    if scheme not in SCHEMES:
        raise InputError(f"'{scheme}://' is no bucket that can be used", "s3://BUCKET/PREFIX, gs://..., az://...")
    where = rest.partition("/")[0]
    if "@" in where or "?" in rest or "#" in rest:
        raise InputError(
            f"the URL of the bucket '{where.rpartition('@')[2]}' holds a user, a query or a fragment",
            "leave it out; credentials come from the environment, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    parts = rest.rstrip("/").split("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}", parts[0]) or not all(parts) or {".", ".."} & {*parts}:
        raise InputError(f"'{url}' names no place in a bucket", "s3://BUCKET/PREFIX")
    return f"{scheme}://{'/'.join(parts)}"


@dataclass(frozen=True)
class Bucket:
    """What lies below a URL.

    Attributes:
        url: The bucket and a prefix, as `check_url` gives it.
        cache: Where what `piece` reads is kept; None keeps nothing.
    """

    url: str
    cache: Cache | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """The URL."""
        return self.url

    def piece(self, name: str, first: int | None = None, length: int = 0) -> bytes:
        """An object, or a piece of one, from the cache if it was read before.

        Raises:
            FileNotFoundError: There is none of that name.
            EOFError: It ends before the piece does.
            StoreError: The bucket cannot be read.
        """
        key = f"{self.url}/{name}" if first is None else f"{self.url}/{name} {first} {length}"
        data = self.cache.get(key) if self.cache is not None else None
        if data is None:
            data = self.read(name) if first is None else self.ranges(name, [first], [first + length])[0]
            if first is not None and len(data) < length:
                raise EOFError(name)
            if self.cache is not None:
                self.cache.keep(key, data)
        return data

    def read(self, name: str) -> bytes:
        """A whole object.

        Raises:
            FileNotFoundError: There is none of that name.
            StoreError: The bucket cannot be read.
        """
        store = _client(self.url, os.getpid())
        return self._ask(name, lambda: bytes(store.get(name).bytes()))

    def ranges(self, name: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Pieces of an object; neighbours come with one request.

        Raises:
            FileNotFoundError: There is none of that name.
            EOFError: It ends before a piece begins.
            StoreError: The bucket cannot be read.
        """
        store = _client(self.url, os.getpid())
        return self._ask(name, lambda: [bytes(got) for got in store.get_ranges(name, starts=starts, ends=ends)])

    def size(self, name: str) -> int:
        """The bytes of an object.

        Raises:
            FileNotFoundError: There is none of that name.
            StoreError: The bucket cannot be read.
        """
        store = _client(self.url, os.getpid())
        return self._ask(name, lambda: int(store.head(name)["size"]))

    def put(self, name: str, data: bytes | Path, new: bool = False) -> bool:
        """Writes an object, whole or not at all.

        Args:
            name: Its name.
            data: Its bytes, or the file that holds them.
            new: Whether to leave one alone that is there.

        Returns:
            Whether the object is what was given: False if `new`, and another one is there.

        Raises:
            StoreError: The bucket cannot be written to.
        """
        from obstore.exceptions import AlreadyExistsError

        store = _client(self.url, os.getpid())
        length = data.stat().st_size if isinstance(data, Path) else len(data)
        how: dict[str, Any] = {"mode": "create"} if new and length < _MULTIPART else {}
        try:
            self._ask(name, lambda: store.put(name, data, **how))
        except AlreadyExistsError:
            # of another one, or of a request before whose answer was lost
            there = self.size(name) == length and self.read(name)
            return there == (data.read_bytes() if isinstance(data, Path) else data)
        return True

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Names and sizes of all objects below a prefix, which ends where a name ends; in the order of their bytes."""
        store = _client(self.url, os.getpid())
        found = self._ask(prefix, lambda: [item for page in store.list(prefix or None) for item in page])
        for item in sorted(found, key=lambda item: item["path"].encode()):
            yield item["path"], item["size"]

    def entries(self) -> Iterator[tuple[str, int, float]]:
        """Names and sizes of all objects, and when each was written, in seconds since 1970."""
        store = _client(self.url, os.getpid())
        found = self._ask("", lambda: [item for page in store.list(None) for item in page])
        for item in found:
            yield item["path"], item["size"], item["last_modified"].timestamp()

    def folders(self) -> set[str]:
        """The first parts of the names of all objects that have several, by one request for a thousand of them."""
        store = _client(self.url, os.getpid())
        return self._ask("", lambda: set(store.list_with_delimiter()["common_prefixes"]))

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects, many with one request; one that is gone already is none to worry about."""
        gone = [*names]
        if gone:
            store = _client(self.url, os.getpid())
            self._ask(gone[0], lambda: store.delete(gone))

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        import tenacity
        from obstore import exceptions as known

        said = (known.AlreadyExistsError, known.PreconditionError, FileNotFoundError)

        def again(error: BaseException) -> bool:
            return isinstance(error, (known.BaseError, OSError)) and not isinstance(error, said) and passing(error)

        ended = getattr(_thread, "ended", None) or threading.Event()
        failed: list[float] = []

        def tired(_: object) -> bool:  # since the first failure: what went well so far may have taken long
            failed.append(time.monotonic())
            return failed[-1] - failed[0] >= _patience_s or ended.is_set()

        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception(again),
                wait=tenacity.wait_exponential(0.1, _LONGEST_PAUSE_S) + tenacity.wait_random(0, 0.1),
                stop=tired,
                sleep=tenacity.sleep_using_event(ended),
                before_sleep=_count,
                reraise=True,
            )(request)
        except (known.BaseError, OSError) as error:
            if isinstance(error, said) and "NoSuchBucket" not in str(error):
                raise
            if "416 " in str(error):
                raise EOFError(name) from None
            raise refusal(f"{self.url}/{name}", error) from None


def _count(_: object) -> None:
    global _repeated
    with _lock:
        _repeated += 1


@cache
def _client(url: str, process: int) -> Any:
    """The client of a URL, which a process that was forked cannot go on with."""
    if process != _first_process():
        raise InputError(
            "a process that was forked cannot read from a bucket",
            'start workers anew: DataLoader(..., multiprocessing_context="spawn")',
        )
    try:
        from obstore.store import from_url
    except ImportError:
        raise CuratorError("obstore is not installed, which reads buckets", "pip install 'curator[s3]'") from None
    return from_url(url, retry_config={"max_retries": 0})


@cache
def _first_process() -> int:
    """The process that read from a bucket first; a forked one has its parent's answer."""
    return os.getpid()


def passing(error: BaseException) -> bool:
    """Whether a request that failed may be made again: all but those that the server understood and refused."""
    status = re.search(r"\b(4\d\d)\b ?[A-Z]", str(error))
    refused = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError", "NotSupportedError")
    return not refused and (status is None or status[1] in ("408", "425", "429"))


def refusal(where: str, error: BaseException) -> StoreError:
    """What to tell of a bucket that cannot be used, from what obstore or deltalake said of it.

    Args:
        where: URL of the object or table.
        error: What was raised.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("\n\nDebug source")[0]
    code = re.search(r"<Code>(\w+)</Code>", text)
    lines = [line.strip("\u21b3 ") for line in text.splitlines() if line.strip()]
    # what comes before it is the request, with its URL and the seconds that it took
    cause = re.search(r"Error performing \S+ \S+ in .*? - (.+)", " ".join(lines))
    short = cause[1] if cause else lines[-1] if lines else type(error).__name__
    said = code[1] if code else re.sub(r"\?[^\s,)]*", "", short)[:200]
    if code and code[1] in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken"):
        mend = "look at the credentials in the environment, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif code and code[1] == "NoSuchBucket":
        mend = "make the bucket first, or correct its name"
    else:
        mend = "look whether the bucket can be reached (AWS_ENDPOINT_URL, AWS_REGION), and run the same command again"
    return StoreError(f"{where} cannot be used ({said})", mend)
