"""Importing soft labels: every form, every refusal, one commit for all, two imports at once."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES, PROBS, Answer

from curator.errors import CuratorError, InputError
from curator.generations import labels, softlabels
from curator.generations.labels import PartWriter, import_labels
from curator.pictures.images import add_images
from curator.schema import LABELS
from curator.storage import additions
from curator.storage.store import Store
from curator.upkeep import integrity

URIS = [f"pool/{name}.jpg" for name in PROBS]
ROWS = [list(row) for row in PROBS.values()]


def files_of(store: Store) -> dict[str, str]:
    """A hash of every file of a store, by path."""
    found = sorted(path for path in store.path.rglob("*") if path.is_file())
    return {str(path.relative_to(store.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def generation(store: Store, number: int) -> dict[str, dict[str, Any]]:
    """The labels of a generation by the image's letter; one row each."""
    query = "select i.uri, l.* from labels as l join images as i using (image_id) where generation = $g"
    rows = store.rows(query, g=number)
    found = {row["uri"][5]: row for row in rows}
    assert len(found) == len(rows), "an image is labeled twice"
    return found


def write(path: Path, **columns: Any) -> str:
    """Writes a Parquet file and gives its path."""
    pq.write_table(pa.table(columns), path)
    return str(path)


# Every form of the input


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("make", [pa.list_, pa.large_list, lambda t: pa.list_(t, 3)], ids=["list", "large", "fixed"])
def test_probs_in_every_type(store: Store, tmp_path: Path, make: Callable[..., Any], number: pa.DataType) -> None:
    values = np.array(ROWS, number.to_pandas_dtype())
    column = pa.array([list(row) for row in values], make(number))
    done = import_labels(store, write(tmp_path / "f.parquet", uri=URIS, probs=column), 1, "second")
    assert done == (1, 9, 0, [])
    got = generation(store, 1)
    want = softlabels.summarize(values.astype(np.float32), 20)
    for i, name in enumerate(PROBS):
        row = got[name]
        assert row["model"] == "second"
        assert row["split"] == "unlabeled"
        assert row["class_name"] == CLASSES[row["label"]]
        for field, column in want._asdict().items():
            assert row[field] == column[i].tolist(), (name, field)


