"""Selection: which pool images become training rows, for which class, and how many copies of each.

Put together from files of sql/ in this order:

    decisions, twins -> leaks -> pool -> allowed (--where) -> candidates -> policy -> eligible -> quota -> copies

The whole of it is one SQL statement, which defines the rows and goes into the manifest's lineage. The last two steps
are not run as SQL, which would sort the whole pool: quota.py gives the same rows out of a stream of the eligible ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import curator
from curator import queries
from curator.curation import policies, quota, usersql
from curator.curation.parameters import Parameters
from curator.errors import InputError, interrupted, plural, some
from curator.generations import labels
from curator.generations.histogram import Histogram
from curator.schema import IMAGES, LABELS

if TYPE_CHECKING:
    import duckdb

# Answers a query as `queries.rows` does on a connection.
Ask = Callable[..., list[dict[str, Any]]]

Footers = Iterable[Mapping[bytes, bytes]]
# What a selection reads, and so what a --where may read in a subquery; a manifest records their versions.
INPUTS = ("images", "labels", "reviews", "models", "classes", "duplicates")
# DuckDB's names of types: of numbers, and of whole ones.
_NUMBERS = {
    True: re.compile("U?[A-Z]*INT|U?INTEGER"),
    False: re.compile("U?[A-Z]*INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL.*\\)"),
}
_WHERE_MARK = "/* where */ true"
_WEIGHT_MARK = "/* weight */ 1"
_CONFIDENCE_MARK = "/* confidence */ l.confidence"
_ACCEPTED_MARK = "/* accepted */ false"
# Rows of a batch: small enough for the arrays to stay near the processor, large enough to forget the interpreter.
_BATCH = 400_000


def generation(con: duckdb.DuckDBPyConnection, asked: int | None) -> int:
    """The generation to select from.

    Raises:
        InputError: It is not there, or none is.
    """
    there = [g["generation"] for g in queries.rows(con, "select distinct generation from labels order by generation")]
    if not there:
        raise InputError(
            "no generation has soft labels yet",
            "curator label --model NAME, or curator import-labels FILE ...",
        )
    if asked is not None and asked not in there:
        raise InputError(f"there is no generation {asked}", f"--generation with one of {some(there, 20)}")
    return int(there[-1] if asked is None else asked)


def temperature(con: duckdb.DuckDBPyConnection, generation: int) -> float:
    """The temperature that was fitted for the model behind a generation, see sql/calibration.sql.

    Raises:
        InputError: None was.
    """
    model = "select any_value(model) as model from labels where generation = $generation"
    teacher = queries.rows(con, model, generation=generation)[0]["model"]
    found = queries.rows(con, queries.text("calibration"), generation=generation, model=teacher)
    if not found:
        raise InputError(f"no temperature was fitted for '{teacher}'", f"curator quality calibration --model {teacher}")
    return float(found[0]["temperature"])


def before(parameters: Parameters) -> dict[str, str]:
    """The steps before the pool: small relations that the later ones ask for again."""
    leaks = queries.text("leaks") if parameters.near_leaks == "drop" else "select image_id from holdout_twins"
    return queries.steps(*queries.DECISIONS, "accepted", "holdout_twins") | {"leaks": leaks}


def prepare(con: duckdb.DuckDBPyConnection, parameters: Parameters, kind: str = "table") -> None:
    """Works the relations of `before` out; tables take their place, or views, worked out each time they are read."""
    for step, query in before(parameters).items():
        con.execute(f"create temp {kind} {step} as {query}")


def steps(parameters: Parameters) -> dict[str, str]:
    """The steps from the pool to what the policy lets through, each a relation that the later ones read."""
    allowed = queries.text("allowed") if parameters.where else "select * from pool"
    allowed = allowed.replace(_WHERE_MARK, parameters.where or "true")
    candidates = judging("candidates", parameters)
    return {
        "pool": queries.text("pool"),
        **(
            {"allowed": allowed}
            if parameters.calibration is None
            else {"uncalibrated": allowed, "allowed": queries.text("calibrated")}
        ),
        **(
            {"repeating": candidates, "candidates": queries.text("candidates_unique")}
            if parameters.dedup
            else {"candidates": candidates}
        ),
        **queries.steps("trusted", "holdout"),
        "policy": policies.load(parameters.policy, parameters.policy_sql).text,
    }


def judging(name: str, parameters: Parameters) -> str:
    """The text of a query that holds the marks of sql/candidates.sql, with what the options put there."""
    text = queries.text(name)
    if parameters.calibration is not None:
        text = text.replace(_CONFIDENCE_MARK, "l.calibrated")
    return (
        text.replace(_ACCEPTED_MARK, "coalesce(a.label = coalesce(d.new_label, l.label), false)")
        if parameters.accepted
        else text
    )


def statement(parameters: Parameters, weighted: bool = False) -> str:
    """The whole selection as one statement: image_id, label, confidence, score, copies and, where weighted, weight."""
    rest = from_policy(parameters, weighted) | {"kept": queries.text("quota")}
    return queries.compose(before(parameters) | steps(parameters) | rest, queries.text("copies"))


def eligible(con: duckdb.DuckDBPyConnection, parameters: Parameters) -> dict[str, str]:
    """The steps up to the eligible images, for a connection that is prepared.

    Raises:
        InputError: The policy is not sound.
    """
    return steps(parameters) | from_policy(parameters, _check_policy(con, parameters))


def from_policy(parameters: Parameters, weighted: bool) -> dict[str, str]:
    """The steps from the policy to the relation `eligible`."""
    text = queries.text("eligible").replace(_WEIGHT_MARK, "weight" if weighted else _WEIGHT_MARK)
    if not parameters.accepted:
        return {"eligible": text}
    return {"let_through": text, "eligible": queries.text("accepted_first")}


def select(con: duckdb.DuckDBPyConnection, parameters: Parameters, folder: Path, footers: Footers | None = None) -> str:
    """Runs the selection.

    Args:
        con: A connection with the store's relations, see `prepare`. It gets the relations `selected` (image_id, label,
            confidence, score, weight, copies), a view of a file in the folder, and `counted` (label, candidates,
            eligible).
        parameters: The options.
        folder: Where to keep the rows while the connection is in use.
        footers: What the footers of all files of the labels table hold, with counts; without it all is counted here.

    Returns:
        The statement that defines the rows.

    Raises:
        InputError: The --where is not one sound expression, or the policy not a sound query.
    """
    values = parameters.bound
    disputed = any(con.sql(f"from {step}").limit(1).fetchall() for step in ("decisions", "leaks"))
    exact = parameters.calibration is None and not parameters.accepted  # whether the threshold is one of confidences
    classes = queries.rows(con, "select count(*) as n from classes")[0]["n"]
    weighted = check(con, parameters)
    eligible = from_policy(parameters, weighted)
    through_policy = steps(parameters) | eligible
    if exact and not disputed and not parameters.dedup:
        through_policy["candidates"] = queries.text("candidates_undisputed")
    plain = parameters.policy == "top" and parameters.policy_sql is None
    try:
        if plain:
            # The scores are the confidences, which the histogram compares with the threshold itself: the engine hands
            # whole vectors on much faster than filtered ones. Those of accepted images lie above its limits, and so
            # in its best bin.
            columns = "image_id, label, score, confidence" if parameters.accepted else "image_id, label, score"
            query = queries.compose(through_policy, f"select {columns} from eligible")
            limits = 0.0, 1.0, -np.inf
            if exact and not parameters.dedup:  # of repeats the best must be known before the quota
                values |= {"min_confidence": -1.0}
                limits = 0.0, 1.0, parameters.min_confidence
        else:
            # A policy may take long, so it is run once and its answer read twice.
            file = folder / "eligible.parquet"
            first, *later = eligible
            query = queries.compose(through_policy, f"select * from {first}")
            con.sql(query, params=queries.bind(con, query, values)).to_parquet(str(file), compression="uncompressed")
            con.read_parquet(str(file)).create_view("policy_rows")
            limits = *check_rows(partial(queries.rows, con), parameters, classes), -np.inf
            answer = {first: "select * from policy_rows"} | {step: eligible[step] for step in later}
            query, values = queries.compose(answer, "select * from eligible"), {}
        histogram = Histogram(classes, *limits)
        whole = plain and exact and not disputed and not parameters.dedup and parameters.where is None
        if not (whole and footers and labels.add_counts(footers, parameters.generation, histogram)):
            histogram = Histogram(classes, *limits)
            for batch in _stream(con, f"select label, score from ({query})", values):
                histogram.add(batch["label"], batch["score"])
        rule = quota.Rule(parameters.per_class, parameters.fill, parameters.max_copies)
        kept = quota.keep(con, (_rows(batch) for batch in _stream(con, query, values)), histogram, rule, folder)
    except _query_errors() as error:
        raise _unsound(parameters, error) from None
    candidates = through = histogram.counted
    if not plain:
        query = queries.compose(steps(parameters), "select label, count(*)::BIGINT as n from candidates group by label")
        candidates = np.zeros(classes, np.int64)
        for row in queries.rows(con, query, **parameters.bound):
            candidates[row["label"]] = row["n"]
    counted = pa.table({"label": np.arange(classes), "candidates": candidates, "eligible": through})
    con.register("given_counts", counted)
    con.execute("create temp table counted as from given_counts")
    _view(con, kept)
    return statement(parameters, weighted)


def _stream(con: duckdb.DuckDBPyConnection, query: str, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The columns of a query's answer, as arrays, batch by batch and in no order."""
    for batch in con.sql(query, params=queries.bind(con, query, values)).to_arrow_reader(_BATCH):
        yield {name: column.to_numpy() for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _rows(columns: dict[str, Any]) -> quota.Rows:
    carried = {name: column for name, column in columns.items() if name not in ("image_id", "label", "score")}
    return quota.Rows(columns["image_id"], columns["label"], columns["score"], carried)


def _view(con: duckdb.DuckDBPyConnection, file: Path | None) -> None:
    """Makes the file of the kept rows the relation `selected`; columns that it lacks are the same in each row."""
    if file is None:
        nothing = {"image_id": pa.int64(), "label": pa.int32(), "score": pa.float32(), "copies": pa.int32()}
        con.register("kept_rows", pa.schema(nothing.items()).empty_table())
    else:
        con.read_parquet(str(file)).create_view("kept_rows")
    names = con.view("kept_rows").columns
    confidence = "confidence" if "confidence" in names else "score as confidence"
    weight = "weight" if "weight" in names else "1::FLOAT as weight"
    query = f"select image_id, label, {confidence}, score, {weight}, copies from kept_rows"
    con.execute(f"create temp view selected as {query}")


def check(con: duckdb.DuckDBPyConnection, parameters: Parameters) -> bool:
    """Makes sure of a user's own SQL before it is run; call `prepare` first.

    Returns:
        Whether the policy returns a weight.

    Raises:
        InputError: The --where is not one sound expression, or the policy not a sound query.
    """
    _check_where(con, parameters)
    return _check_policy(con, parameters)


def _check_where(con: duckdb.DuckDBPyConnection, parameters: Parameters) -> None:
    """Makes sure that the --where is one sound expression that is true or false.

    DuckDB takes 5 for true; a --where that is a number is more likely half an expression.
    """
    if not parameters.where:
        return
    columns = dict.fromkeys([*LABELS.schema.names, *IMAGES.schema.names, "class_name"])
    usersql.check_expression(con, parameters.where, columns, INPUTS)
    value = queries.text("allowed").replace(_WHERE_MARK, parameters.where)
    value = value.replace("select p.*", f"select (\n{parameters.where}\n)", 1)
    query = queries.compose({"pool": queries.text("pool")}, value)
    try:
        kind = con.sql(query, params=queries.bind(con, query, parameters.bound)).types[0]
    except _query_errors() as error:
        raise _unsound(parameters, error) from None
    if kind != "BOOLEAN":
        raise InputError(f"--where gives {kind}, not true or false", usersql.WHERE_MEND)


def _check_policy(con: duckdb.DuckDBPyConnection, parameters: Parameters) -> bool:
    """Makes sure that a policy returns what it must.

    Returns:
        Whether it returns a weight.

    Raises:
        InputError: It does not, it cannot be computed, or it reads what it must not.
    """
    policy = policies.load(parameters.policy, parameters.policy_sql)
    if parameters.policy_sql is not None:
        given = (*policies.GIVEN, *policy.defaults)
        reads = (*policies.READS, *[policies.EARLIER] * ("manifest" in policy.defaults))
        usersql.check_query(con, policy.text, reads, given, f"the policy {policy.name}")
    query = queries.compose(steps(parameters), "select * from policy")
    try:
        answer = con.sql(query, params=queries.bind(con, query, parameters.bound))
    except _query_errors() as error:
        raise _unsound(parameters, error, policy=True) from None
    kinds = {name.lower(): str(kind) for name, kind in zip(answer.columns, answer.types, strict=True)}
    if missing := [name for name in policies.COLUMNS if name not in kinds]:
        raise InputError(
            f"the policy {policy.name} does not return {', '.join(missing)}; it returns {', '.join(kinds)}",
            f"return {', '.join(policies.COLUMNS)} and, if you like, weight; curator build-manifest --help",
        )
    for name in (*policies.COLUMNS, "weight"):
        whole = name in ("image_id", "label")
        if name in kinds and not _NUMBERS[whole].fullmatch(kinds[name]):
            wanted = "whole numbers" if whole else "numbers"
            raise InputError(
                f"the policy {policy.name} returns {name} as {kinds[name]}, not as {wanted}",
                f"{name}::{'BIGINT' if whole else 'FLOAT'} as {name}",
            )
    return "weight" in kinds


def check_rows(ask: Ask, parameters: Parameters, classes: int) -> tuple[float, float]:
    """Makes sure that the rows a policy returned, the relation policy_rows, can be used.

    Returns:
        Their lowest and highest score.

    Raises:
        InputError: They cannot.
    """
    bounds = ask(queries.text("policy_rows"), classes=classes)[0]
    problems = [
        f"{number} {plural(number, 'row has', 'rows have')} {what}"
        for what, number in (
            ("a null", bounds["nulls"]),
            ("a score above 1e30 in size, or a score or weight that is not finite", bounds["not_finite"]),
            ("a weight below 0 or above 1e6", bounds["off"]),
            (f"a label outside 0 to {classes - 1}", bounds["outside"]),
        )
        if number
    ]
    if parameters.policy_sql is not None and not problems:
        query = queries.compose(steps(parameters), queries.text("policy_strays"))
        strays = ask(query, **parameters.bound)[0]
        if (number := strays["strays"]) > 0:
            are = plural(number, "row is no candidate, or has", "rows are no candidates, or have")
            problems.append(f"{number} {are} another confidence")
        if (number := strays["repeated"]) > 0:
            problems.append(f"{number} {plural(number, 'image is', 'images are')} returned more than once")
    if problems:
        raise InputError(
            f"the policy {parameters.policy} returns rows that cannot be used: {'; '.join(problems)}",
            "return each image of the relation candidates at most once, with its confidence, a class and a score",
        )
    return bounds["low"] or 0.0, bounds["high"] or 0.0


def _unsound(parameters: Parameters, error: Exception, policy: bool = False) -> BaseException:
    """What to tell of a query that holds a user's SQL and failed; other errors are passed on as they are."""
    if interrupted(error):
        return KeyboardInterrupt()
    told = str(error).splitlines()[0]
    if parameters.policy_sql is not None and parameters.where is not None and not policy:
        return InputError(
            f"--where or the policy {parameters.policy} cannot be computed: {told}", "try one without the other"
        )
    if parameters.policy_sql is not None:
        return InputError(
            f"the policy {parameters.policy} cannot be computed: {told}",
            "correct it; its inputs and outputs are described in docs/policy.md",
        )
    if parameters.where is not None:
        return InputError(
            f"--where cannot be computed: {told}",
            'try it first: curator sql "select count(*) from labels join images using (image_id) where ..."',
        )
    return error


def _query_errors() -> tuple[type[Exception], ...]:
    import duckdb

    return (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError)


def funnel(ask: Ask, parameters: Parameters) -> dict[str, int]:
    """How many images each rule leaves, see sql/funnel.sql; call `select` first."""
    query = queries.compose(steps(parameters), judging("funnel", parameters))
    return ask(query, **parameters.bound)[0]


def class_counts(ask: Ask, parameters: Parameters) -> list[dict[str, Any]]:
    """What the selection did to each class, see sql/class_counts.sql; call `select` first."""
    query = queries.compose(queries.steps("trusted", "holdout"), queries.text("class_counts"))
    return ask(query, **parameters.bound)


def lineage(ask: Ask, parameters: Parameters, versions: dict[str, int], sql: str) -> dict[str, Any]:
    """Everything that says how the rows came about, without times, names and paths; call `select` first."""
    teacher = ask(
        "select l.model, m.weights_hash"
        " from (select any_value(model) as model from labels where generation = $generation) as l"
        " left join models as m on m.model = l.model",
        generation=parameters.generation,
    )[0]
    return {
        "tool": f"curator {curator.__version__}",
        "parameters": parameters.values,
        "sql": sql,
        "sql_sha256": hashlib.sha256(sql.encode()).hexdigest(),
        "tables": {name: versions[name] for name in INPUTS},
        "model": teacher,
        "funnel": funnel(ask, parameters),
        "classes": class_counts(ask, parameters),
    }
