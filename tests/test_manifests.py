"""Manifests: the same bytes each time, complete lineage, and never half of one."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROBS, Answer, read_lineage

from curator.curation import building, manifests, selection
from curator.decisions.reviews import add_review
from curator.errors import AnswerIsNo, InputError
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.schema import MANIFEST_ROW, MANIFESTS, MODELS
from curator.storage import additions
from curator.storage.store import Store

PROGRAM = Path(sys.executable).with_name("curator")


def files_of(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder, by path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def letters(ids: dict[str, int], path: Path, column: str) -> list[tuple[str, Any]]:
    """The images of a manifest by their letter, with one column, in order."""
    table = pq.read_table(path)
    names = {image_id: name for name, image_id in ids.items()}
    return [(names[i], v) for i, v in zip(table["image_id"].to_pylist(), table[column].to_pylist(), strict=True)]


def test_the_rows_of_a_manifest(store: Store, ids: dict[str, int]) -> None:
    """Ordered by label, then rank; a class a person gave is a one-hot soft label."""
    add_review(store, ids["b"], "relabel", "dog")
    built = building.build(store, None, {"per_class": 3})
    assert built.name == "g0-3"
    assert built.path == store.path / "manifests" / "g0-3"
    table = pq.read_table(built.path)
    assert table.schema.equals(MANIFEST_ROW.schema)
    assert letters(ids, built.path, "copies") == [
        *[("a", 1), ("c", 1), ("d", 1)],
        *[("b", 1), ("e", 1), ("f", 1)],
        ("g", 3),
    ]
    rows = {row["uri"][5]: row for row in table.to_pylist()}
    assert rows["b"] | {"image_id": 0} == {
        "image_id": 0,
        "uri": "pool/b.jpg",
        **dict.fromkeys(("shard", "byte_offset", "byte_length")),
        "source": "review",
        "label": 1,
        "class_name": "dog",
        "confidence": float(np.float32(0.8)),
        "copies": 1,
        "weight": 1.0,
        "generation": 0,
        "top_classes": [1],
        "top_probs": [1.0],
        "tail": 0.0,
    }
    assert rows["d"]["source"] == "pseudo"
    assert rows["d"]["top_classes"] == [0, 1, 2]
    assert rows["d"]["top_probs"] == pytest.approx([0.5, 0.3, 0.2], abs=2**-12)


def test_hard_targets_are_one_hot(store: Store) -> None:
    built = building.build(store, "hard", {"per_class": 9, "targets": "hard"})
    for row in pq.read_table(built.path).to_pylist():
        assert (row["top_classes"], row["top_probs"], row["tail"]) == ([row["label"]], [1.0], 0.0)
        assert row["source"] == "pseudo"
        assert row["confidence"] == np.float32(PROBS[row["uri"][5]][row["label"]])


# The same bytes


def test_two_builds_are_the_same_bytes_under_any_name(store: Store) -> None:
    one = building.build(store, "one", {"per_class": 4})
    two = building.build(store, "two", {"per_class": 4})
    assert one.sha256 == two.sha256
    assert files_of(one.path) == files_of(two.path)
    assert set(files_of(one.path)) == {"_lineage.json", "part-00000.parquet"}


def test_as_of_gives_the_same_bytes_after_the_store_has_grown(
    store: Store, ids: dict[str, int], tmp_path: Path
) -> None:
    first = building.build(store, "first", {"per_class": 4})
    pq.write_table(
        pa.table({"uri": ["n1.jpg", "n2.jpg"], "probs": [[0.99, 0.01, 0], [0, 0, 1.0]]}), tmp_path / "n.parquet"
    )
    add_images(store, str(tmp_path / "n.parquet"), "unlabeled", scan=False)
    import_labels(store, str(tmp_path / "n.parquet"), 0, "outside")
    import_labels(store, str(tmp_path / "probs.parquet"), 1, "second")
    add_review(store, ids["a"], "reject")
    again = building.build(store, "again", {"per_class": 4}, as_of="first")
    assert again.generation == 0
    assert files_of(again.path) == files_of(first.path)
    other = building.build(store, "other", {"per_class": 4, "generation": 0})
    assert other.sha256 != first.sha256
    assert building.build(store, "first", {"per_class": 4}, as_of="first") == first


def test_the_hash_covers_rows_and_parameters(store: Store) -> None:
    plain = {"per_class": 3, "min_confidence": 0.3}
    hashes = {
        building.build(store, f"m{number}", plain | options).sha256
        for number, options in enumerate(
            ({}, {"temperature": 2.0}, {"seed": 1}, {"where": "true"}, {"min_confidence": 0.31}, {"targets": "hard"})
        )
    }
    assert len(hashes) == 6
    assert building.build(store, "same", plain | {"policy": "top", "fill": "copies", "seed": 0}).sha256 in hashes


# A name that is taken


def test_the_same_name_and_content_is_left_as_it_is(store: Store, curator: Callable[..., Answer]) -> None:
    command = ("build-manifest", "m", "--per-class", 3, "--store", store.path, "--json")
    first = curator(*command)
    before = files_of(store.path)
    again = curator(*command)
    assert (first.code, again.code) == (0, 0)
    assert again.json == first.json
    assert "is there already, with the same content" in again.err
    assert files_of(store.path) == before


def test_a_taken_name_is_an_error_that_says_what_differs(store: Store, ids: dict[str, int]) -> None:
    building.build(store, "m", {"per_class": 3})
    before = files_of(store.path)
    with pytest.raises(InputError, match=r"'m' exists .*options differ: per_class 3 -> 4, seed 0 -> 7\)"):
        building.build(store, "m", {"per_class": 4, "seed": 7})
    assert files_of(store.path) == before
    add_review(store, ids["a"], "reject")
    before = files_of(store.path)
    with pytest.raises(InputError, match=r"'m' exists .*the store has changed since") as caught:
        building.build(store, "m", {"per_class": 3})
    assert "--as-of m" in caught.value.mend
    assert files_of(store.path) == before


def test_an_option_younger_than_a_manifest_counts_as_its_default(store: Store) -> None:
    built = building.build(store, "m", {"per_class": 3})
    older = store.rows("select * from manifests")[0] | {"name": "older", "path": "manifests/older"}
    lineage = json.loads(older["lineage"])
    del lineage["parameters"]["max_copies"]
    built.path.rename(store.path / "manifests" / "older")
    row = older | {"lineage": json.dumps(lineage)}
    additions.append(store, "manifests", pa.Table.from_pylist([row], MANIFESTS.schema))
    assert building.build(store, "older", {"per_class": 3}).sha256 == built.sha256
    with pytest.raises(InputError, match="max_copies None -> 2"):
        building.build(store, "older", {"per_class": 3, "max_copies": 2})


@pytest.mark.parametrize("value", [None, 3])
def test_an_option_of_a_later_release(store: Store, curator: Callable[..., Answer], value: int | None) -> None:
    """Where nobody gave it, it changes nothing; where somebody did, nobody can say what the rows are."""
    built = building.build(store, "m", {"per_class": 3})
    row = store.rows("select * from manifests")[0] | {"name": "later", "path": "manifests/later"}
    lineage = json.loads(row["lineage"])
    lineage["parameters"]["novel"] = value
    shutil.copytree(built.path, store.path / "manifests" / "later")
    rows = pa.Table.from_pylist([row | {"lineage": json.dumps(lineage)}], MANIFESTS.schema)
    additions.append(store, "manifests", rows)
    assert curator("manifests", "--store", store.path).code == 0
    for command in (
        *(["show", "later"], ["check", "later"], ["show", "later", "--image-id", built.rows], ["diff", "m", "later"]),
        *(["build-manifest", "n", "--as-of", "later"], ["doctor"], ["check"]),
    ):
        done = curator(*command, "--store", store.path)
        assert "Traceback" not in done.err
        if value is None:
            assert "novel" not in done.err + done.out, command
        else:
            assert done.code == (1 if command == ["doctor"] else 2), command
            told = "the manifest 'later' was built with an option that this version does not know: novel"
            assert told in done.err + done.out, command


def test_the_same_policy_said_again_keeps_its_settings(store: Store) -> None:
    options = {"per_class": 3, "policy": "threshold", "settings": {"threshold": 0.75}}
    built = building.build(store, "m", options)
    assert building.build(store, "again", {"policy": "threshold"}, as_of="m").sha256 == built.sha256
    plain = building.build(store, "other", {"policy": "top"}, as_of="m")
    assert plain.lineage["parameters"]["settings"] == {}


def test_files_that_are_gone_are_built_again_as_of_the_manifest(store: Store, ids: dict[str, int]) -> None:
    built = building.build(store, "m", {"per_class": 3})
    files = files_of(built.path)
    for path in built.path.iterdir():
        path.unlink()
    built.path.rmdir()
    add_review(store, ids["a"], "reject")
    assert building.build(store, "m", {"per_class": 3}, as_of="m") == built
    assert files_of(built.path) == files
    assert len(manifests.published(store)) == 1


# Lineage


def test_lineage_is_complete_beside_the_rows_and_inside_them(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    model = {"model": "trained", "generation": 1, "weights": "w", "weights_hash": "ab" * 32, "parents": []}
    additions.append(store, "models", pa.Table.from_pylist([model], MODELS.schema))
    import_labels(store, str(tmp_path / "probs.parquet"), 1, "trained")
    add_review(store, ids["a"], "reject")
    versions = store.versions()
    built = building.build(store, "m", {"per_class": 3, "seed": 5, "where": "confidence < 0.75"})
    beside = json.loads((built.path / "_lineage.json").read_text("utf-8"))
    assert beside == built.lineage
    assert beside["sha256"] == built.sha256
    inside = read_lineage(built.path)
    assert inside == {key: value for key, value in beside.items() if key != "sha256"}
    assert inside["parameters"] == {
        "generation": 1,
        "per_class": 3,
        "min_confidence": 0.3,
        "policy": "top",
        "targets": "soft",
        "temperature": 1.0,
        "fill": "copies",
        "max_copies": None,
        "where": "confidence < 0.75",
        "seed": 5,
        "hard_from": 0.6,
        "policy_sql": None,
        "settings": {},
        "near_leaks": "drop",
        "dedup": False,
        "accepted": False,
        "calibration": None,
    }
    assert inside["tables"] == {name: versions[name] for name in selection.INPUTS}
    assert inside["model"] == {"model": "trained", "weights_hash": "ab" * 32}
    assert inside["tool"].startswith("curator ")
    assert inside["sql_sha256"] == hashlib.sha256(inside["sql"].encode()).hexdigest()
    assert [(c["class_name"], c["candidates"], c["kept"], c["rows"], c["most_copies"]) for c in inside["classes"]] == [
        ("cat", 2, 2, 3, 2),
        ("dog", 3, 3, 3, 1),
        ("owl", 1, 1, 3, 3),
    ]
    assert inside["classes"][0]["cut_off"] == np.float32(0.34)
    con = store.connect(inside["tables"])
    try:
        names = ("generation", "min_confidence", "per_class", "fill", "max_copies")
        values = {name: inside["parameters"][name] for name in names}
        con.execute("create temp table again as " + inside["sql"], values)
        again = con.execute("select image_id from again order by label, score desc, image_id").fetchall()
    finally:
        con.close()
    assert [image_id for (image_id,) in again] == pq.read_table(built.path)["image_id"].to_pylist()


def test_the_funnel_counts_what_each_rule_leaves(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    """a is out by --where, h by the threshold, c by a person, b because a holdout image has the same bytes."""
    listing = pa.table({"uri": ["held.jpg", "pool/new.jpg"], "split": ["holdout", "unlabeled"], "label": ["cat", None]})
    pq.write_table(listing, tmp_path / "more.parquet")
    add_images(store, str(tmp_path / "more.parquet"), None, scan=False)
    same = {"content_hash": "'same'", "status": "'ok'"}
    store.delta("images").update(updates=same, predicate="uri in ('held.jpg', 'pool/b.jpg')")
    add_review(store, ids["c"], "reject")
    built = building.build(store, "m", {"per_class": 2, "where": "uri <> 'pool/a.jpg'", "min_confidence": 0.35})
    assert built.lineage["funnel"] == {
        "pool": 10,
        "unreadable": 0,
        "not_checked_for_leaks": 9,
        "labeled": 9,
        "pass_where": 8,
        "above_threshold": 7,
        "not_rejected": 6,
        "not_leaking": 5,
        "candidates": 5,
        "eligible": 5,
    }
    assert letters(ids, built.path, "copies") == [("d", 2), ("e", 1), ("f", 1), ("g", 2)]


# The command line


def test_short_and_empty_classes_are_named(store: Store, curator: Callable[..., Answer]) -> None:
    options = ("--min-confidence", 0.65, "--per-class", 2, "--store", store.path)
    answer = curator("build-manifest", *options, "--json")
    assert answer.code == 0
    found = answer.json
    assert (found["short_classes"], found["empty_classes"], found["classes"]) == (["dog"], ["owl"], 2)
    assert (found["name"], found["rows"], found["unique_images"]) == ("g0-2", 4, 3)
    assert Path(found["path"]) == store.path / "manifests" / "g0-2"
    text = curator("build-manifest", "text", *options).out
    assert "1 class has fewer images to choose from than the quota of 2, and copies fill them up: dog." in text
    assert "1 class has no image to choose from, so no row: owl." in text
    assert found["sha256"] in text


@pytest.mark.parametrize(
    "options",
    [
        ("--per-class", 4),
        ("--per-class", 1, "--min-confidence", 0.65),
        ("--per-class", 9, "--min-confidence", 0.99),
    ],
)
def test_strict_exits_1_and_writes_nothing(
    store: Store, curator: Callable[..., Answer], options: tuple[object, ...]
) -> None:
    before = files_of(store.path)
    answer = curator("build-manifest", *options, "--strict", "--store", store.path)
    assert answer.code == 1
    assert answer.out == ""
    assert "nothing was written" in answer.err
    assert files_of(store.path) == before


def test_strict_passes_where_no_class_falls_short(store: Store) -> None:
    assert building.build(store, "m", {"per_class": 1}, strict=True).unique_images == 3
    with pytest.raises(
        AnswerIsNo, match=r"1 classes have fewer images to choose from than 2 \(owl\) and 0 have none \(none\)"
    ):
        building.build(store, "m2", {"per_class": 2}, strict=True)


def test_dry_run_writes_nothing(store: Store, curator: Callable[..., Answer]) -> None:
    before = files_of(store.path)
    answer = curator("build-manifest", "--per-class", 3, "--dry-run", "--json", "--store", store.path)
    assert answer.code == 0
    assert answer.json["sha256"] is None
    assert (answer.json["rows"], answer.json["unique_images"]) == (9, 7)
    text = curator("build-manifest", "--per-class", 3, "--dry-run", "--store", store.path).out
    assert text.startswith("would build: g0-3: 9 rows from 7 images")
    assert files_of(store.path) == before
    assert not (store.path / "manifests").exists()


def test_explain_shows_classes_and_sql(store: Store, curator: Callable[..., Answer]) -> None:
    command = ("build-manifest", "m", "--per-class", 3, "--explain", "--store", store.path)
    text = curator(*command).out
    assert "row_number() over (partition by label order by score desc, image_id)" in text
    assert any(line.split()[:6] == ["2", "owl", "1", "1", "1", "3"] for line in text.splitlines())
    assert curator(*command, "--json").json["lineage"]["parameters"]["per_class"] == 3


def test_show_and_list(store: Store, curator: Callable[..., Answer]) -> None:
    at = ("--store", store.path)
    assert "no manifests yet" in curator("manifests", *at).out
    made = curator("build-manifest", "m", "--per-class", 3, *at, "--json").json
    listed = curator("manifests", *at, "--json").json["manifests"]
    assert [row["name"] for row in listed] == ["m"]
    assert listed[0]["sha256"] == made["sha256"]
    shown = curator("show", "m", *at, "--json").json
    assert {key: shown[key] for key in made} == made
    assert shown["lineage"]["sha256"] == made["sha256"]
    assert "outside" in curator("show", "m", *at).out
    missing = curator("show", "mm", *at)
    assert missing.code == 2
    assert "there is no manifest 'mm'; did you mean 'm'?" in missing.err


def test_wrong_options_are_told_at_once_and_before_anything_else(
    tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    Store.create(tmp_path / "store")
    wrong = ("--per-class", 0, "--fill", "full", "--temperature", -1, "--policy", "tpo")
    answer = curator("build-manifest", *wrong, "--store", tmp_path / "store")
    assert answer.code == 2
    for option in ("--per-class 0", "--fill full", "--temperature -1.0", "--policy tpo"):
        assert option in answer.err
    answer = curator("build-manifest", "--per-class", 1, "--store", tmp_path / "store")
    assert answer.code == 2
    assert "no generation has soft labels yet" in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--generation", 3), "there is no generation 3"),
        (("../m",), "'../m' cannot be the name of a manifest"),
        (("images",), "'images' cannot be the name of a manifest"),
        (("--as-of", "nonesuch"), "there is no manifest 'nonesuch'"),
        (("--min-confidence", 0.95), "nothing can be selected from generation 0: of 9 labeled pool images 0 pass"),
    ],
)
def test_what_cannot_be_built(
    store: Store, curator: Callable[..., Answer], arguments: tuple[object, ...], message: str
) -> None:
    before = files_of(store.path)
    answer = curator("build-manifest", *arguments, "--per-class", 3, "--store", store.path)
    assert answer.code == 2
    assert message in answer.err
    assert files_of(store.path) == before


@pytest.mark.parametrize("bytes_left", [0, 100])
def test_damaged_files_are_told_and_not_traced(store: Store, curator: Callable[..., Answer], bytes_left: int) -> None:
    for name in ("a", "b"):
        building.build(store, name, {"per_class": 3})
    part = store.path / "manifests" / "b" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:bytes_left])
    for command in (("diff", "a", "b", "--exit-code"), ("show", "b", "--image-id", "1")):
        answer = curator(*command, "--store", store.path)
        assert answer.code == 2
        assert "the files of the manifest 'b' cannot be read" in answer.err
        assert "curator check b" in answer.err


def test_numbers_that_are_too_large(store: Store, curator: Callable[..., Answer]) -> None:
    building.build(store, "a", {"per_class": 3})
    for command in (("build-manifest", "--per-class", 3, "--seed", 10**40), ("show", "a", "--image-id", 10**40)):
        answer = curator(*command, "--store", store.path)
        assert answer.code == 2
        assert "Traceback" not in answer.err
