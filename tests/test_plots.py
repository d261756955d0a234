"""The plots of a report, and the small rules behind its figures."""

import math
import re
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from curator import queries
from curator.curation.account import wilson
from curator.reports import plots


def texts(plot: plots.Plot) -> list[str]:
    """What is written in a plot."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", plot.svg)


def test_plots_of_very_many_classes() -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"class_name": f"c{i}", "candidates": int(n), "kept": min(int(n), 100), "cut_off": 0.5,
         "precision": 0.9, "low": 0.7, "high": 0.95}
        for i, n in enumerate(sorted(rng.pareto(1, 20_000) * 50, reverse=True))
    ]  # fmt: skip
    for plot in (plots.classes(rows, 100, ""), plots.cut_offs(rows, 0.3, ""), plots.precision(rows, "")):
        assert len(plot.svg) < 60_000
        assert "<text" in plot.svg
        assert "c7" not in texts(plot)
    named = plots.classes(rows[: plots.NAMED], 100, "")
    assert "c7" in texts(named)


def test_steps_of_confidence_are_exact() -> None:
    """k / 50 as a float32 begins step k, whatever its rounding."""
    con = duckdb.connect()
    con.register("judged", pa.table({"confidence": pa.array(np.arange(51) / 50, pa.float32()), "copies": range(51)}))
    rows = queries.rows(con, queries.text("report_confidence"))
    assert [(r["step"], r["images"]) for r in rows] == [(k, 1) for k in range(49)] + [(49, 2)]
    assert sum(r["rows"] for r in rows) == sum(range(51))


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (7, 9), (50, 100), (999, 1000)])
def test_wilson_solves_its_equation(right: int, total: int) -> None:
    low, high = wilson(right, total)
    assert 0 <= low < high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            off = abs(right / total - bound) / math.sqrt(bound * (1 - bound) / total)
            assert off == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"),
        (1, "100%"),
        (0.5, "50%"),
        (0.0004, "under 0.1%"),
        (0.99999, "over 99.9%"),
        (0.1234, "12.3%"),
        (1.1, "110%"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert plots.percent(share) == text


def test_short_keeps_both_ends() -> None:
    long: Any = "a" * 50 + "b" * 50
    assert plots.short(long, 20) == "a" * 10 + "..." + "b" * 7
    assert plots.short("x\ny", 20) == "x\\ny"
