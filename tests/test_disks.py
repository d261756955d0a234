"""Disks that are full, read-only or failing: nothing is half, what cannot be done is told, the same command goes on."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packed
import pytest
from conftest import Answer
from pictures import on_a_small_disk
from PIL import Image

from curator import cli
from curator.curation import building
from curator.pictures.images import add_images
from curator.storage.store import Store
from curator.teachers import labeling

Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    packed.world(root)
    return root


COMMANDS = {
    "import-labels {world}/probs.parquet --generation 7 --model late": "labels where generation = 7",
    "build-manifest c --generation 0 --per-class 2": "manifests where name = 'c'",
    "review --image-id {image} --decision accept": "(select distinct image_id from reviews)",
    "pack a --size 32 --shard-rows 4": "stored_packed",
}
FULL = """
import contextlib, io, json, shutil, sys
from pathlib import Path
from curator import cli
from curator.storage.store import Store
disk, commands = Path(sys.argv[1]), json.loads(sys.argv[3])
world, filler = disk / "world", disk / "filler"
def run(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        given = [word.format(world=world, image=image) for word in words.split()]
        code = cli.run([*given, "--store", str(world / "store")])
    return code, err.getvalue()
def count(what):
    return Store(world / "store").rows(f"select count(*) as n from {what}")[0]["n"]
for words, what in commands.items():
    for pages in (0, 2, 1000):
        shutil.rmtree(world, ignore_errors=True)
        shutil.copytree(sys.argv[2], world)
        image = Store(world / "store").rows("select min(image_id) as i from images")[0]["i"]
        filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 4096 * pages)))
        code, err = run(words)
        filler.unlink()
        between = count(what)
        again, told = run(words)
        print(json.dumps([words.split()[0], code, err, between, again, told, count(what)]))
"""


@pytest.mark.long
def test_a_full_disk(pictured: Path) -> None:
    """Nothing fits, the rows and not the commit, the first of several commits, all."""
    done = on_a_small_disk("24m", FULL, pictured, json.dumps(COMMANDS))
    assert (done.returncode, done.stderr) == (0, "")  # the libraries keep quiet, too
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    whole = {name: final for name, *_, final in answers}
    for name, code, err, between, again, told, final in answers:
        assert "Traceback" not in err
        if code:
            assert code == 2
            assert "disk is full" in err, err
            assert "mend: " in err
        assert between in (0, whole[name]) or name == "pack"
        assert between == whole[name] or code == 2
        assert again == 0 or (name, again, "labeled already" in told, between) == (
            "import-labels",
            2,
            True,
            whole[name],
        )
        assert final == whole[name] > 0
    assert {(name, code) for name, code, *_ in answers} >= {(name, code) for name in whole for code in (0, 2)}


READERS = (
    "label --model teacher",
    "train --recipe {root}/recipe.toml --manifest n --name student",
    "pack n --size 16",
    "evaluate --model teacher",
    "quality duplicates",
    "export n --format webdataset {root}/made",
    "export n --format huggingface {root}/made",
)
READ_FROM = {"unlabeled": "pool/0000.png", "labeled": "labeled/bar/0.png", "holdout": "holdout/bar/0.png"}


def published(store: Store) -> list[str]:
    """The files of all tables."""
    made = (table for table, version in store.every_version().items() if version >= 0)
    return sorted(file for table in made for file in store.delta(table).file_uris())


@pytest.mark.long
@pytest.mark.parametrize("line", READERS, ids=lambda line: line.partition(" {")[0])
def test_a_disk_that_fails_is_no_broken_picture(
    taught_once: Store, tmp_path: Path, curator: Run, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """It stops the command, which publishes nothing, counts no picture as broken, and goes on once the disk is back."""
    shutil.copytree(taught_once.root, tmp_path / "world")
    store = Store(tmp_path / "world" / "store")
    for split, like in READ_FROM.items():
        Image.open(store.root / like).save((store.root / like).with_name("new.bmp"))
        add_images(store, str(store.root / like.partition("/")[0]), split)
    if not line.startswith("label"):
        labeling.label(store, "teacher")
    building.build(store, "n", {"per_class": 20, "min_confidence": 0.1})
    words = [*line.format(root=store.root).split(), "--store", store.path]
    opened, state = os.open, published(store)

    def failing(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).endswith("new.bmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        failed = curator(*words)
    assert failed.code == 2, failed
    assert "new.bmp' cannot be read now (Input/output error)" in failed.err
    assert "Traceback" not in failed.err
    assert published(store) == state
    assert not (store.root / "made").exists()
    again = curator(*words)
    assert again.code == 0, again.err
    assert "new.bmp" not in again.err
    assert published(store) != state or (store.root / "made").exists()


READ_ONLY = """
import json, sys
from curator import cli
for words in json.loads(sys.argv[1]):
    print(json.dumps(cli.run(words)), flush=True)
    print("next", file=sys.stderr, flush=True)
"""


def test_a_store_that_cannot_be_written_to(pictured: Path, tmp_path: Path) -> None:
    """Who reads is not disturbed, and who writes is told. Root gives its privilege up first."""
    shutil.copytree(pictured, tmp_path / "world")
    world = tmp_path / "world"
    image = Store(world / "store").rows("select min(image_id) as i from images")[0]["i"]
    reading = ["manifests", "show a", "check", "diff a b", f"show a --image-id {image}",
               "pack a --dry-run", "build-manifest z --per-class 2 --dry-run", 'sql from"images"',
               f"export a --format csv {tmp_path}/a.csv"]  # fmt: skip
    writing = [*COMMANDS, f"add-images {world}/labeled --split labeled", "quality leaks"]
    (world / "labeled" / "x" / "new.jpg").write_bytes(packed.picture(77))
    subprocess.run(["chmod", "-R", "a-w", world / "store"], check=True)
    words = [
        [*line.format(world=world, image=image).split(), "--store", str(world / "store")] for line in reading + writing
    ]
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*without, sys.executable, "-c", READ_ONLY, json.dumps(words)], capture_output=True, text=True
    )
    subprocess.run(["chmod", "-R", "u+w", world / "store"], check=True)
    codes = [int(line) for line in done.stdout.splitlines() if line in ("0", "1", "2")]
    told = done.stderr.split("next\n")
    assert codes == [0] * len(reading) + [2] * len(writing), list(zip(words, told, strict=False))
    for line, said in zip(writing, told[len(reading) :], strict=False):
        assert "a file may not be read or written" in said, (line, said)
        assert "mend: " in said
        assert "panicked" not in said
    assert len(Store(world / "store").rows("select 1 from images")) == len(
        Store(pictured / "store").rows("select 1 from images")
    )


def test_a_disk_that_is_mounted_for_reading_only() -> None:
    told = cli._mendable(OSError(errno.EROFS, "Read-only file system", "/store/reviews"))
    assert told is not None
    assert "mounted for reading only" in told.what
    assert "copy the store" in told.mend
