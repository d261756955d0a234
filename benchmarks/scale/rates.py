"""Measured figures, taken from the results of the other benchmarks where they stand.

benchmarks/results/NAME.md --table, row, column--> one figure
"""

from __future__ import annotations

import re
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def cell(name: str, row: str, column: str) -> float:
    """The first number in a cell of a table.

    Args:
        name: The result, without its ending.
        row: How the row begins, its cells joined by " | ".
        column: The column's title.

    Raises:
        LookupError: There is no such cell, or several.
    """
    found, titles = [], []
    for line in (RESULTS / f"{name}.md").read_text("utf-8").splitlines():
        if not line.startswith("|"):
            titles = []
            continue
        cells = [each.strip() for each in line.strip("|").split("|")]
        titles = titles or cells
        if " | ".join(cells).startswith(row) and column in titles and cells is not titles:
            found.append(number(cells[titles.index(column)]))
    if len(found) != 1:
        raise LookupError(f"{len(found)} cells of {name}.md are '{row}' x '{column}'")
    return found[0]


def text(name: str, pattern: str) -> float:
    """The number that the first group of a pattern finds in a result.

    Raises:
        LookupError: It finds none.
    """
    match = re.search(pattern, (RESULTS / f"{name}.md").read_text("utf-8"))
    if match is None:
        raise LookupError(f"nothing in {name}.md is '{pattern}'")
    return number(match[1])


def number(words: str) -> float:
    """The first number of a text, commas between thousands left out."""
    return float(re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", words)[0].replace(",", ""))
