"""Each check made to fail by a manifest or a store that was really tampered with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import given
from hypothesis import strategies as st

from curator import digests, queries
from curator.curation import building, checks, manifests, quota
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.pictures.images import add_images
from curator.schema import MANIFEST_ROW
from curator.storage.store import Store

ROW_CHECKS = {
    *("class_sum", "holdout_leak", "probability_mass", "rejected_image", "repeated_image", "row_order"),
    "unknown_image",
}


@pytest.fixture
def built(store: Store) -> manifests.Manifest:
    """The manifest m: cat a 1, b 1, c 1, dog e 1, f 1, i 1, owl g 3."""
    return building.build(store, "m", {"per_class": 3})


def found(store: Store, name: str = "m") -> dict[str, list[dict[str, Any]]]:
    """The first offending rows of each check that found any."""
    (verdict,) = manifests.check(store, name)
    assert verdict.ok == (not any(one.offending for one in verdict.findings))
    return {one.check: one.rows for one in verdict.findings if one.offending}


def tamper(manifest: manifests.Manifest, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Rewrites the rows of a manifest's only file."""
    file = manifest.path / "part-00000.parquet"
    rows = pq.read_table(file).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_ROW.schema), file)


def test_a_sound_manifest_passes_every_check(store: Store, curator: Callable[..., Answer]) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"fill": "none"},
        {"max_copies": 2},
        {"targets": "hard", "per_class": 1},
        {"per_class": 100, "max_copies": 30},
    ]
    for number, option in enumerate(options):
        building.build(store, f"m{number}", {"per_class": 4} | option)
    answer = curator("check", "--store", store.path, "--json")
    assert answer.code == 0
    listed = answer.json["manifests"]
    assert [(m["name"], m["ok"]) for m in listed] == [(f"m{number}", True) for number in range(5)]
    for m in listed:
        assert {c["check"] for c in m["checks"]} == {"missing_files", "content_hash", *ROW_CHECKS}
        assert all((c["offending"], c["rows"]) == (0, []) for c in m["checks"])
    assert curator("check", "m0", "--store", store.path).out == "m0: ok, 9 checks\n"


def test_a_store_without_manifests(store: Store, curator: Callable[..., Answer]) -> None:
    assert curator("check", "--store", store.path, "--json").json == {"manifests": []}
    assert "no manifests yet" in curator("check", "--store", store.path).out
    unknown = curator("check", "m", "--store", store.path)
    assert unknown.code == 2
    assert "there is no manifest 'm'" in unknown.err


def test_offending_rows_are_named_and_the_exit_code_is_1(
    store: Store, ids: dict[str, int], built: manifests.Manifest, curator: Callable[..., Answer]
) -> None:
    building.build(store, "sound", {"per_class": 1, "min_confidence": 0.85})
    add_review(store, ids["b"], "reject")
    answer = curator("check", "--store", store.path)
    assert answer.code == 1
    assert "m: not ok, 9 checks\n\nrejected_image: 1 found\n" in answer.out
    assert "pool/b.jpg" in answer.out
    assert "sound: ok" in answer.out
    assert "1 of 2 manifests fails a check (m)" in answer.err
    answer = curator("check", "m", "--store", store.path, "--json")
    assert answer.code == 1
    failed = [c for c in answer.json["manifests"][0]["checks"] if c["offending"]]
    row = {"image_id": ids["b"], "uri": "pool/b.jpg", "label": 0}
    assert failed == [{"check": "rejected_image", "offending": 1, "rows": [row]}]
    add_review(store, ids["b"], "skip")  # takes the rejection back
    assert found(store) == {}


# The store has changed


def test_leaks_of_the_holdout(store: Store, ids: dict[str, int], built: manifests.Manifest, tmp_path: Path) -> None:
    """a becomes a holdout image, c turns out to have the bytes of one."""
    listing = pa.table({"uri": ["held.jpg"], "split": ["holdout"], "label": ["cat"]})
    pq.write_table(listing, tmp_path / "more.parquet")
    add_images(store, str(tmp_path / "more.parquet"), None, scan=False)
    assert found(store) == {}
    images = store.delta("images")
    images.update(updates={"content_hash": "'same'"}, predicate="uri in ('held.jpg', 'pool/c.jpg')")
    store.delta("images").update(updates={"split": "'holdout'"}, predicate="uri = 'pool/a.jpg'")
    leaks = found(store)
    assert leaks.keys() == {"holdout_leak"}
    assert {(row["image_id"], row["split"]) for row in leaks["holdout_leak"]} == {
        (ids["a"], "holdout"),
        (ids["c"], "twin of a holdout image"),
    }


