"""What storing a soft label loses and costs: the rounding's rule and bounds, bytes an image, full distributions.

The rule is stated again in exact fractions; the mass is judged by the check that manifests must pass.
"""

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import deltalake
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import queries
from curator.generations import softlabels
from curator.generations.labels import PartWriter, publish
from curator.loading.rows import Rows
from curator.storage.store import Store

ROUNDED = 2.0**-19  # nats that one class may add


def by_the_rule(value: float) -> float:
    """The nearest multiple of 2^-11, or of 2^-5 times the power of two below where that is finer; ties to even."""
    if not value:
        return 0.0
    step = Fraction(2) ** min(-11, math.frexp(value)[1] - 1 - 5)
    return float(round(Fraction(value) / step) * step)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
@settings(deadline=None)
def test_rounding_by_its_rule(values: list[float]) -> None:
    ordered = np.sort(np.array(values, np.float32))
    got = softlabels.round_probabilities(ordered)
    assert got.dtype == np.float32
    assert got.tolist() == [by_the_rule(value) for value in ordered.tolist()]
    error = np.abs(got.astype(np.float64) - ordered)
    assert (error <= np.minimum(2.0**-12, ordered.astype(np.float64) * 2.0**-6 + 2.0**-155)).all()
    assert (np.diff(got) >= 0).all(), "order is kept"
    assert ((got > 0) == (ordered > 0)).all()
    assert softlabels.round_probabilities(got).tolist() == got.tolist()


def test_ties_go_to_even() -> None:
    given = np.array([1024 + x for x in (0.25, 0.5, 0.75, 1.5, 2.5)], np.float32) / 2048
    assert (softlabels.round_probabilities(given) * 2048).tolist() == [1024, 1024, 1025, 1026, 1026]


# Any distribution


