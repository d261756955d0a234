"""Two manifests compared: by hand on the fixture store, and against the rule in plain Python."""

from collections.abc import Callable

import duckdb
import pyarrow as pa
import pytest
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import queries
from curator.curation import building, comparison
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.storage.store import Store

Rows = dict[int, tuple[int, int]]  # image_id -> label, copies


@pytest.fixture
def changed(store: Store, ids: dict[str, int]) -> Store:
    """The fixture store with the manifests one and two.

    one: cat a 1, b 1, c 1    dog e 2, f 1    owl g 3    (above .5)
    two: cat b 2, c 1         dog e 2, a 1    owl f 2, g 1
    """
    building.build(store, "one", {"per_class": 3, "min_confidence": 0.5})
    add_review(store, ids["a"], "relabel", "dog")
    add_review(store, ids["f"], "relabel", "owl")
    building.build(store, "two", {"per_class": 3, "min_confidence": 0.5})
    return store


def test_each_kind_of_change(changed: Store, curator: Callable[..., Answer]) -> None:
    found = curator("diff", "one", "two", "--store", changed.path, "--json")
    assert found.code == 0
    zero = dict.fromkeys(comparison.COUNTS, 0)
    classes = [
        zero | {"class_name": "cat", "copies_changed": 1, "same": 1},
        zero | {"class_name": "dog", "relabeled": 1, "copies_changed": 1},
        zero | {"class_name": "owl", "relabeled": 1, "copies_changed": 1},
    ]
    assert found.json == zero | {"relabeled": 2, "copies_changed": 3, "same": 1, "classes": classes}


def test_added_and_removed_count_in_their_class(store: Store, curator: Callable[..., Answer]) -> None:
    building.build(store, "few", {"per_class": 2})
    building.build(store, "many", {"per_class": 3, "fill": "none"})
    zero = dict.fromkeys(comparison.COUNTS, 0)
    grown = {"cat": {"added": 1, "same": 2}, "dog": {"added": 1, "same": 2}, "owl": {"copies_changed": 1}}
    forth = curator("diff", "few", "many", "--store", store.path, "--json").json
    assert forth["classes"] == [zero | {"class_name": name} | counts for name, counts in grown.items()]
    assert (forth["added"], forth["removed"]) == (2, 0)
    back = curator("diff", "many", "few", "--store", store.path, "--json").json
    assert (back["added"], back["removed"], back["same"]) == (0, 2, 4)
    assert [c["removed"] for c in back["classes"]] == [1, 1, 0]


def test_exit_code(changed: Store, curator: Callable[..., Answer]) -> None:
    at = ("--store", changed.path)
    assert curator("diff", "one", "two", *at).code == 0
    differs = curator("diff", "one", "two", "--exit-code", "--json", *at)
    assert differs.code == 1
    assert differs.json["relabeled"] == 2
    assert "'one' and 'two' differ: 0 added, 0 removed, 2 relabeled, 3 copies changed, 1 same" in differs.err
    assert "mend: curator show one" in differs.err
    equal = curator("diff", "one", "one", "--exit-code", *at)
    assert (equal.code, equal.err) == (0, "")
    assert equal.out.splitlines()[-1].split() == ["same", "6"]


def test_the_text_names_the_classes_that_differ(store: Store, curator: Callable[..., Answer]) -> None:
    building.build(store, "few", {"per_class": 2, "fill": "none"})
    building.build(store, "many", {"per_class": 3, "fill": "none"})
    lines = curator("diff", "few", "many", "--store", store.path).out.splitlines()
    assert lines[0].split() == ["added", "2"]
    assert [line.split()[0] for line in lines[-2:]] == ["cat", "dog"]


def test_what_cannot_be_compared(store: Store, curator: Callable[..., Answer]) -> None:
    built = building.build(store, "one", {"per_class": 3})
    unknown = curator("diff", "one", "ome", "--store", store.path)
    assert unknown.code == 2
    assert "there is no manifest 'ome'; did you mean 'one'?" in unknown.err
    next(built.path.glob("*.parquet")).unlink()
    with pytest.raises(InputError, match="hold 0 of the 7 rows of the manifest") as caught:
        comparison.diff(store, "one", "one")
    assert "curator check one" in caught.value.mend


def test_the_join_may_spill(store: Store) -> None:
    """More rows than the memory limit holds: the answer is the same, read back from temporary files."""
    con = store.connect()
    try:
        con.execute("set memory_limit = '60MB'")
        con.execute("set threads = 1")
        for view, low in (("before", 0), ("after", 500_000)):
            con.execute(
                f"create view {view} as select (i * 7919) % 100000007 as image_id, (i % 9)::INT as label,"
                f" 1::INT as copies from range({low}, {low} + 2000000) t(i)"
            )
        found = queries.rows(con, queries.text("diff"))
    finally:
        con.close()
    assert sum(row["added"] for row in found) == sum(row["removed"] for row in found) == 500_000
    assert sum(row["same"] for row in found) == 1_500_000


def plain(before: Rows, after: Rows) -> dict[int, dict[str, int]]:
    """The rule, image by image."""
    found: dict[int, dict[str, int]] = {}
    for image_id in before.keys() | after.keys():
        old, new = before.get(image_id), after.get(image_id)
        if old is None or new is None:
            what = "removed" if new is None else "added"
        elif old[0] != new[0]:
            what = "relabeled"
        else:
            what = "same" if old == new else "copies_changed"
        label = (new or old or (0, 0))[0]
        found.setdefault(label, dict.fromkeys(comparison.COUNTS, 0))[what] += 1
    return found


some_rows = st.dictionaries(st.integers(0, 12), st.tuples(st.integers(0, 3), st.integers(1, 3)))


@given(before=some_rows, after=some_rows)
@settings(deadline=None)
def test_the_statement_is_the_rule(before: Rows, after: Rows) -> None:
    con = duckdb.connect()
    try:
        for name, rows in (("before", before), ("after", after)):
            columns = {"image_id": list(rows), "label": [r[0] for r in rows.values()], "copies": []}
            columns["copies"] = [r[1] for r in rows.values()]
            types = {"image_id": pa.int64(), "label": pa.int32(), "copies": pa.int32()}
            con.register(name, pa.table({k: pa.array(v, types[k]) for k, v in columns.items()}))
        found = queries.rows(con, queries.text("diff"))
    finally:
        con.close()
    assert [row["label"] for row in found] == sorted(plain(before, after))
    assert {row.pop("label"): row for row in found} == plain(before, after)
