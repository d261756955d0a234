"""The program curator without its start: a server that has loaded everything forks itself for each call.

    bash --curator, a client of a few lines--> socket --fork--> cli.main with the caller's files, folder and environment

For the test of the docs, which calls the program some three hundred times; other tests start it as users do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16)))
"""


@contextmanager
def program(environment: dict[str, str]) -> Iterator[Path]:
    """A folder for PATH with the program in it, as long as the server lives."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/socket"
        server = subprocess.Popen(
            [sys.executable, __file__, address], stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            client = Path(folder, "curator")
            client.write_text(CLIENT.format(python=sys.executable, address=address), "utf-8")
            client.chmod(0o755)
            yield Path(folder)
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # with calls that nobody waits for any more
            server.communicate()


def serve(address: str) -> None:
    """Forks for each call; returns in the process that is to be the program."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    while True:
        caller, _ = listener.accept()
        if os.fork() == 0:
            break
        caller.close()
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    listener.close()
    message, files, _, _ = socket.recv_fds(caller, 2**20, 3)
    while more := caller.recv(2**20):
        message += more
    worker = os.fork()
    if worker:
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        caller.sendall(str(code).encode())
        os._exit(0)
    caller.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # The server's streams know other files: whether these can be sought in, say.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv, folder, environment = json.loads(message)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))


if __name__ == "__main__":
    import deltalake  # noqa: F401 - loaded once, for all calls
    import duckdb  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import timm  # noqa: F401

    from curator import cli
    from curator.runs import training  # noqa: F401

    serve(sys.argv[1])
    cli.main()