def test_images_that_are_not_in_the_store(store: Store, ids: dict[str, int], built: manifests.Manifest) -> None:
    store.delta("images").delete("uri = 'pool/e.jpg'")
    assert found(store) == {"unknown_image": [{"image_id": ids["e"], "uri": "pool/e.jpg", "label": 1}]}


# The rows have changed; the hash tells each time


def test_an_image_twice(store: Store, ids: dict[str, int], built: manifests.Manifest) -> None:
    tamper(built, lambda rows: rows[1].update(image_id=ids["a"]))
    wrong = found(store)
    assert wrong["repeated_image"] == [{"image_id": ids["a"], "times": 2}]
    assert "content_hash" in wrong


def test_a_class_off_its_quota(store: Store, built: manifests.Manifest) -> None:
    tamper(built, lambda rows: rows[0].update(copies=2))
    wrong = found(store)
    assert wrong.keys() == {"class_sum", "content_hash"}
    off = {"label": 0, "class_name": "cat", "images": 3, "copies": 4, "expected": 3}
    assert wrong["class_sum"] == [off]
    tamper(built, lambda rows: (rows[0].update(copies=0), rows[1].update(copies=2)))
    assert found(store)["class_sum"] == [off | {"copies": 3}]  # the sum is right, but not each row counts


@pytest.mark.parametrize("options", [{"fill": "none"}, {"max_copies": 2}])
def test_a_class_off_its_quota_where_copies_are_limited(store: Store, options: dict[str, Any]) -> None:
    manifest = building.build(store, "m", {"per_class": 5} | options)
    assert found(store) == {}
    tamper(manifest, lambda rows: rows[-1].update(copies=5))
    (off,) = found(store)["class_sum"]
    assert (off["class_name"], off["copies"], off["expected"]) == ("owl", 5, options.get("max_copies", 1))


@pytest.mark.parametrize("tail", [0.003, -0.003, float("nan"), None])
def test_probability_mass_off_1(store: Store, built: manifests.Manifest, tail: float | None) -> None:
    tamper(built, lambda rows: rows[3].update(tail=tail))
    wrong = found(store)
    assert wrong.keys() == {"probability_mass", "content_hash"}
    assert [row["uri"] for row in wrong["probability_mass"]] == ["pool/e.jpg"]


def test_a_little_mass_may_be_off(store: Store, built: manifests.Manifest) -> None:
    tamper(built, lambda rows: rows[3].update(tail=0.001))
    assert found(store).keys() == {"content_hash"}


@pytest.mark.parametrize(
    ("order", "late"),
    [([1, 0, 2, 3, 4, 5, 6], "a"), ([0, 1, 2, 6, 3, 4, 5], "e"), ([6, 0, 1, 2, 3, 4, 5], "a")],
)
def test_rows_out_of_order(
    store: Store, ids: dict[str, int], built: manifests.Manifest, order: list[int], late: str
) -> None:
    tamper(built, lambda rows: rows.__setitem__(slice(None), [rows[i] for i in order]))
    wrong = found(store)
    assert wrong.keys() == {"row_order", "content_hash"}
    assert [row["image_id"] for row in wrong["row_order"]] == [ids[late]]


def test_ties_go_by_image_id(store: Store, built: manifests.Manifest) -> None:
    """b and c have the same confidence."""
    tamper(built, lambda rows: rows.__setitem__(slice(1, 3), [rows[2], rows[1]]))
    assert len(found(store)["row_order"]) == 1


def test_order_is_that_of_all_files_together(store: Store, built: manifests.Manifest) -> None:
    rows = pq.read_table(built.path / "part-00000.parquet")
    pq.write_table(rows.slice(3), built.path / "part-00000.parquet")
    pq.write_table(rows.slice(0, 3), built.path / "part-00001.parquet")
    wrong = found(store)
    assert wrong.keys() == {"row_order", "content_hash"}
    (row,) = wrong["row_order"]
    assert (row["file"], row["file_row_number"], row["label"], row["label_before"]) == ("part-00001.parquet", 0, 0, 2)


def test_only_the_first_rows_are_named(store: Store, built: manifests.Manifest) -> None:
    rows = pq.read_table(built.path / "part-00000.parquet").slice(0, 1).to_pylist() * 12
    many = [row | {"image_id": -1 - i, "copies": 1} for i, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(many, MANIFEST_ROW.schema), built.path / "part-00000.parquet")
    (verdict,) = manifests.check(store, "m")
    unknown = next(one for one in verdict.findings if one.check == "unknown_image")
    assert (unknown.offending, len(unknown.rows)) == (12, 10)


# The files