def test_images_by_id(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    names = sorted(PROBS, reverse=True)
    file = write(tmp_path / "f.parquet", image_id=[ids[n] for n in names], probs=[list(PROBS[n]) for n in names])
    assert import_labels(store, file, 1, "second").images == 9
    first, second = generation(store, 0), generation(store, 1)
    assert {n: row["top_probs"] for n, row in first.items()} == {n: row["top_probs"] for n, row in second.items()}


def test_logits(store: Store, tmp_path: Path) -> None:
    logits = pa.array(list(np.log(np.array(ROWS)) + 5), pa.list_(pa.float32()))
    import_labels(store, write(tmp_path / "f.parquet", uri=URIS, logits=logits), 1, "second")
    first, second = generation(store, 0), generation(store, 1)
    for name in PROBS:
        assert second[name]["confidence"] == pytest.approx(first[name]["confidence"], rel=1e-5)
    for name in set(PROBS) - {"g"}:  # g is a tie behind the first place, which logits only come near
        assert second[name]["top_classes"] == first[name]["top_classes"]


def test_top_classes_of_different_length(store: Store, tmp_path: Path) -> None:
    file = write(
        tmp_path / "f.parquet",
        uri=URIS[:3],
        top_classes=pa.array([[2], [1, 0], [0, 1, 2]], pa.list_(pa.uint16())),
        top_probs=pa.array([[0.5], [0.25, 0.5], [0.5, 0.25, 0.25]], pa.list_(pa.float16())),
    )
    import_labels(store, file, 1, "second")
    got = generation(store, 1)
    assert [got[name]["top_classes"] for name in "abc"] == [[2], [0, 1], [0, 1, 2]]
    assert [got[name]["label"] for name in "abc"] == [2, 0, 0]
    assert [got[name]["tail"] for name in "abc"] == [0.5, 0.25, 0]
    assert [got[name]["margin"] for name in "abc"] == [0.25, 0.25, 0.25]


def test_arrow_file_and_a_folder_of_parquet_files(store: Store, tmp_path: Path) -> None:
    pa.feather.write_feather(pa.table({"uri": URIS, "probs": ROWS}), tmp_path / "f.arrow")
    assert import_labels(store, str(tmp_path / "f.arrow"), 1, "second").images == 9
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(3):
        write(folder / f"{i}.parquet", uri=URIS[i * 3 : i * 3 + 3], probs=ROWS[i * 3 : i * 3 + 3])
    assert import_labels(store, str(folder), 2, "third").images == 9
    same = ("label", "confidence", "margin", "entropy", "top_classes", "top_probs", "tail")
    first, third = generation(store, 0), generation(store, 2)
    assert {n: [r[c] for c in same] for n, r in first.items()} == {n: [r[c] for c in same] for n, r in third.items()}


def test_the_split_is_that_of_the_image(store: Store, tmp_path: Path) -> None:
    listing = write(tmp_path / "l.parquet", uri=["x.jpg", "y.jpg"], split=["labeled", "holdout"], label=["cat", "owl"])
    add_images(store, listing, None, scan=False)
    file = write(tmp_path / "f.parquet", uri=["y.jpg", "pool/a.jpg", "x.jpg"], probs=[[1.0, 0, 0]] * 3)
    import_labels(store, file, 1, "second")
    query = "select i.uri, l.split from labels as l join images as i using (image_id) where generation = 1"
    assert {row["uri"]: row["split"] for row in store.rows(query)} == {
        "x.jpg": "labeled",
        "y.jpg": "holdout",
        "pool/a.jpg": "unlabeled",
    }


def test_many_rows_keep_their_images(tmp_path: Path) -> None:
    """Rows of several batches, in an order that is not that of the store."""
    store = Store.create(tmp_path / "store", CLASSES)
    n = 10_000
    uris = [f"pool/{i:05d}.jpg" for i in range(n)]
    add_images(store, write(tmp_path / "l.parquet", uri=uris), "unlabeled", scan=False)
    order = np.random.default_rng(0).permutation(n)
    first = np.linspace(0.4, 0.9, n).round(4)
    probs = np.stack([first, 1 - first, np.zeros(n)], axis=1).astype(np.float32)
    file = write(tmp_path / "f.parquet", uri=[uris[i] for i in order], probs=list(probs[order]))
    assert import_labels(store, file, 0, "m").images == n
    rows = store.rows("select i.uri, l.confidence from labels as l join images as i using (image_id) order by uri")
    assert [row["confidence"] for row in rows] == probs.max(axis=1).tolist()


# Refusals


BAD = {
    "null": ([None], "row 1 has null instead of probs, not 3"),
    "long": ([[0.25] * 4], "row 1 has 4 probs, not 3"),
    "empty": ([[]], "row 1 has 0 probs, not 3"),
    "hole": ([[0.5, None, 0.5]], "row 1 holds NaN or infinity"),
    "nan": ([[0.5, float("nan"), 0.5]], "row 1 holds NaN or infinity"),
    "negative": ([[1.0, 0.1, -0.1]], "row 1 holds a value outside 0 to 1"),
    "sum": ([[0.5, 0.2, 0.2]], "row 1 sums to 0.9, not to 1"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_row_is_named_and_nothing_is_written(store: Store, tmp_path: Path, what: str) -> None:
    rows, message = BAD[what]
    probs = pa.array([ROWS[0], *rows, ROWS[2]], pa.list_(pa.float64()))
    before = files_of(store)
    with pytest.raises(InputError) as caught:
        import_labels(store, write(tmp_path / "f.parquet", uri=URIS[:3], probs=probs), 1, "second")
    assert "1 of 3 rows" in caught.value.what
    assert message in caught.value.what
    assert "--max-rejected" in caught.value.mend
    assert files_of(store) == before


@pytest.mark.parametrize(
    ("uris", "message"),
    [
        (["pool/b.jpg", "pool/z.jpg"], "row 1 names an image that is not in the store"),
        (["pool/b.jpg", None], "row 1 names an image that is not in the store"),
        (["pool/b.jpg", "pool/b.jpg"], "row 1 names an image that an earlier row names"),
    ],
)
def test_a_row_of_no_image_is_named(store: Store, tmp_path: Path, uris: list[str], message: str) -> None:
    before = files_of(store)
    with pytest.raises(InputError, match=message):
        import_labels(store, write(tmp_path / "f.parquet", uri=uris, probs=ROWS[:2]), 1, "second")
    assert files_of(store) == before


@pytest.mark.parametrize(
    "numbers", [pa.array([5]), pa.array([2**64 - 5], pa.uint64()), pa.array([None], pa.int32())], ids=str
)
def test_an_unknown_image_id_is_named(store: Store, tmp_path: Path, numbers: pa.Array) -> None:
    with pytest.raises(InputError, match="row 0 names an image that is not in the store") as caught:
        import_labels(store, write(tmp_path / "f.parquet", image_id=numbers, probs=ROWS[:1]), 1, "second")
    assert caught.value.mend == "correct them"  # to leave every row out would be no import


def test_rejected_rows_are_left_out_where_that_is_allowed(
    store: Store, tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    uris = ["pool/a.jpg", "nowhere.jpg", "pool/c.jpg", "pool/a.jpg", "pool/d.jpg"]
    probs = [ROWS[0], ROWS[1], [0.5, 0.1, 0.1], ROWS[0], ROWS[3]]
    file = write(tmp_path / "f.parquet", uri=uris, probs=probs)
    before = files_of(store)
    command = ("import-labels", file, "--generation", 1, "--model", "second", "--store", store.path)
    refused = curator(*command, "--max-rejected", 2)
    assert refused.code == 2
    assert refused.out == ""
    assert "3 of 5 rows" in refused.err
    assert files_of(store) == before
    done = curator(*command, "--max-rejected", 3, "--json")
    assert done.code == 0
    assert done.json == {
        "generation": 1,
        "images": 2,
        "rejected": 3,
        "problems": [
            "row 1 names an image that is not in the store",
            "row 2 sums to 0.7, not to 1",
            "row 3 names an image that an earlier row names",
        ],
    }
    assert set(generation(store, 1)) == {"a", "d"}


def test_a_file_of_bad_rows_only_is_refused_even_where_they_may_be_left_out(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 of 2 rows"):
        import_labels(store, write(tmp_path / "f.parquet", uri=["x", "y"], probs=ROWS[:2]), 1, "second", 10)


def test_many_bad_rows_are_counted_and_the_first_are_named(store: Store, tmp_path: Path) -> None:
    n = 9000
    file = write(tmp_path / "f.parquet", uri=[f"no/{i}" for i in range(n)], probs=[[1.0, 0, 0]] * n)
    with pytest.raises(InputError, match=r"9000 of 9000 rows.*row 0 names.*row 9 names.* and 8990 more"):
        import_labels(store, file, 1, "second")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uri": URIS, "confidence": [1.0] * 9}, "no soft labels; its columns are uri, confidence"),
        ({"probs": ROWS}, "no column 'image_id' or 'uri'"),
        ({"uri": [1, 2], "probs": ROWS[:2]}, "the column 'uri' .* holds int64"),
        ({"image_id": [1.0, 2.0], "probs": ROWS[:2]}, "the column 'image_id' .* holds double"),
        ({"uri": pa.array([], pa.string()), "probs": pa.array([], pa.list_(pa.float32()))}, "no column|no rows"),
    ],
)
def test_a_file_of_another_form(store: Store, tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    before = files_of(store)
    with pytest.raises(InputError, match=message):
        import_labels(store, write(tmp_path / "f.parquet", **columns), 1, "second")
    assert files_of(store) == before


def test_a_missing_and_a_damaged_file(store: Store, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    before = files_of(store)
    whole = Path(write(tmp_path / "f.parquet", uri=URIS, probs=ROWS)).read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 4
    (tmp_path / "middle.parquet").write_bytes(whole[:middle] + bytes(60) + whole[middle + 60 :])
    for name in ("none.parquet", "half.parquet", "middle.parquet"):
        answer = curator(
            "import-labels", tmp_path / name, "--generation", 1, "--model", "second", "--store", store.path
        )
        assert answer.code == 2, name
        assert name in answer.err
        assert "mend:" in answer.err
        assert files_of(store) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((-1, "second", 0), "generation -1 is not in 0 to 32767"),
        ((40_000, "second", 0), "generation 40000 is not in 0 to 32767"),
        ((1, "second", -1), "--max-rejected -1 is negative"),
        ((1, "../second", 0), "cannot be the name of a model"),
        ((0, "other", 0), "generation 0 was labeled by the model 'outside'"),
        ((1, "outside", 0), "the model 'outside' belongs to generation 0, not 1"),
    ],
)
def test_options_that_do_not_fit(store: Store, tmp_path: Path, options: tuple[int, str, int], message: str) -> None:
    before = files_of(store)
    with pytest.raises(InputError, match=message):
        import_labels(store, write(tmp_path / "f.parquet", uri=URIS, probs=ROWS), *options)
    assert files_of(store) == before


def test_a_store_without_classes(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    with pytest.raises(InputError, match="has no classes yet"):
        import_labels(store, write(tmp_path / "f.parquet", uri=URIS, probs=ROWS), 0, "m")


# A second file, and two at once


def test_a_second_file_adds_to_a_generation(store: Store, tmp_path: Path) -> None:
    one = write(tmp_path / "1.parquet", uri=URIS[:4], probs=ROWS[:4])
    two = write(tmp_path / "2.parquet", uri=URIS[4:], probs=ROWS[4:])
    import_labels(store, one, 1, "second")
    assert set(generation(store, 1)) == set("abcd")
    import_labels(store, two, 1, "second")
    assert set(generation(store, 1)) == set(PROBS)
    with pytest.raises(InputError, match="row 0 names an image that this generation has labeled already"):
        import_labels(store, two, 1, "second")
    assert [row["model"] for row in store.rows("select model from models order by all")] == ["outside", "second"]


def test_a_model_is_registered_by_the_next_import_if_one_died_before_it_could(store: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "1.parquet", uri=URIS[:4], probs=ROWS[:4])
    import_labels(store, file, 1, "second")
    store.delta("models").delete("model = 'second'")
    with pytest.raises(InputError, match="labeled already"):
        import_labels(store, file, 1, "second")
    assert store.rows("select generation from models where model = 'second'") == [{"generation": 1}]


def test_older_versions_stay_readable_by_delta_lake_alone(store: Store, tmp_path: Path) -> None:
    before = store.versions()["labels"]
    import_labels(store, write(tmp_path / "f.parquet", uri=URIS, probs=ROWS), 1, "second")
    for version, generations in ((before, [0]), (None, [0, 1])):
        table = deltalake.DeltaTable(str(store.path / "labels"), version=version)
        query = "select generation, count(*) as n from labels group by generation order by generation"
        answer = pa.table(deltalake.QueryBuilder().register("labels", table).execute(query).read_all())
        assert answer.to_pydict() == {"generation": generations, "n": [9] * len(generations)}


# Parts


def test_a_part_is_there_only_once_it_is_whole(store: Store, tmp_path: Path) -> None:
    rows = softlabels.table(softlabels.summarize(np.array(ROWS, np.float32), 20), range(9), 1, "m", ["unlabeled"] * 9)
    writer = PartWriter(tmp_path / "new" / "part-0.parquet", 3)
    writer.write(rows)
    assert not list(tmp_path.glob("new/*.parquet"))
    assert writer.finish() == tmp_path / "new" / "part-0.parquet"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["part-0.parquet"]
    got = pq.read_table(tmp_path / "new" / "part-0.parquet")
    assert got.schema == LABELS.schema
    assert got.equals(rows)
    writer = PartWriter(tmp_path / "new" / "part-1.parquet", 3)
    writer.write(rows)
    writer.abandon()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["part-0.parquet"]


def test_a_rejected_import_leaves_no_folder_behind(store: Store, tmp_path: Path) -> None:
    before = sorted(path.name for path in (store.path / "labels").iterdir())
    with pytest.raises(InputError):
        import_labels(store, write(tmp_path / "f.parquet", uri=["x"], probs=ROWS[:1]), 1, "second")
    assert sorted(path.name for path in (store.path / "labels").iterdir()) == before


# Images and models that may not have these labels


def test_labels_of_an_unreadable_image_are_rejected(store: Store, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    add_images(store, write(tmp_path / "l.parquet", uri=["broken.jpg"]), "unlabeled")
    file = write(tmp_path / "f.parquet", uri=[*URIS, "broken.jpg"], probs=[*ROWS, ROWS[0]])
    with pytest.raises(InputError, match="row 9 names an image that cannot be read"):
        import_labels(store, file, 1, "second")
    done = import_labels(store, file, 1, "second", max_rejected=1)
    assert (done.images, done.problems) == (9, ["row 9 names an image that cannot be read"])


def test_a_model_whose_labels_are_there_without_it_gets_no_other_generation(store: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "f.parquet", uri=URIS, probs=ROWS)
    import_labels(store, file, 1, "second")
    store.delta("models").delete("model = 'second'")
    with pytest.raises(InputError, match="the model 'second' belongs to generation 1, not 2"):
        import_labels(store, file, 2, "second")


@pytest.mark.parametrize(
    ("mine", "said"),
    [(1, "another process published generation 1"), (2, "the model 'second' belongs to generation 1, not 2")],
)
def test_two_imports_of_one_model_at_once_give_it_one_generation(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: int, said: str
) -> None:
    file = write(tmp_path / "f.parquet", uri=URIS[:4], probs=ROWS[:4])
    other = write(tmp_path / "g.parquet", uri=URIS[4:], probs=ROWS[4:])
    claim = additions.claim

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(additions, "claim", claim)
        import_labels(Store(store.path), other, 1, "second")
        claim(*arguments)

    monkeypatch.setattr(additions, "claim", late)
    with pytest.raises(CuratorError, match=said):
        import_labels(store, file, mine, "second")
    found = store.rows("select generation, count(*) as n from labels where model = 'second' group by generation")
    assert found == [{"generation": 1, "n": 5}]
    assert store.rows("select generation from models where model = 'second'") == [{"generation": 1}]


def test_an_import_that_died_before_its_labels_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "f.parquet", uri=URIS, probs=ROWS)

    def died(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(labels, "publish", died)
        with pytest.raises(KeyboardInterrupt):
            import_labels(store, file, 1, "second")
    assert store.rows("select generation from models where model = 'second'") == [{"generation": 1}]
    assert integrity.examine(store.path).wrong == []
    assert import_labels(store, file, 1, "second").images == 9
