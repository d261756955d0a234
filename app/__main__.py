"""The process of the app's server, see curator/serving/server.py; it ends with its standard input.

server listens --> modules of the pages, footers of the tables, the first queue are read, before anybody asks
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

from streamlit.runtime import Runtime
from streamlit.web import cli

_TICK_S = 0.05


def _follow() -> None:
    """Ends this process when nobody holds the other end of its standard input any more, as after a kill."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _look_ahead() -> None:
    """Reads what the first visitor would wait for; what is wrong with the store, the pages say."""
    while not Runtime.exists():
        time.sleep(_TICK_S)
    from curator.app import navigation, turns  # noqa: F401 - the caches of the pages are the runtime's

    with contextlib.suppress(Exception):
        turns.first_queue()


for each in (_follow, _look_ahead):
    threading.Thread(target=each, daemon=True).start()
cli.main()
