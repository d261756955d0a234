"""An S3 server on loopback, moto's, behind a layer that breaks requests as it is told, and writes down each of them.

    python bucket_server.py LOG      prints its port

POST /_faults takes a JSON list of rules: {"method": "PUT", "match": "_delta_log", "kind": "503", "times": 2}. Kinds are
a status (400: expired credentials, 429, 500, 503), "reset" (no answer), "cut" (half of it), "lost" (none to a PUT that
was carried out), "slow" (after so many "seconds"), "held" (until the rules are others), "dead" (hung up on after so
many "seconds").
"""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BODIES = {
    "400": b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
    "503": b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
}
inner = DomainDispatcherApplication(create_backend_app)
rules: list[dict[str, Any]] = []
lock = threading.Lock()
going = 0


def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    global going
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if path == "/_faults":
        rules[:] = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        start("200 OK", [("Content-Length", "0")])
        return []
    with lock:
        found = next((r for r in rules if r["times"] and r["method"] == method and re.search(r["match"], path)), None)
        if found:
            found["times"] -= 1
        going += 1
        asked = environ["QUERY_STRING"], environ.get("HTTP_RANGE", "")
        log.write(json.dumps([method, path, *asked, found and found["kind"], going]) + "\n")
    try:
        return answer(environ, start, found or {"kind": None}, method)
    finally:
        with lock:
            going -= 1


def answer(environ: dict[str, Any], start: Any, fault: dict[str, Any], method: str) -> Iterable[bytes]:
    kind = fault["kind"]
    if kind == "reset":
        return hang_up(environ)
    if kind in ("400", "429", "500", "503"):
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = BODIES.get(kind, b"<Error><Code>InternalError</Code></Error>")
        start(f"{kind} Broken", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]
    if kind in ("slow", "dead"):
        time.sleep(fault["seconds"])
    while kind == "held" and fault in rules:
        time.sleep(0.02)
    if kind == "dead":
        return hang_up(environ)
    if method == "PUT":
        with lock:  # moto looks and writes in two steps
            parts = list(inner(environ, start))
        return hang_up(environ) if kind == "lost" else parts
    if kind == "cut":
        return half(environ, b"".join(inner(environ, start)))
    found: Iterable[bytes] = inner(environ, start)
    return found


def half(environ: dict[str, Any], data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    hang_up(environ)


def hang_up(environ: dict[str, Any]) -> list[bytes]:
    with suppress(OSError):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return []


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with open(sys.argv[1], "w", buffering=1) as log:  # noqa: PTH123
        server = make_server("127.0.0.1", 0, app, threaded=True)
        print(server.port, flush=True)
        server.serve_forever()