def test_files_that_are_gone(store: Store, built: manifests.Manifest, curator: Callable[..., Answer]) -> None:
    (built.path / "part-00000.parquet").rename(built.path / "part-00001.parquet")
    assert found(store)["missing_files"][0] == {"file": "part-00000.parquet", "problem": "is missing"}
    (built.path / "part-00001.parquet").unlink()
    assert found(store).keys() == {"missing_files"}
    answer = curator("check", "--store", store.path)
    assert answer.code == 1
    assert "holds 0 of the 7 rows of the manifest" in answer.out
    with pytest.raises(InputError, match="hold 0 of the 7 rows"):
        manifests.files(built)


def test_files_that_are_foreign_or_damaged(store: Store, built: manifests.Manifest) -> None:
    file = built.path / "part-00000.parquet"
    pq.write_table(pa.table({"x": [1]}), built.path / "other.parquet")
    assert found(store) == {"missing_files": [{"file": "other.parquet", "problem": "is no part of the manifest"}]}
    (built.path / "other.parquet").unlink()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    assert found(store)["missing_files"][0]["problem"].startswith("cannot be read (")
    file.write_bytes(whole[:40] + bytes(60) + whole[100:])  # the footer is well, a page is not
    assert found(store).keys() == {"content_hash"}
    pq.write_table(pa.table({"x": [1]}), file)
    assert found(store)["missing_files"][0]["problem"] == "has other columns than a manifest"


def test_content_that_no_rule_forbids_still_changes_the_hash(store: Store, built: manifests.Manifest) -> None:
    tamper(built, lambda rows: rows[0].update(uri="pool/z.jpg"))
    wrong = found(store)
    assert wrong.keys() == {"content_hash"}
    assert wrong["content_hash"][0]["recorded"] == built.sha256
    tamper(built, lambda rows: rows[0].update(uri="pool/a.jpg"))
    assert found(store) == {}  # the hash is that of the rows, not of the file's bytes


@given(sizes=st.lists(st.integers(1, 150), min_size=1, max_size=3))
def test_the_hash_of_files_is_that_of_the_stream(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    """Row groups of any size, read back, give the hash of the batches that the writer saw."""
    count = 150
    row = {"uri": "\u00e9", "label": 1, "copies": 1, "top_classes": [1, 2], "top_probs": [0.5, 0.25], "tail": 0.25}
    table = pa.Table.from_pylist([row | {"image_id": i} for i in range(count)], MANIFEST_ROW.schema)
    file = tmp_path_factory.mktemp("hash") / "part-00000.parquet"
    with pq.ParquetWriter(file, MANIFEST_ROW.schema) as writer:
        start = 0
        for size in [*sizes, count]:
            writer.write_table(table.slice(start, size))
            start += size
    digest = digests.begin({"per_class": 2})
    digests.update(digest, table)
    assert digests.of_files({"per_class": 2}, [file]) == digest.hexdigest()


# Before publication


def test_nothing_is_published_that_fails_a_row_check(
    store: Store, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bugs of the tool: a selection that forgets rejections, and one that counts wrong."""
    add_review(store, ids["a"], "reject")
    original = queries.text
    candidates = original("candidates").replace("d.decision <> 'reject'", "true")
    monkeypatch.setattr(queries, "text", lambda name: candidates if name == "candidates" else original(name))
    with pytest.raises(RuntimeError, match="fails its check 'rejected_image' and was not published: 1 row,"):
        building.build(store, "m", {"per_class": 3})
    monkeypatch.setattr(queries, "text", original)
    place = quota.place
    monkeypatch.setattr(quota, "place", lambda *given: place(*given)._replace(extra=place(*given).extra * 0))
    with pytest.raises(RuntimeError, match="'class_sum'"):
        building.build(store, "m", {"per_class": 4})
    assert manifests.published(store) == []
    assert list((store.path / "manifests").glob("[!.]*")) == []
    assert list((store.path / "manifests").glob(".m-*")) == []


def test_rows_that_come_out_of_order_stop_the_writer() -> None:
    def rows(*values: tuple[int, float, int]) -> pa.Table:
        label, score, image_id = zip(*values, strict=True)
        return pa.table({"label": label, "score": np.array(score, np.float32), "image_id": image_id})

    assert checks.expect_order(rows((0, 0.9, 7), (0, 0.9, 8), (0, 0.8, 1), (1, 1, 2)), (-1, 0, 0)) == (1, 1, 2)
    for wrong in (((0, 0.8, 1), (0, 0.9, 2)), ((1, 1, 1), (0, 1, 2)), ((0, 1, 2), (0, 1, 1)), ((0, 1, 1), (0, 1, 1))):
        with pytest.raises(RuntimeError, match="out of order"):
            checks.expect_order(rows(*wrong), (-1, 0, 0))
        with pytest.raises(RuntimeError, match="out of order"):
            checks.expect_order(rows(wrong[1]), wrong[0])


def test_every_check_has_a_test_here() -> None:
    assert set(queries.names("checks")) == ROW_CHECKS
