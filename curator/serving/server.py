"""The app's server: which command runs it, and where it listens. What it runs is app/__main__.py."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

from curator.errors import InputError
from curator.storage.store import Store

PORT = 8501
ADDRESS = "127.0.0.1"
STORE = "CURATOR_STORE"
_TRIED = 20
_SETTINGS = {
    "server.headless": "true",  # no browser is opened, nothing is asked for
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "1",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",
    "logger.level": "warning",
    "logger.enableRich": "false",  # it would write to standard output, which is for the answer
    "global.disableWidgetStateDuplicationWarning": "true",  # the gallery turns back to its first page
}
# The app lives for weeks and has many threads, and each of them would keep pages of its own: of what is freed in one
# arena of an allocator, nothing is used in another. (glibc's, and that of deltalake.)
_ALLOCATORS = {"MALLOC_ARENA_MAX": "1", "_RJEM_MALLOC_CONF": "narenas:1"}


class Server(NamedTuple):
    """A server that is ready to start.

    Attributes:
        url: Where the pages will be.
        command: The program and its arguments.
        environment: Its environment.
        is_local: Whether only this machine reaches it.
    """

    url: str
    command: list[str]
    environment: Mapping[str, str]
    is_local: bool

    def run(self) -> int:
        """Runs it until it ends, or Ctrl-C or SIGTERM ends it and this; returns its exit code."""
        # streamlit greets on standard output, which is for the answer; it ends when its input does, and so with this
        with subprocess.Popen(
            self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as running:
            try:
                return running.wait()
            finally:
                running.terminate()


def server(store: Store, port: int | None = None, address: str = ADDRESS) -> Server:
    """The server of a store's pages.

    Args:
        store: The store.
        port: Where it listens; by default the first free one from PORT on.
        address: On which of the machine's addresses; only this machine reaches the default.

    Raises:
        InputError: The port is taken, the address is none of this machine, or streamlit is not installed.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise InputError("the app needs streamlit, which is not installed", "pip install 'curator[app]'")
    found = _free(port, address)
    settings = _SETTINGS | {"server.address": address, "server.port": str(found)}
    command = [sys.executable, "-m", "curator.app", "run", str(files("curator.app").joinpath("main.py"))]
    command += [f"--{name}={value}" for name, value in settings.items()]
    shown = f"[{address}]" if ":" in address else address
    is_local = all(ipaddress.ip_address(place[4][0]).is_loopback for place in socket.getaddrinfo(address, found))
    environment = _ALLOCATORS | os.environ | {STORE: store.place.absolute}
    return Server(f"http://{shown}:{found}", command, environment, is_local)


def _free(port: int | None, address: str) -> int:
    wanted = range(PORT, PORT + _TRIED) if port is None else [port]
    for each in wanted:
        try:
            family = socket.getaddrinfo(address, each, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind((address, each))
            return each
        except (socket.gaierror, OverflowError) as error:
            raise InputError(f"the app cannot listen on {address}:{each} ({error})", f"--address {ADDRESS}") from None
        except OSError as error:
            why = error.strerror or str(error)
    what = f"the app cannot listen on {address}, port {wanted[0]} ({why})"
    raise InputError(what, f"give another --port, e.g. --port {wanted[-1] + 1}")
