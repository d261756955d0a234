"""Chunks of images that meet, processes at once, and Ctrl-C at the worst time: none lost, none twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_images import SMALL_CHUNKS, picture, tree
from test_store import listing

from curator.pictures import commits
from curator.pictures.commits import ImageCommits
from curator.schema import IMAGES
from curator.storage import delta
from curator.storage.delta import CommitRaced, paths_of
from curator.storage.store import Store


def images(*rows: tuple[int, str, str]) -> pa.Table:
    columns = {"image_id": [r[0] for r in rows], "uri": [r[1] for r in rows], "split": [r[2] for r in rows]}
    columns |= {"status": ["ok"] * len(rows)}
    return pa.table([pa.array(columns.get(f.name, [None] * len(rows)), f.type) for f in IMAGES.schema], IMAGES.schema)


def test_chunks_that_meet_lose_and_double_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    one, two, three = (ImageCommits(store, store.delta("images")) for _ in range(3))
    one.add(images((1, "a", "unlabeled"), (2, "b", "unlabeled")))
    two.add(images((2, "b", "unlabeled"), (3, "c", "unlabeled")))
    two.add(images((1, "a", "unlabeled")))
    one.add(images((4, "d", "unlabeled")))
    assert (one.added, two.added) == (3, 1)
    with pytest.raises(CommitRaced, match="another import added d at the same time"):
        three.add(images((4, "d", "holdout")))
    assert [row["uri"] for row in store.rows("select uri from images order by uri")] == ["a", "b", "c", "d"]
    named = {Path(path).name for path in paths_of(store.delta("images"))}
    assert {path.name for path in (store.path / "images").glob("*.parquet")} == named


def test_an_import_does_not_race_against_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "s")
    published: list[Any] = []
    publish = delta.publish
    monkeypatch.setattr(delta, "publish", lambda *arguments: published.append(arguments) or publish(*arguments))
    read_again: list[str] = []
    monkeypatch.setattr(commits, "_left_to_add", lambda rows, path: read_again.append(path) or rows)
    adding = ImageCommits(store, store.delta("images"))
    for number in range(6):
        adding.add(images((number, str(number), "unlabeled")))
    assert (len(published), read_again, adding.added) == (6, [], 6)


def test_ctrl_c_after_the_commit_keeps_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the worst time: the commit is made, and publish has not returned."""
    store = Store.create(tmp_path / "s")
    publish = delta.publish

    def interrupted(*arguments: Any) -> None:
        publish(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(delta, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ImageCommits(store, store.delta("images")).add(images((1, "a", "unlabeled")))
    with pytest.raises(KeyboardInterrupt):
        store.define_classes(["x"])
    assert store.rows("select uri, (select class_name from classes) as c from images") == [{"uri": "a", "c": "x"}]


def test_four_processes_appending_at_once_lose_nothing(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    program = """
import sys
from curator.decisions import reviews
from curator.pictures.images import add_images
from curator.storage.store import Store
store = Store(sys.argv[1])
for i in range(3):
    reviews.add_review(store, int(sys.argv[2]), "accept", reviewer=f"{sys.argv[3]}-{i}")
    add_images(store, f"{sys.argv[4]}/{sys.argv[3]}-{i}.parquet", "unlabeled", scan=False)
"""
    for process in range(4):
        for i in range(3):
            listing(tmp_path / f"{process}-{i}.parquet", f"new/{process}-{i}.jpg", f"new/shared-{i}.jpg")
    arguments = [sys.executable, "-c", program, store.path, str(ids["a"])]
    running = [subprocess.Popen([*arguments, str(n), tmp_path]) for n in range(4)]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert store.rows("select count(*) as n, count(distinct reviewer) as d from reviews") == [{"n": 12, "d": 12}]
    found = store.rows("select count(*) as n, count(distinct uri) as d from images where uri like 'new/%'")
    assert found == [{"n": 15, "d": 15}]


def test_two_imports_of_overlapping_folders_at_once(tmp_path: Path) -> None:
    empty = Store.create(tmp_path / "s")
    tree(tmp_path / "pool", {f"{part}/{i:02}.jpg": picture(i) for part in "abc" for i in range(40)})
    folders = [tmp_path / "pool", tmp_path / "pool" / "b"]
    commands = [[sys.executable, "-c", SMALL_CHUNKS, empty.path, folder] for folder in (*folders, *folders)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    added = [int(running.communicate()[0]) for running in both]
    assert [running.returncode for running in both] == [0] * 4
    assert sum(added) == 120, added
    assert empty.rows("select count(*) as n, count(distinct uri) as u from images") == [{"n": 120, "u": 120}]
