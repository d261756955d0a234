"""Labeling by several processes of torchrun: the labels of one process, whatever becomes of one of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from pictures import teach, wait_for, world

from curator.errors import StoreError
from curator.storage.store import Store
from curator.teachers.labeling import label

IMAGES = 69
# Each batch is a part, so that a run can be killed in the middle of a second's work.
LABEL = ["-m", "curator", "label", "--model", "teacher", "--batch-size", "4", "--threads", "1", "--engine", "torch"]
LABEL += ["--part-seconds", "0", "--json"]
RUN = [sys.executable, "-m", "torch.distributed.run"]
# Two hosts with a network of their own each, and one cable between them. They share the disk.
HOSTS = """
set -e
ip link set lo up
unshare --net sleep 300 & other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.01; done
there() { nsenter --net=/proc/$other/ns/net "$@"; }
ip link add first type veth peer name second netns $other
ip address add 10.213.7.1/24 dev first
ip link set first up
there ip address add 10.213.7.2/24 dev second
there ip link set second up
[ $# -gt 0 ] || exit 0
run="$1 -m torch.distributed.run $2"
shift 2
GLOO_SOCKET_IFNAME=second there $run --local-addr 10.213.7.2 --rdzv-conf is_host=0 "$@" & second=$!
GLOO_SOCKET_IFNAME=first $run --local-addr 10.213.7.1 --rdzv-conf is_host=1 "$@"
wait $second
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = world(tmp_path_factory.mktemp("made"), labeled=2, pool=20, holdout=1)
    teach(store, "schedule.steps=3", "network.architecture=pictures:Alone")
    return store


class Whole(NamedTuple):
    """What a run of one process that nobody disturbs gives: its labels, and what the network saw by image_id."""

    labels: list[dict[str, object]]
    seen: dict[int, str]


@pytest.fixture(scope="module")
def whole(made: Store, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    store = copy(made, tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEN", str(store.root / "seen"))
        label(store, "teacher", batch_size=4, threads=1, engine="torch")
    ids = [row["image_id"] for row in store.rows("select image_id from images order by split, uri")]
    noted = seen(store)
    assert len(set(noted)) == len(noted) == len(ids) == IMAGES
    return Whole(labels(store), dict(zip(ids, noted, strict=True)))


@pytest.fixture(scope="module")
def killed(made: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store after a run of three processes one of which was killed in the middle: nobody has seen a label."""
    store = copy(made, tmp_path_factory.mktemp("killed"))
    with started(store, [*RUN, "--standalone", "--nproc-per-node", "3"], slow=0.1) as process:
        wait_for(lambda: len(parts(store)) >= 4, process)
        with pytest.raises(StoreError, match="another run is labeling with 'teacher'"):
            label(store, "teacher")
        os.kill(pid(store, 2), signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode != 0
    assert out == ""
    assert "stopped; what was committed is kept; the same command, given again, finishes" in err
    assert store.delta("labels").version() == made.delta("labels").version()
    assert not store.rows("select 1 from labels")
    return store


def copy(store: Store, folder: Path) -> Store:
    shutil.copytree(store.root, folder, dirs_exist_ok=True)
    return Store(folder / "store")


@contextmanager
def started(store: Store, command: list[str], slow: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Starts `curator label` by a command; it ends with the context, and so do its processes."""
    more = {"PYTHONPATH": str(Path(__file__).parent), "SLOW_SECONDS": str(slow), "OMP_NUM_THREADS": "1"}
    more |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # for --max-restarts, see docs/labeling.md
    process = subprocess.Popen(
        [*command, *LABEL, "--store", str(store.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | more | {"SEEN": str(store.root / "seen")},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # torchrun ends the ranks
        process.communicate()


def pid(store: Store, rank: int) -> int:
    """The process of a rank of the run in a store: no other has both in its environment."""
    wanted = {f"RANK={rank}".encode(), f"SEEN={store.root / 'seen'}".encode()}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted <= set((process / "environ").read_bytes().split(b"\0")):
                return int(process.name)
    raise AssertionError(f"there is no rank {rank}")


def labels(store: Store) -> list[dict[str, object]]:
    return store.rows("select * from labels order by image_id")


def parts(store: Store) -> list[Path]:
    return sorted((store.path / "labels").glob("g*/part-*.parquet"))


def kept(store: Store) -> list[int]:
    """The images whose labels are written."""
    return [number for part in parts(store) for number in pq.read_table(part)["image_id"].to_pylist()]


def seen(store: Store) -> list[str]:
    """The pictures that the network was given."""
    return (store.root / "seen").read_text().split()


@pytest.mark.long
def test_three_ranks_give_the_labels_of_one(store: Store, whole: Whole) -> None:
    before = store.delta("labels").version()
    with started(store, [*RUN, "--standalone", "--nproc-per-node", "3"]) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    answer = json.loads(out)  # of the first one alone
    assert (answer["model"], answer["generation"], answer["images"], answer["resumed"]) == ("teacher", 0, IMAGES, 0)
    assert store.delta("labels").version() == before + 1
    assert labels(store) == whole.labels
    assert sorted(seen(store)) == sorted(whole.seen.values())
    assert not list((store.path / "labels").rglob("rank-*"))


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 1])
def test_the_rest_after_a_kill_is_done_by_another_number_of_ranks(
    killed: Store, whole: Whole, tmp_path: Path, world: int
) -> None:
    store = copy(killed, tmp_path)
    before, done = store.delta("labels").version(), kept(store)
    (store.root / "seen").unlink()
    assert 0 < len(set(done)) == len(done) < IMAGES
    with started(store, [*RUN, "--standalone", "--nproc-per-node", str(world)]) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert err.count(f"going on: {len(done)} images were labeled by a run that did not finish") == 1
    answer = json.loads(out)
    assert (answer["images"], answer["resumed"]) == (IMAGES, len(done))
    assert sorted(seen(store)) == sorted(whole.seen[number] for number in whole.seen.keys() - set(done))
    assert store.delta("labels").version() == before + 1
    assert labels(store) == whole.labels


@pytest.mark.long
def test_two_hosts(store: Store, whole: Whole) -> None:
    """One rank on each of two hosts; the one on the second is killed, and torchrun starts both again by itself."""
    namespaces = ["unshare", "--map-root-user", "--net", "bash", "-c", HOSTS, "bash"]
    tried = subprocess.run(namespaces, capture_output=True, text=True)
    if tried.returncode:
        namespaces.remove("--map-root-user")  # already root, where users may not have a namespace of their own
        tried = subprocess.run(namespaces, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no network namespaces here ({tried.stderr.strip()})")
    run = "--nnodes 2 --nproc-per-node 1 --max-restarts 1 --rdzv-backend c10d --rdzv-endpoint 10.213.7.1:29511"
    before = store.delta("labels").version()
    with started(store, [*namespaces, sys.executable, run], slow=0.05) as process:
        wait_for(lambda: len(parts(store)) >= 4, process)
        places = [Path(f"/proc/{pid(store, rank)}/ns/net").readlink() for rank in (0, 1)]
        assert places[0] != places[1]
        os.kill(pid(store, 1), signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 0, err
    answer = json.loads(out)
    assert answer["images"] == IMAGES
    assert 0 < answer["resumed"] < IMAGES
    assert store.delta("labels").version() == before + 1
    assert labels(store) == whole.labels
    # Of each of the two: the batch that was computed and not yet written, and the one after it.
    assert IMAGES <= len(seen(store)) <= IMAGES + 2 * 2 * 4