def worst(classes: int) -> np.ndarray:
    """Half of the classes just above the middle between two steps, half just below, as far off as rounding can be."""
    step = 2.0 ** (math.floor(math.log2(1 / classes)) - 5)
    up, down = (32 + 0.501) * step, (32 + 0.499) * step
    half = np.array([up] * (classes // 2) + [down] * (classes // 2))
    return np.append(half, 1 - half.sum()) if half.sum() < 1 else half / half.sum()


ADVERSARIAL = {
    "one class": np.array([1.0] + [0.0] * 999),
    "nearly one class": np.array([1 - 999e-9] + [1e-9] * 999),
    "1000 equal": np.full(1000, 1 / 1000),
    "20 equal": np.array([1 / 20] * 20 + [0.0] * 980),
    "two": np.array([0.998, 0.002]),
    "halves at a step of 20": worst(20),
    "halves at a step of 60": worst(60),
    "halves at a step of 900": worst(900),
    "falling by halves": np.append(0.5 ** np.arange(1, 140), 0.5**139),
}


def check_distribution(probs: np.ndarray, kept: int) -> None:
    """Order, mass and divergence of what is stored of [N, C] distributions whose sums may be off by a thousandth."""
    classes = probs.shape[1]
    stored = softlabels.summarize(probs.astype(np.float32), kept)
    assert (np.diff(stored.top_probs, axis=1) <= 0).all()
    lists = pa.array(list(stored.top_probs), pa.list_(pa.float32()))
    columns = {"image_id": np.arange(len(probs)), "uri": ["x"] * len(probs), "label": stored.label}
    con = duckdb.connect()
    con.register("rows", pa.table({**columns, "top_probs": lists, "tail": stored.tail}))
    assert con.sql(queries.text("checks/probability_mass")).fetchall() == []
    con.close()
    top = np.take_along_axis(probs, stored.top_classes, axis=1).astype(np.float64)
    whole = probs.sum(axis=1, dtype=np.float64)
    tail = np.maximum(whole - top.sum(axis=1), 0) if kept < classes else np.zeros(len(probs))
    exact = np.column_stack([top, tail]) / whole[:, None]
    read = np.column_stack([stored.top_probs, stored.tail]).astype(np.float64)
    read /= read.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        added = np.where(exact > 1e-12, exact * np.log(exact / read), 0).sum(axis=1)
    assert (added < min(1.05 * (kept + 1) * ROUNDED, 1.05 * 2.0**-13) + 1e-6).all()
    if kept <= 20:
        assert (added < 1e-4).all()


@pytest.mark.parametrize("total", [0.9991, 1.0, 1.0009])
@pytest.mark.parametrize("kept", [1, 20, 1000])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_hardest_distributions(name: str, kept: int, total: float) -> None:
    probs = np.minimum(ADVERSARIAL[name] * total, 1)
    check_distribution(probs[None], min(kept, len(probs)))


@given(st.integers(1, 300), st.floats(0, 30), st.integers(0, 1000), st.sampled_from([1, 20, 1000]))
@settings(deadline=None, max_examples=60)
def test_any_distribution(classes: int, scale: float, seed: int, kept: int) -> None:
    logits = np.random.default_rng(seed).normal(0, scale, (4, classes))
    check_distribution(softlabels.softmax(logits), min(kept, classes))


def outputs(rows: int, seed: int = 0) -> np.ndarray:
    """Distributions [rows, 1000] with beta-distributed confidence, the other classes far apart."""
    rng = np.random.default_rng(seed)
    probs = rng.standard_exponential((rows, 1000), np.float32) ** 3
    top, confidence = rng.integers(0, 1000, rows), rng.beta(2, 1.3, rows).astype(np.float32) * 0.92 + 0.07
    probs[np.arange(rows), top] = 0
    probs *= ((1 - confidence) / probs.sum(axis=1))[:, None]
    probs[np.arange(rows), top] = confidence
    return probs


@pytest.mark.parametrize("kept", [20, 1000])
def test_rounding_adds_less_than_a_ten_thousandth_on_the_mean(kept: int) -> None:
    """KL to the targets that are made of what is stored, less KL to those made of the same classes before rounding."""
    probs = outputs(2000)
    got = softlabels.summarize(probs, kept)
    top = np.take_along_axis(probs, got.top_classes, axis=1)
    tail = (1 - top.sum(axis=1, dtype=np.float64)).clip(0).astype(np.float32) * (kept < 1000)

    def kl(top: np.ndarray, tail: np.ndarray) -> float:
        read = softlabels.expand(got.top_classes, top, tail, 1000).astype(np.float64)
        wide = probs.astype(np.float64)
        return float((wide * np.log(np.maximum(wide, 1e-45) / np.maximum(read, 1e-45))).sum(axis=1).mean())

    added = kl(got.top_probs, got.tail) - kl(top, tail)
    assert 1e-7 < added < 1e-5
    assert (kl(top, tail) > 0.01) == (kept == 20), "the tail is cut, so this must be seen"


# Bytes


def test_bytes_an_image(tmp_path: Path) -> None:
    """A row group of soft labels over 1000 classes in a store, read by every engine that the docs name."""
    store = Store.create(tmp_path / "store", [f"class{i}" for i in range(1000)])
    n, part = 122_880, outputs(12_288)
    rng = np.random.default_rng(1)
    summary = softlabels.summarize(part, 20)
    writer = PartWriter(store.path / "labels" / "g000" / "part-0.parquet", 1000)
    for shift in range(n // len(part)):  # the same distributions with other classes, pages apart
        classes = (summary.top_classes + shift) % 1000
        moved = summary._replace(label=classes[:, 0], top_classes=classes)
        ids = rng.integers(0, 2**63, len(part))
        writer.write(softlabels.table(moved, ids, 0, "m", ["unlabeled"] * len(part)))
    publish(store, store.delta("labels"), [writer.finish()], 0)
    table = deltalake.DeltaTable(str(store.path / "labels"))
    (file,) = table.file_uris()
    assert Path(file.removeprefix("file://")).stat().st_size / n <= 70
    assert pq.read_metadata(file.removeprefix("file://")).num_row_groups == 1
    mass = summary.top_probs.sum(dtype=np.float64) * (n // len(part))
    query = "select sum(list_sum(top_probs)::double) as mass, count(*) as n, typeof(any_value(top_probs)) as kind"
    (read,) = store.rows(f"{query} from stored_labels")
    assert (read["n"], read["kind"]) == (n, "FLOAT[]")
    assert read["mass"] == pytest.approx(mass, rel=1e-6)
    assert pl.read_delta(str(store.path / "labels"))["top_probs"].explode().cast(pl.Float64).sum() == pytest.approx(
        mass
    )
    arrow = table.to_pyarrow_table()
    assert arrow.schema.field("top_probs").type.value_type == pa.float32()
    assert arrow["confidence"].combine_chunks().to_numpy()[: len(part)].tolist() == part.max(axis=1).tolist()


def test_long_rows_do_not_wait_for_a_full_row_group(tmp_path: Path) -> None:
    """Row groups of full distributions stay near 64 MiB in memory, whatever sizes the rows come in."""
    summary = softlabels.summarize(outputs(4000), 1000)
    table = softlabels.table(summary, np.arange(4000), 0, "m", ["unlabeled"] * 4000)
    for pieces in ([table] * 8, [pa.concat_tables([table] * 8)]):
        writer = PartWriter(tmp_path / "part.parquet", 1000)
        for piece in pieces:
            writer.write(piece)
        metadata = pq.read_metadata(writer.finish())
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        assert sum(groups) == 32_000
        assert max(groups) * table.nbytes / 4000 < 2 * (64 << 20)
        assert len(groups) <= 3


# How many classes are kept


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("all", 40),
        ("3", 3),
        pytest.param("100", 40, marks=pytest.mark.long),
        pytest.param("40", 40, marks=pytest.mark.long),
        pytest.param(None, 20, marks=pytest.mark.long),
    ],
)
def test_kept_classes_from_init_to_targets(
    tmp_path: Path, curator: Callable[..., Answer], given: str | None, kept: int
) -> None:
    """40 classes through init, import-labels and build-manifest, and back as the loader reads them."""
    store, n = tmp_path / "store", 60
    option = () if given is None else ("--keep-classes", given)
    (tmp_path / "classes.txt").write_text("".join(f"c{i:02d}\n" for i in range(40)))
    made = curator("init", "--classes", tmp_path / "classes.txt", *option, "--store", store, "--json")
    stated = {"all": 2**15, None: 20}.get(given) or int(given or 0)
    assert made.json["kept_classes"] == stated
    assert json.loads((store / "store.json").read_text())["kept_classes"] == stated
    uris = [f"pool/{i:02d}.jpg" for i in range(n)]
    probs = softlabels.softmax(np.random.default_rng(0).normal(0, 3, (n, 40)))
    pq.write_table(pa.table({"uri": uris}), tmp_path / "pool.parquet")
    pq.write_table(pa.table({"uri": uris, "probs": list(probs)}), tmp_path / "probs.parquet")
    add = ("add-images", tmp_path / "pool.parquet", "--split", "unlabeled", "--no-scan", "--store", store)
    assert curator(*add).code == 0
    take = ("import-labels", tmp_path / "probs.parquet", "--generation", 0, "--model", "m", "--store", store)
    assert curator(*take).code == 0
    build = ("build-manifest", "a", "--per-class", 2, "--min-confidence", 0, "--store", store)
    assert curator(*build).code == 0
    assert curator("check", "a", "--store", store).code == 0
    rows = Rows.manifest(Store(store), "a")
    assert len(rows) > 40
    _, _, classes, top, tail, _ = part = rows.read(np.arange(len(rows)))
    assert classes.shape[1] == kept
    assert (tail == 0).all() == (kept == 40)
    images = Store(store).rows("select image_id, uri from images")
    places = {row["image_id"]: uris.index(row["uri"]) for row in images}
    want = probs[[places[image] for image in part.image_id.tolist()]]
    read = softlabels.expand(classes, top, tail, 40)
    if kept == 40:
        np.testing.assert_allclose(read, want, rtol=2**-5)
    best = np.take_along_axis(want, classes.astype(np.int64), axis=1)
    np.testing.assert_allclose(np.take_along_axis(read, classes.astype(np.int64), axis=1), best, rtol=2**-5)


@pytest.mark.parametrize("given", ["0", "-1", "32769", "many", "2.5", ""])
def test_a_number_of_classes_that_no_store_can_keep(tmp_path: Path, curator: Callable[..., Answer], given: str) -> None:
    done = curator("init", "--keep-classes", given, "--store", tmp_path / "s")
    assert done.code == 2
    assert "mend:" in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_kept_classes_of_a_store_stay(tmp_path: Path, curator: Callable[..., Answer]) -> None:
    init = ("init", "--store", tmp_path / "s")
    assert curator(*init, "--keep-classes", 50).code == 0
    assert curator(*init, "--keep-classes", 50).code == 0
    assert curator(*init).code == 0, "a number that is not given agrees with any"
    other = curator(*init, "--keep-classes", "all")
    assert other.code == 2
    assert "another number of kept classes (50)" in other.err
    assert Store(tmp_path / "s").settings.kept_classes == 50
