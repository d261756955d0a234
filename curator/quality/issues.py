"""Labels that are probably wrong: confident learning on soft labels of models that did not see the images.

    labels that training takes, and those of folds (table held_out); or labels of two generations
        -> self-confidences -> thresholds of the classes -> confident classes -> confident joint -> suspects

Every step is a file of sql/: label_issues.sql names them and their source. Nothing is written to the store; a person
decides about each suspect, and images that were decided upon are not named again: training takes them as they were
decided upon, and so do the thresholds and the joint.
"""

from __future__ import annotations

import csv
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curator import queries
from curator.errors import InputError, some, suggestion
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

METHODS = ("noise-rate", "joint")
ORDERS = ("self-confidence", "margin")
COLUMNS = (
    "image_id", "uri", "given", "given_class", "suggested", "suggested_class", "self_confidence", "margin", "confident",
)  # fmt: skip
# More columns of the CSV file: whose label is judged, none for the labeled split, and what a person fills in.
TO_FILL = ("generation", "decision", "new_label")
_BATCH = 10_000


class Issues(NamedTuple):
    """What was found.

    Attributes:
        source: The labels that were looked at, and whose probabilities they were compared with.
        images: Images that were looked at.
        unjudged: Labeled images of which no model without them has said anything.
        noise: Estimated share of wrong labels, from the calibrated confident joint.
        suspects: How many images are named by the method.
        decided: Images that people decided about, which are left out.
        classes: Each class: label, class_name, images, threshold (None where there are none), suspects.
        cells: The largest off-diagonal cells of the confident joint: given_class, class_name, images (counted) and
            estimated (of all images).
        rows: The first suspects, columns as in COLUMNS.
        csv: The file that all suspects were written to.
    """

    source: str
    by: str
    order: str
    images: int
    unjudged: int
    noise: float
    suspects: int
    decided: int
    classes: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    csv: str | None


def find(
    store: Store,
    run: str | None = None,
    generation: int | None = None,
    by: str = "noise-rate",
    order: str = "self-confidence",
    limit: int = 20,
    cells: int = 10,
    csv_file: Path | None = None,
) -> Issues:
    """Suspects of the labeled split, or of the pool labels of a generation.

    Args:
        store: The store.
        run: Run of folds to take the probabilities from; the only one by default.
        generation: Look at the pool labels of this generation instead, with the probabilities of the next one.
        by: One of METHODS: whom to suspect, see sql/label_issues.sql.
        order: One of ORDERS.
        limit: Suspects to return.
        cells: Cells of the confident joint to return.
        csv_file: File to write all suspects to; it must not be there yet.

    Raises:
        InputError: There are no such probabilities, both a run and a generation are given, or the file exists.
    """
    for option, value, known in (("--by", by, METHODS), ("--order", order, ORDERS)):
        if value not in known:
            raise InputError(f"{option} {value} is unknown{suggestion(value, known)}", f"{option} {' or '.join(known)}")
    if run is not None and generation is not None:
        what = "--run is of the labeled split, and --generation of the pool"
        raise InputError(what, "leave one of them out")
    if csv_file is not None and csv_file.exists():
        raise InputError(f"'{csv_file}' exists", "name a file that is not there yet")
    with closing(store.connect()) as con:
        prepare(con)
        unjudged = 0
        if generation is None:
            run = _run(con, run)
            source, judged = f"labeled split, run of folds {run}", "issues_held_out"
            unjudged = queries.rows(
                con,
                "select count(*) as n from labeled_rows"
                " where image_id not in (select image_id from stored_held_out where run = $run)",
                run=run,
            )[0]["n"]
            decided = "select count(*) as n from decisions join stored_held_out using (image_id) where run = $run"
        else:
            _check_generations(con, generation)
            source, judged = f"pool, generation {generation} by generation {generation + 1}", "issues_generations"
            decided = "select count(*) as n from decisions join judged using (image_id)"
        values = {"run": run, "generation": generation, "by": by, "order": order}
        steps = {"judged": queries.text(judged)} | queries.steps("self_confidences")
        keep(con, "thresholds", steps, "class_thresholds", values)
        steps |= queries.steps("confident_classes")
        keep(con, "joint", steps, "confident_joint", values)
        keep(con, "label_issues", steps, "label_issues", values)
        sums = queries.rows(
            con,
            "select sum(estimated)::BIGINT as images, sum(estimated) filter (given <> class)::BIGINT as wrong"
            " from joint",
        )[0]
        if not sums["images"]:
            raise InputError("no image of the pool has labels of both generations", "curator label --model MODEL")
        if csv_file is not None:
            _write(con, csv_file, generation)
        return Issues(
            source,
            by,
            order,
            sums["images"],
            unjudged,
            (sums["wrong"] or 0) / sums["images"],
            queries.rows(con, "select count(*) as n from label_issues")[0]["n"],
            queries.rows(con, queries.compose(steps, decided), **values)[0]["n"],
            queries.rows(con, queries.text("issue_classes")),
            queries.rows(con, queries.text("issue_cells"), cells=cells),
            queries.rows(con, "select * from label_issues limit $n", n=limit),
            None if csv_file is None else str(csv_file),
        )


