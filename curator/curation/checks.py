"""Whether a manifest is what it says: its files are whole, and no query of sql/checks/ finds a row.

    files -> missing_files -> content_hash -> each file of sql/checks/ over the rows and the store

A check that finds nothing holds. The same row checks run on the staged files of a manifest before it is published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator import digests, queries
from curator.curation import selection
from curator.curation.parameters import Parameters
from curator.errors import InputError, plural, some
from curator.schema import MANIFEST_ROW

if TYPE_CHECKING:
    import duckdb

SHOWN = 10


class Finding(NamedTuple):
    """What one check found: how many offending rows, and the first of them."""

    check: str
    offending: int
    rows: list[dict[str, Any]]


class Verdict(NamedTuple):
    """What all checks found in one manifest."""

    name: str
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not any(found.offending for found in self.findings)

    @property
    def document(self) -> dict[str, Any]:
        """The verdict as it is answered with --json."""
        return {"name": self.name, "ok": self.ok, "checks": [found._asdict() for found in self.findings]}


def examine(
    con: duckdb.DuckDBPyConnection,
    name: str,
    folder: Path,
    unique_images: int,
    sha256: str,
    parameters: Mapping[str, Any],
) -> Verdict:
    """Runs every check on a published manifest.

    Args:
        con: A connection with the store's relations, in the state that the rows are checked against.
        name: Name of the manifest.
        folder: Folder of its files.
        unique_images: How many rows it was published with.
        sha256: The hash that it was published with.
        parameters: The options that it was built with.
    """
    files, problems = _files(folder, unique_images)
    findings = [_finding("missing_files", problems)]
    stated = Parameters(**parameters)
    if not files:
        return Verdict(name, findings)
    try:
        found = digests.of_files(stated.changed, files)
    except (pa.ArrowException, OSError) as error:
        # Rows that cannot be read cannot be checked either.
        wrong = {"recorded": sha256, "found": None, "problem": str(error).splitlines()[0]}
        return Verdict(name, [*findings, _finding("content_hash", [wrong])])
    differs = [] if found == sha256 else [{"recorded": sha256, "found": found, "problem": "the content has changed"}]
    return Verdict(name, [*findings, _finding("content_hash", differs), *row_checks(con, files, stated)])


def row_checks(con: duckdb.DuckDBPyConnection, files: Sequence[Path], parameters: Parameters) -> list[Finding]:
    """Runs the queries of sql/checks/.

    Args:
        con: A connection with the store's relations; its view `rows` becomes that of the files.
        files: The manifest's Parquet files in the order of the rows.
        parameters: The options that it was built with.
    """
    rows = con.read_parquet([str(file) for file in files], file_row_number=True, filename=True)
    rows.select("* exclude (filename), parse_filename(filename) as file").create_view("rows", replace=True)
    return [_run(con, check, parameters) for check in queries.names("checks")]


def expect_sound(con: duckdb.DuckDBPyConnection, folder: Path, parameters: Parameters) -> None:
    """Makes sure that files which the tool itself just wrote pass the row checks.

    Raises:
        RuntimeError: One does not; no option can cause that, so it is a bug.
    """
    for found in row_checks(con, sorted(folder.glob("part-*.parquet")), parameters):
        if found.offending:
            raise RuntimeError(
                f"the manifest fails its check '{found.check}' and was not published: "
                f"{found.offending} {plural(found.offending, 'row')}, the first of them {found.rows[0]}"
            )


def expect_no_leak(con: duckdb.DuckDBPyConnection, name: str, lineage: Mapping[str, Any]) -> None:
    """Makes sure that no row shows the holdout as it is by now; asked before each use of a manifest.

    Args:
        con: A connection with the store's relations and the manifest's `rows`.
        name: Name of the manifest.
        lineage: Its lineage.

    Raises:
        InputError: Some rows do.
    """
    found = _run(con, "holdout_leak", Parameters(**lineage["parameters"]))
    if found.offending:
        raise InputError(
            f"{found.offending} images of the manifest '{name}' are in the holdout, or show an image of it, by now: "
            f"{some(row['uri'] for row in found.rows)}",
            "build it again under another name; images that show the holdout are left out",
        )


def expect_order(batch: pa.Table, last: tuple[int, float, int]) -> tuple[int, float, int]:
    """Makes sure that rows come by label, score and image_id: readers rely on it, and an engine may reorder its stream.

    Args:
        batch: Rows with label, score and image_id.
        last: Those of the row before them; (-1, 0, 0) for the first batch.

    Returns:
        Those of the last row.
    """
    label = np.concatenate([[last[0]], batch["label"].to_numpy()])
    score = np.concatenate([[np.float32(last[1])], batch["score"].to_numpy()])
    image_id = np.concatenate([[last[2]], batch["image_id"].to_numpy()])
    later = (score[1:] < score[:-1]) | (score[1:] == score[:-1]) & (image_id[1:] > image_id[:-1])
    if not ((label[1:] > label[:-1]) | (label[1:] == label[:-1]) & later).all():
        raise RuntimeError("the rows of the manifest came out of order, or an image is in it twice")
    return int(label[-1]), float(score[-1]), int(image_id[-1])


def _run(con: duckdb.DuckDBPyConnection, check: str, parameters: Parameters) -> Finding:
    query = queries.compose(selection.before(parameters), queries.text(f"checks/{check}"))
    reader = con.sql(query, params=queries.bind(con, query, parameters.bound)).to_arrow_reader(digests.ROWS)
    offending = 0
    first: list[dict[str, Any]] = []
    for batch in reader:  # counted as they pass: a manifest may be wrong in every row
        offending += batch.num_rows
        first += batch.slice(0, SHOWN - len(first)).to_pylist()
    return Finding(check, offending, first)


def _finding(check: str, rows: list[dict[str, Any]]) -> Finding:
    return Finding(check, len(rows), rows[:SHOWN])


def _files(folder: Path, unique_images: int) -> tuple[list[Path], list[dict[str, Any]]]:
    """The files of a manifest that can be read, in order, and what is wrong with the others."""
    there = {file.name: file for file in folder.glob("part-*.parquet")}
    names = [f"part-{number:05d}.parquet" for number in range(len(there))]
    problems = [{"file": name, "problem": "is missing"} for name in names if name not in there]
    # Readers that take the whole folder would take its rows, too.
    strange = sorted(file.name for file in folder.glob("*.parquet") if file.name not in there)
    problems += [{"file": name, "problem": "is no part of the manifest"} for name in strange]
    whole = []
    rows = 0
    for name, file in sorted(there.items()):
        try:
            found = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            problems.append({"file": name, "problem": f"cannot be read ({str(error).splitlines()[0]})"})
            continue
        with found:
            if found.schema_arrow.equals(MANIFEST_ROW.schema):
                rows += found.metadata.num_rows
                whole.append(file)
            else:
                problems.append({"file": name, "problem": "has other columns than a manifest"})
    if rows != unique_images:
        problems.append({"file": "all of them", "problem": f"holds {rows} of the {unique_images} rows of the manifest"})
    return whole, problems
