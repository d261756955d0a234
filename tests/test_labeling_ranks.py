"""Labeling by two processes of torchrun: the labels of one process, whatever becomes of one of the two."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pictures import teach, wait_for, world

from curator.errors import StoreError
from curator.labeling import label
from curator.store import Store

IMAGES = 33
SCRIPT = """
import json, os, sys
from curator import progress
from curator.labeling import label
from curator.store import Store
progress.show(True)
mine = sys.argv[3] + os.environ["RANK"]
with open(mine, "w") as file:
    file.write(str(os.getpid()))
done = label(Store(sys.argv[1]), "teacher", batch_size=4, threads=1, part_seconds=float(sys.argv[2]), engine="torch")
with open(mine, "w") as file:
    json.dump(done, file)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = world(tmp_path_factory.mktemp("made"), labeled=2, pool=8, holdout=1)
    teach(store, "schedule.steps=3", "network.architecture=pictures:Slow")
    return store


@contextmanager
def two_ranks(store: Store, part_seconds: float, slow: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Starts torchrun with two processes that label; it ends with the context, and so do they."""
    script = store.root / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    process = subprocess.Popen(
        [*torchrun, str(store.path), str(part_seconds), str(store.root / "answer")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "SLOW_SECONDS": str(slow), "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def labels(store: Store) -> list[dict[str, object]]:
    return store.rows("select * from labels order by image_id")


def parts(store: Store) -> list[Path]:
    return sorted((store.path / "labels").glob("g*/part-*.parquet"))


def test_two_ranks_give_the_labels_of_one(store: Store, made: Store, tmp_path: Path) -> None:
    before = store.delta("labels").version()
    with two_ranks(store, part_seconds=30) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    answers = [json.loads((store.root / f"answer{rank}").read_text()) for rank in (0, 1)]
    assert answers[0] == answers[1]
    assert answers[0][:5] == ["teacher", 0, IMAGES, 0, 0]
    assert store.delta("labels").version() == before + 1
    assert len(parts(store)) > 3  # each rank wrote its own
    assert not list((store.path / "labels").rglob("rank-*"))
    shutil.copytree(made.root, tmp_path / "alone")
    alone = Store(tmp_path / "alone" / "store")
    label(alone, "teacher", batch_size=4, engine="torch")
    assert labels(store) == labels(alone)


def test_a_rank_is_killed(store: Store) -> None:
    with two_ranks(store, part_seconds=0, slow=0.1) as process:
        wait_for(lambda: len(parts(store)) >= 3, process)
        with pytest.raises(StoreError, match="another run is labeling with 'teacher'"):
            label(store, "teacher")
        os.kill(int((store.root / "answer1").read_text()), signal.SIGKILL)
        process.communicate()
    assert process.returncode != 0
    assert not store.rows("select 1 from labels")
    kept = sum(pq.read_metadata(part).num_rows for part in parts(store))
    assert kept > 0
    with two_ranks(store, part_seconds=30) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert err.count(f"going on: {kept} images were labeled by a run that did not finish") == 1
    answer = json.loads((store.root / "answer1").read_text())
    assert answer[2:4] == [IMAGES, kept]
    rows = [row["image_id"] for row in labels(store)]
    assert len(rows) == len(set(rows)) == IMAGES
