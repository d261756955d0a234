"""Selection: which pool images become training rows, for which class, and how many copies of each.

One statement, put together from files of sql/ in this order:

    decisions, holdout_twins -> pool -> allowed (--where) -> candidates -> chosen (the policy) -> copies

The same text goes into the manifest's lineage, so that what ran can be run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import curator
from curator import queries
from curator.errors import InputError, some, suggestion
from curator.schema import IMAGES, LABELS

if TYPE_CHECKING:
    import duckdb

FILLS = ("copies", "none")
TARGETS = ("soft", "hard")
_WHERE_MARK = "/* where */ true"
# What a selection reads, and so what a --where may read in a subquery; a manifest records their versions.
INPUTS = ("images", "labels", "reviews", "models", "classes")


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The options of a selection. They are part of a manifest's hash.

    Args:
        generation: Generation of the soft labels.
        per_class: The quota K: rows, counted with copies, of each class.
        min_confidence: Candidates have a confidence above this, compared in float32.
        policy: Name of a file in sql/policies/.
        targets: "soft" for the teacher's distribution, "hard" for its top class.
        temperature: T of p^(1/T), applied when a loader reads the soft labels.
        fill: "copies" fills a short class up to the quota, "none" leaves it short.
        max_copies: Most copies of one image, or None.
        where: An SQL expression over images and labels that candidates must fulfil, or None.
        seed: Seed of policies that draw; "top" draws nothing.

    Raises:
        InputError: One or more options are out of range; all are named.
    """

    generation: int
    per_class: int
    min_confidence: float = 0.3
    policy: str = "top"
    targets: str = "soft"
    temperature: float = 1.0
    fill: str = "copies"
    max_copies: int | None = None
    where: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        policies = queries.names("policies")
        wrong = [
            message
            for bad, message in (
                (self.generation < 0, f"--generation {self.generation} is negative"),
                (self.per_class < 1, f"--per-class {self.per_class} is not at least 1"),
                (self.per_class > 2**31 - 1, f"--per-class {self.per_class} is above {2**31 - 1}"),
                (
                    not 0 <= self.min_confidence < 1,
                    f"--min-confidence {self.min_confidence} is not in [0, 1)",
                ),
                (
                    self.policy not in policies,
                    f"--policy {self.policy} is unknown{suggestion(self.policy, policies)} (there is {some(policies)})",
                ),
                (self.targets not in TARGETS, f"--targets {self.targets} is not one of {', '.join(TARGETS)}"),
                (self.fill not in FILLS, f"--fill {self.fill} is not one of {', '.join(FILLS)}"),
                (
                    not 0 < self.temperature < float("inf"),
                    f"--temperature {self.temperature} is not above 0",
                ),
                (
                    self.max_copies is not None and not 1 <= self.max_copies < 2**31,
                    f"--max-copies {self.max_copies} is not in 1 to {2**31 - 1}",
                ),
                (self.where is not None and not self.where.strip(), "--where is empty"),
            )
            if bad
        ]
        if wrong:
            raise InputError("; ".join(wrong), "curator build-manifest --help")

    @property
    def values(self) -> dict[str, Any]:
        """The parameters as bound values of the SQL."""
        return dataclasses.asdict(self)

    @property
    def changed(self) -> dict[str, Any]:
        """The parameters that are not at their defaults, so that an option added later changes no older hash."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in self.values.items() if value != defaults[name]}


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


def steps(where: str | None) -> dict[str, str]:
    """The steps up to the candidates, each a relation that the later ones read."""
    allowed = queries.text("allowed") if where else "select * from pool"
    return {
        "decisions": queries.text("decisions"),
        "holdout_twins": queries.text("holdout_twins"),
        "pool": queries.text("pool"),
        "allowed": allowed.replace(_WHERE_MARK, where or "true"),
        "candidates": queries.text("candidates"),
    }


def statement(parameters: Parameters) -> str:
    """The whole selection as one statement: image_id, label, confidence, source, rank, copies."""
    chosen = {"chosen": queries.text(f"policies/{parameters.policy}")}
    return queries.compose(steps(parameters.where) | chosen, queries.text("copies"))


def select(con: duckdb.DuckDBPyConnection, parameters: Parameters) -> None:
    """Runs the selection; the answer becomes the temporary table `selected` of the connection.

    Raises:
        InputError: The --where is not one sound expression.
    """
    if parameters.where:
        columns = dict.fromkeys([*LABELS.schema.names, *IMAGES.schema.names, "class_name"])
        queries.check_expression(con, parameters.where, columns, INPUTS)
    query = f"create temp table selected as {statement(parameters)}"
    try:
        if parameters.where:
            _check_boolean(con, parameters)
        con.execute(query, queries.bind(con, query, parameters.values))
    except _query_errors() as error:
        if parameters.where is None:
            raise
        raise InputError(
            f"--where cannot be computed: {str(error).splitlines()[0]}",
            'try it first: curator sql "select count(*) from labels join images using (image_id) where ..."',
        ) from None


def _check_boolean(con: duckdb.DuckDBPyConnection, parameters: Parameters) -> None:
    """DuckDB takes 5 for true; a --where that is a number is more likely half an expression."""
    before = steps(parameters.where)
    value = before["allowed"].replace("select p.*", f"select (\n{parameters.where}\n)", 1)
    query = queries.compose({"pool": before["pool"]}, value)
    kind = con.sql(query, params=queries.bind(con, query, parameters.values)).types[0]
    if kind != "BOOLEAN":
        raise InputError(f"--where gives {kind}, not true or false", queries.WHERE_MEND)


def _query_errors() -> tuple[type[Exception], ...]:
    import duckdb

    return (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError)


def funnel(con: duckdb.DuckDBPyConnection, parameters: Parameters) -> dict[str, int]:
    """How many images each rule leaves, see sql/funnel.sql."""
    before = {name: query for name, query in steps(parameters.where).items() if name != "candidates"}
    return queries.rows(con, queries.compose(before, queries.text("funnel")), **parameters.values)[0]


def class_counts(con: duckdb.DuckDBPyConnection, parameters: Parameters) -> list[dict[str, Any]]:
    """What the selection did to each class, see sql/class_counts.sql; call `select` first."""
    query = queries.compose(steps(parameters.where), queries.text("class_counts"))
    return queries.rows(con, query, **parameters.values)


def lineage(con: duckdb.DuckDBPyConnection, parameters: Parameters, versions: dict[str, int]) -> dict[str, Any]:
    """Everything that says how the rows came about, without times, names and paths."""
    sql = statement(parameters)
    teacher = queries.rows(
        con,
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
        "funnel": funnel(con, parameters),
        "classes": class_counts(con, parameters),
    }