def _run(con: duckdb.DuckDBPyConnection, run: str | None) -> str:
    known = [row["run"] for row in queries.rows(con, "select distinct run from stored_held_out order by run")]
    if not known:
        named = f"there is no run of folds '{run}': " if run is not None else ""
        raise InputError(
            f"{named}no image of the labeled split was labeled by a model that was trained without it",
            "curator quality folds --recipe RECIPE" + f" --name {run}" * (run is not None),
        )
    if run is None and len(known) > 1:
        raise InputError(f"there are {len(known)} runs of folds: {some(known)}", f"--run {known[-1]}")
    if run is not None and run not in known:
        raise InputError(f"there is no run of folds '{run}'{suggestion(run, known)}", f"the runs are {some(known)}")
    return run or str(known[0])


def _check_generations(con: duckdb.DuckDBPyConnection, generation: int) -> None:
    query = "select distinct generation::INT as g from stored_labels where split = 'unlabeled' order by g"
    known = [row["g"] for row in queries.rows(con, query)]
    for wanted in (generation, generation + 1):
        if wanted not in known:
            have = f"labels of generation {some(known)}" if known else "no labels"
            raise InputError(
                f"the pool has {have}, and not of {wanted}; generation {generation} is judged by {generation + 1}",
                "curator label --model MODEL --split unlabeled, or another --generation",
            )


def prepare(con: duckdb.DuckDBPyConnection) -> None:
    """Gives a connection the relations that the steps read: decisions, and the labeled split as these left it."""
    keep(con, "decisions", queries.steps("latest_reviews"), "decisions", {})
    keep(con, "labeled_rows", queries.steps("trusted", "holdout_twins"), "labeled_rows", {})


def keep(con: duckdb.DuckDBPyConnection, name: str, steps: dict[str, str], final: str, values: dict[str, Any]) -> None:
    """Runs a step once and keeps its answer, in the order that it has."""
    query = f"create temp table {name} as {queries.compose(steps, queries.text(final))}"
    con.execute(query, queries.bind(con, query, values))


def _write(con: duckdb.DuckDBPyConnection, file: Path, generation: int | None) -> None:
    """All suspects as CSV; the file is there whole or not at all."""
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        with unfinished.open("w", newline="", encoding="utf-8") as out:
            lines = csv.writer(out, lineterminator="\n")
            lines.writerow((*COLUMNS, *TO_FILL))
            for table in queries.batches(con, "select * from label_issues", _BATCH):
                lines.writerows([*row.values(), generation, None, None] for row in table.to_pylist())
        unfinished.rename(file)
    except OSError as error:
        raise InputError(f"'{file}' cannot be written ({error.strerror})", "name another file") from None
    finally:
        unfinished.unlink(missing_ok=True)
