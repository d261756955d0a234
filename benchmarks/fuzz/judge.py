"""Who judges a case: refused in the tool's own words, accepted, or a finding, whose smallest input is kept.

A case is refused when what it raised is what the command line turns into a message and exit code 2.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from curator import cli
from curator.errors import CuratorError
from curator.pictures.decode import UnreadableImage

from .target import Target
from .world import World

MEMORY = 2 << 30  # bytes of address space that a case may take beside what the process has when it begins
SECONDS = 20.0  # of processor time that a case may take


class TooLong(BaseException):
    """A case used up its processor time."""


class Judge:
    """Counts cases.

    Args:
        target: What is run.
        world: Where.
        folder: Gets the input of the running case, those of findings, and the counts.
    """

    def __init__(self, target: Target, world: World, folder: Path) -> None:
        self.target, self.world, self.folder = target, world, folder
        self.cases = self.accepted = self.refused = 0
        self.findings: dict[str, dict[str, Any]] = {}
        signal.signal(signal.SIGPROF, _ring)
        self._began = _peak()

    def bound(self) -> None:
        """Has the kernel refuse more memory than a case may take."""
        pages = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert pages is not None
        most = int(pages[1]) * 1024 + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._began = _peak()

    def case(self, data: bytes) -> str | None:
        """Runs one case.

        Returns:
            What was found, or None.
        """
        (self.folder / "current").write_bytes(data)
        self.cases += 1
        found: str | None = None
        told = ""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with self.world.watched():
                self.target.call(self.world, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.accepted += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            if refused(error):
                self.refused += 1
            else:
                found, told = _where(error), "".join(traceback.format_exception(error)[-4:])
        if self.world.traces:
            found, told = self.world.traces[0], "\n".join(self.world.traces)
        if self.cases % self.target.every == 0:
            self.write()  # what is known if the next one ends the process
            if changes := self.world.changes():
                found, told = f"changed {changes[0]}", "\n".join(changes)
            if self.target.writes:
                self.world.fresh()
        if found is not None:
            self._keep(found, told, data)
        return found

    def _keep(self, found: str, told: str, data: bytes) -> None:
        known = self.findings.setdefault(found, {"cases": 0, "bytes": len(data) + 1, "told": ""})
        known["cases"] += 1
        if len(data) < known["bytes"]:
            known |= {"bytes": len(data), "told": told[-2000:]}
            name = re.sub(r"\W+", "-", f"{self.target.name}-{found}")[:120]
            (self.folder / f"found-{name}").write_bytes(data)

    def write(self) -> None:
        """Writes the counts."""
        counts = {"cases": self.cases, "accepted": self.accepted, "refused": self.refused}
        peak = (_peak() - self._began) / 1024
        text = json.dumps(counts | {"findings": self.findings, "peak_mb": peak, "seconds": time.process_time()})
        (self.folder / "counts.json").write_text(text)


def refused(error: BaseException) -> bool:
    """Whether the command line ends with a message for an error, and not with a traceback."""
    if isinstance(error, CuratorError | UnreadableImage):
        return True
    return isinstance(error, Exception) and cli._mendable(error) is not None


def _ring(number: int, frame: FrameType | None) -> None:
    raise TooLong


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/curator/" in frame.filename] or list(frames)
    at = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "nowhere"
    return f"{type(error).__name__} in {at}"


def _peak() -> float:
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
