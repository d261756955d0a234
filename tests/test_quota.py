"""The quota out of a stream, against sql/quota.sql and sql/copies.sql, which define it."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator import queries
from curator.curation import quota
from curator.generations.histogram import Histogram

Row = tuple[int, int, float, int, float]


def defined(rows: quota.Rows, above: float, rule: quota.Rule) -> list[Row]:
    """The rows as the SQL files say: image_id, label, score, copies, weight; by image_id."""
    con = duckdb.connect()
    con.register(
        "given", pa.table({"image_id": rows.image_id, "label": rows.label, "score": rows.score, **rows.carried})
    )
    steps = {"eligible": "select * from given where score > $above::FLOAT", "kept": queries.text("quota")}
    query = queries.compose(steps, queries.text("copies"))
    values = rule._asdict() | {"above": above}
    found = con.execute(query, queries.bind(con, query, values)).fetchnumpy()
    con.close()
    return sorted(
        zip(*(found[name].tolist() for name in ("image_id", "label", "score", "copies", "weight")), strict=True)
    )


def streamed(
    rows: quota.Rows,
    above: float,
    rule: quota.Rule,
    cuts: list[int],
    classes: int,
    low: float,
    high: float,
    folder: Path,
) -> list[Row]:
    """The rows as the module gives them, out of a stream cut at the places."""
    bounds = [0, *sorted(cuts), len(rows.label)]

    def parts() -> Iterator[quota.Rows]:
        for start, stop in itertools.pairwise(bounds):
            yield rows.take(np.arange(start, stop))

    histogram = Histogram(classes, low, high, above)
    for part in parts():
        histogram.add(part.label, part.score)
    assert histogram.counted.tolist() == np.bincount(rows.label[rows.score > above], minlength=classes).tolist()
    with closing(duckdb.connect()) as con:
        file = quota.keep(con, parts(), histogram, rule, folder)
    if file is None:
        return []
    table = pq.read_table(file)
    return sorted(
        zip(*(table[name].to_pylist() for name in ("image_id", "label", "score", "copies", "weight")), strict=True)
    )


CONFIDENCES = st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.9, 0.99, 0.999, 1 - 2**-24, 1.0]) | st.floats(0, 1, width=32)
SCORES = (
    st.floats(-(2.0**100), 2.0**100, width=32) | st.integers(-5, 5).map(float) | st.sampled_from([1e-30, 1e-20, 0.5])
)


@st.composite
def streams(draw: st.DrawFn) -> dict[str, Any]:
    classes = draw(st.sampled_from([1, 2, 3, 5000]))
    confident = draw(st.booleans())
    scores = draw(st.lists(CONFIDENCES if confident else SCORES, max_size=60))
    n = len(scores)
    ids = draw(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 99), min_size=n, max_size=n, unique=True))
    labels = draw(st.lists(st.integers(0, min(classes, 4) - 1), min_size=n, max_size=n))
    score = np.array(scores, np.float32) + np.float32(0)
    rows = quota.Rows(
        np.array(ids, np.int64), np.array(labels, np.int16), score, {"weight": np.arange(n, dtype=np.float32)}
    )
    low, high = (0.0, 1.0) if confident else (float(score.min(initial=0)), float(score.max(initial=0)))
    return {
        "rows": rows,
        "above": float(np.float32(draw(st.sampled_from([0.0, 0.3, 0.5])))) if confident else -np.inf,
        "rule": quota.Rule(
            draw(st.integers(1, 25)), draw(st.sampled_from(["copies", "none"])), draw(st.sampled_from([None, 1, 2, 7]))
        ),
        "cuts": draw(st.lists(st.integers(0, n), max_size=4)),
        "classes": classes,
        "low": low,
        "high": high,
    }


@pytest.mark.long
@given(stream=streams())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_keeps_what_the_sql_keeps(stream: dict[str, Any], tmp_path: Path) -> None:
    """Ties, scores of any size, a stream cut anywhere."""
    assert streamed(**stream, folder=tmp_path) == defined(stream["rows"], stream["above"], stream["rule"])


def many(rows: int, classes: int, decimals: int | None) -> quota.Rows:
    """Rows of classes whose sizes fall like 1 / rank, most scores close below 1."""
    rng = np.random.default_rng(5)
    share = 1 / np.arange(1, classes + 1)
    label = rng.choice(classes, rows, p=share / share.sum()).astype(np.int16)
    score = (1 - rng.beta(1, 8, rows) * 0.9).astype(np.float32)
    score = score if decimals is None else score.round(decimals)
    return quota.Rows(rng.permutation(2 * rows)[:rows].astype(np.int64), label, score, {"weight": score})


@pytest.mark.parametrize("decimals", [None, 3, 1, 0])
def test_many_rows(decimals: int | None, tmp_path: Path) -> None:
    """From scores that all differ to scores that are all 1, where the ids alone decide."""
    rows, rule = many(200_000, 40, decimals), quota.Rule(1500)
    wanted = defined(rows, 0.3, rule)
    cuts = list(range(0, 200_000, 9000))
    assert streamed(rows, 0.3, rule, cuts, 40, 0.0, 1.0, tmp_path) == wanted
    assert len(wanted) > 20_000


def test_few_rows_wait_for_the_end_of_the_stream(tmp_path: Path) -> None:
    """What is sorted is the rows of one bin of each class, not the classes."""
    streamed(many(300_000, 20, None), 0.3, quota.Rule(2000), [150_000], 20, 0.0, 1.0, tmp_path)
    assert 0 < pq.read_metadata(tmp_path / "waiting.parquet").num_rows < 20 * 2000 * 0.1


TIES = """
import resource, sys, tempfile
import duckdb, numpy as np
from pathlib import Path
from curator.curation import quota
from curator.generations.histogram import Histogram

def parts():
    for start in range(0, int(sys.argv[1]), 100_000):
        ids = (np.arange(start, start + 100_000) * np.int64(-7046029254386353131)) & np.int64(2**63 - 1)
        yield quota.Rows(ids, np.arange(100_000) % 1000, np.ones(100_000, np.float32), {})

histogram = Histogram(1000)
for part in parts():
    histogram.add(part.label, part.score)
with tempfile.TemporaryDirectory() as folder:
    con = duckdb.connect(config={"memory_limit": "200MB", "temp_directory": folder})
    con.execute("set enable_progress_bar = false")
    quota.keep(con, parts(), histogram, quota.Rule(int(sys.argv[1]) // 2000), Path(folder))
    con.close()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_ties_take_no_memory() -> None:
    """A teacher that is quite sure of everything: half of each class is kept, and the ids alone decide."""
    peaks = [
        int(subprocess.run([sys.executable, "-c", TIES, str(rows)], capture_output=True, check=True, text=True).stdout)
        for rows in (100_000, 6_000_000)
    ]
    assert peaks[1] - peaks[0] < 330, peaks
