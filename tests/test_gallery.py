"""The gallery's queries against the same rules in plain Python: three splits, reviews, a manifest, many ties."""

import datetime as dt
import random
import shutil
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES

from curator.curation import building, manifests
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality import gallery
from curator.quality.gallery import CHOSEN, ORDERS, REVIEWED, Filter, Gallery
from curator.schema import DECISIONS, REVIEWS, SPLITS
from curator.storage import additions
from curator.storage.store import Store

COUNTS = {"unlabeled": 160, "labeled": 25, "holdout": 25}
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Confidences in steps of a tenth, so that many are equal; two generations; reviews, some of them taken back."""
    folder = tmp_path_factory.mktemp("gallery")
    store = Store.create(folder / "store", CLASSES)
    rng = np.random.default_rng(5)
    uris = []
    for split, count in COUNTS.items():
        mine = [f"{split}/{'Cat' if n % 3 else 'dog'}-{n}.jpg" for n in range(count)]
        listing = {"uri": mine} | ({} if split == "unlabeled" else {"label": [CLASSES[n % 3] for n in range(count)]})
        pq.write_table(pa.table(listing), folder / "listing.parquet")
        add_images(store, str(folder / "listing.parquet"), split, scan=False)
        uris += mine
    for generation in (0, 1):
        parts = rng.multinomial(10, [0.5, 0.3, 0.2], len(uris)) / 10
        probs = pa.array([list(p) for p in parts[:, rng.permutation(3)]], pa.list_(pa.float32()))
        pq.write_table(pa.table({"uri": uris, "probs": probs}), folder / "probs.parquet")
        import_labels(store, str(folder / "probs.parquet"), generation, f"model{generation}")
    ids = [row["image_id"] for row in store.rows("select image_id from images order by uri")]
    decided = []
    for place in range(90):
        decision = DECISIONS[rng.integers(len(DECISIONS))]
        decided.append(
            {
                "image_id": ids[rng.integers(len(ids))],
                "generation": 1,
                "decision": decision,
                "new_label": int(rng.integers(3)) if decision == "relabel" else None,
                "reviewer": "anna",
                "decided_at": START + dt.timedelta(seconds=int(rng.permutation(90)[0]) * 100 + place),
            }
        )
    additions.append(store, "reviews", pa.Table.from_pylist(decided, REVIEWS.schema))
    building.build(store, "m", {"generation": 1, "per_class": 20, "min_confidence": 0.3})
    return store


def every(store: Store, generation: int) -> list[dict]:
    """All images of a generation, with what the filters look at, put together one by one."""
    rows = store.rows(
        "select image_id, l.split, l.label, confidence, margin, entropy, uri"
        " from labels as l join images using (image_id) where generation = $generation",
        generation=generation,
    )
    latest: dict[int, dict] = {}
    for review in store.rows("select * from reviews"):
        there = latest.get(review["image_id"])
        if there is None or review["decided_at"] > there["decided_at"]:
            latest[review["image_id"]] = review
    sources = {row["image_id"]: row["source"] for row in pq.read_table(files(store)).to_pylist()}
    for row in rows:
        review = latest.get(row["image_id"])
        row["decision"] = review["decision"] if review else None
        row["decided_at"] = review["decided_at"] if review else None
        row["new_class"] = CLASSES[review["new_label"]] if review and review["new_label"] is not None else None
        row["source"] = sources.get(row["image_id"])
    return rows


def files(store: Store) -> list[str]:
    return [str(file) for file in manifests.files(manifests.find(store, "m"))]


def passes(row: dict, wanted: Filter) -> bool:
    for measure in ("confidence", "margin", "entropy"):
        low, high = getattr(wanted, measure)
        if low is not None and row[measure] < np.float32(low):
            return False
        if high is not None and row[measure] > np.float32(high):
            return False
    decision = {"none": row["decision"] is None, "any": row["decision"] is not None, None: True}
    source = {"none": row["source"] is None, "any": row["source"] is not None, None: True}
    return (
        wanted.split in (None, row["split"])
        and wanted.label in (None, row["label"])
        and (wanted.text or "").lower() in row["uri"].lower()
        and decision.get(wanted.decision, row["decision"] == wanted.decision)
        and source.get(wanted.source, row["source"] == wanted.source)
    )


def in_order(rows: list[dict], order: str) -> list[dict]:
    if order == "newest decision":
        decided = [row for row in rows if row["decision"] is not None]
        return sorted(decided, key=lambda row: (-row["decided_at"].timestamp(), row["image_id"]))
    which, measure = order.split()
    sign = 1 if which == "lowest" else -1
    return sorted(rows, key=lambda row: (sign * row[measure], row["image_id"]))


def drawn(rng: random.Random, paths: list[str]) -> Filter:
    """A filter of two or three conditions, most of the time."""

    def maybe(*values: object) -> object:
        return rng.choice(values) if rng.random() < 0.2 else None

    def span(highest: float) -> tuple[float | None, float | None]:
        low, high = sorted(round(rng.uniform(0, highest), 1) for _ in range(2))
        return (maybe(low), maybe(high))  # type: ignore[return-value]

    source = maybe(*CHOSEN)
    return Filter(
        rng.choice((0, 1)),
        maybe(*SPLITS),
        maybe(0, 1, 2),
        span(1),
        span(1),
        span(1.1),
        maybe("cat", "DOG-1", "%", "unlabeled/"),
        maybe(*REVIEWED),
        source,
        tuple(paths) if source else (),
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 8))])
def test_as_counted_one_by_one(world: Store, seed: int) -> None:
    rng = random.Random(seed)
    rows = {generation: every(world, generation) for generation in (0, 1)}
    paths = files(world)
    found = 0
    with closing(world.connect()) as con:
        for _ in range(12):
            wanted, order = drawn(rng, paths), rng.choice(list(ORDERS))
            expected = in_order([row for row in rows[wanted.generation] if passes(row, wanted)], order)
            asked = Gallery(con, wanted, order)
            assert asked.count() == len(expected), (wanted, order)
            first, size = rng.randrange(0, max(len(expected), 1)), rng.choice((1, 7, 24))
            page = asked.page(first, size)
            names = [name for name in expected[0] if name in page[0]] if page else []
            assert [{name: row[name] for name in names} for row in page] == [
                {name: row[name] for name in names} for row in expected[first : first + size]
            ], (wanted, order, first)
            steps = asked.steps()
            if steps:
                assert sum(step.images for step in steps) == len(expected)
                assert asked.page(first, size, steps) == page, (wanted, order, first)
            assert Gallery(con, wanted, order, is_sorted=False).page(first, size) == page
            found += len(page)
    assert found > 30  # the filters let something through


def test_nothing_undecided_has_a_newest_decision(world: Store) -> None:
    with closing(world.connect()) as con:
        asked = Gallery(con, Filter(1, decision="none"), "newest decision")
        assert asked.count() == 0
        assert asked.page(0, 24) == []


def test_pages_are_the_whole(world: Store) -> None:
    with closing(world.connect()) as con:
        asked = Gallery(con, Filter(1), "highest confidence")
        steps = asked.steps()
        parts = [asked.page(first, 24, steps) for first in range(0, 300, 24)]
        assert [row for part in parts for row in part] == asked.page(0, 300)
        assert parts[-1] == []


def test_groups_of_rows_are_passed_over(world: Store) -> None:
    """A filter that is not given must not keep DuckDB from skipping rows by their lowest and highest values."""
    with closing(world.connect()) as con:
        asked = Gallery(con, Filter(1, "unlabeled", 2, confidence=(0.4, None)))
        plans = []
        con = _Explained(con, plans)
        asked._con = con  # type: ignore[assignment]
        asked.page(0, 24)
    assert "label = 2" in plans[0]
    assert "split = 'unlabeled'" in plans[0]
    assert "Top N" in plans[0]
    assert "CASE" not in plans[0]  # the bound order has become a column


class _Explained:
    """A connection that notes how each query would be run."""

    def __init__(self, con: object, plans: list[str]) -> None:
        self._con, self._plans = con, plans

    def __getattr__(self, name: str) -> object:
        return getattr(self._con, name)

    def sql(self, query: str, params: dict) -> object:
        self._plans.append(self._con.sql(f"explain {query}", params=params).fetchall()[0][1])  # type: ignore[attr-defined]
        return self._con.sql(query, params=params)  # type: ignore[attr-defined]


def test_a_store_without_the_tables(store: Store, curator) -> None:
    without_tables(store)
    with closing(store.connect()) as con:
        expected = Gallery(con, Filter(0), is_sorted=False).page(0, 24)
    answer = curator("index", "--store", store.path, "--json")
    assert answer.json == {"generations": [{"generation": 0, "images": 9}]}
    with closing(store.connect()) as con:
        assert Gallery(con, Filter(0)).page(0, 24) == expected
    assert gallery.index(store) == [{"generation": 0, "images": 9}]


def test_index_of_a_generation_that_is_not_there(store: Store, curator) -> None:
    answer = curator("index", "--store", store.path, "--generation", "7")
    assert answer.code == 2
    assert "no generation 7" in answer.err


def without_tables(store: Store) -> None:
    """Makes the store one from before the tables were thought of."""
    for name in ("browse", "histograms"):
        shutil.rmtree(store.path / name)
