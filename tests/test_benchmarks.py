"""Benchmarks of the selection path still run, at sizes that say nothing: the code moves on, and they are run seldom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = (
    "disagreement.py --rows 20000",
    "manifest.py --rows 2000",
    "selection/run.py --rows 20000 --alone --whole 20000 --compared 20000 --runs 1",
)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", SMALL)
def test_a_benchmark_runs(command: str) -> None:
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") > 5
