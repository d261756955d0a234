"""Spark in DuckDB's place: the same files of sql/, on the same Parquet files, for pools beyond one machine.

    Delta table at a version --deltalake: its list of files--> Parquet --Spark--> views of the same names
    sql/*.sql put together --translation.py--> Spark SQL --> decisions, twins, leaks; what the policy lets through;
                                                             selected; the manifest's rows in order; counts

What Spark works out it writes as Parquet files into the temporary folder, which every machine of a cluster must see,
as it must see the store. DuckDB reads the last of them in their order, for the writer that every manifest has; before
that it only looks at the types of a user's SQL. Delta Lake's own jar is not needed: deltalake knows which files belong
to a version.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator import progress, queries
from curator.curation import policies, selection
from curator.curation.parameters import Parameters
from curator.errors import CuratorError, InputError
from curator.schema import TABLES

if TYPE_CHECKING:
    import duckdb
    from pyspark.sql import DataFrame, SparkSession

_INSTALL = "pip install 'curator[spark]'"
_JAVA = "install Java 17 or newer (Debian: apt install openjdk-17-jre-headless), or let JAVA_HOME name it"
# Beyond what a session needs to give DuckDB's answers, only what keeps it silent and to itself.
_ALWAYS = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.app.name": "curator"}
_LOCAL = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
}
# On one machine, what a part of a sort or a join holds; a cluster has its own setting.
_PART_BYTES = 2**26
_SAME = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",  # what DuckDB refuses is an error here too, not a null
    "spark.sql.caseSensitive": "false",
}


class Engine:
    """A Spark session that sees a store's tables at fixed versions.

    Args:
        session: The session; its views are this engine's own.
        folder: Where Spark writes and DuckDB reads.
        con: A DuckDB connection to the same versions, see `selection.prepare`.
        files: The Parquet files of each table at these versions, and of `policies.EARLIER` where a policy reads it.
    """

    def __init__(
        self, session: SparkSession, folder: Path, con: duckdb.DuckDBPyConnection, files: Mapping[str, Sequence[str]]
    ) -> None:
        self._session = session
        self._folder = folder
        self._con = con
        self._types: dict[str, dict[str, str]] = {}
        if str(session.sparkContext.master).startswith("local"):
            sizes = [Path(path).stat().st_size for path in (*files["labels"], *files["images"]) if "://" not in path]
            session.conf.set("spark.sql.shuffle.partitions", str(2 + sum(sizes) // _PART_BYTES))
        types = "select table_name, column_name, data_type from duckdb_columns() where not internal"
        for relation, column, kind in con.execute(types).fetchall():
            self._types.setdefault(relation, {})[column] = kind
        for name in selection.INPUTS:
            paths = files[name]
            if not paths:
                paths = [str(folder / f"no-{name}.parquet")]
                pq.write_table(TABLES[name].schema.empty_table(), paths[0])
            self._read(paths).createOrReplaceTempView(f"stored_{name}")
        for name in selection.INPUTS:
            self._frame(queries.text(f"views/{name}"), {}).createOrReplaceTempView(name)
        if earlier := files.get(policies.EARLIER):
            self._read(earlier).createOrReplaceTempView(policies.EARLIER)

    @property
    def name(self) -> str:
        """What a lineage calls it."""
        return f"spark {self._session.version}"

    def rows(self, query: str, /, **values: Any) -> list[dict[str, Any]]:
        """The answer of a query as dictionaries, for answers of a few thousand rows."""
        with _told():
            return [row.asDict() for row in self._frame(query, values).collect()]

    def select(self, parameters: Parameters) -> str:
        """Runs the selection as `selection.select` does; the relations that it makes are views of this engine.

        Returns:
            The statement that defines the rows.

        Raises:
            InputError: A user's SQL is not sound, or holds what Spark is not known to answer in the same way.
        """
        from curator.curation import translation

        classes = queries.rows(self._con, "select count(*) as n from classes")[0]["n"]
        if parameters.where is not None:
            translation.check(parameters.where, "--where")
        if parameters.policy_sql is not None:
            translation.check(parameters.policy_sql, f"the policy {parameters.policy}")
        weighted = selection.check(self._con, parameters)
        steps, from_policy = selection.steps(parameters), selection.from_policy(parameters, weighted)
        first, *later = from_policy
        values = parameters.bound
        for step, query in selection.before(parameters).items():
            self._keep(step, query, values)
        self._keep("policy_rows", queries.compose(steps | from_policy, f"select * from {first}"), values)
        plain = parameters.policy == "top" and parameters.policy_sql is None
        if parameters.policy_sql is not None:
            selection.check_rows(self.rows, parameters, classes)
        answer = {first: "select * from policy_rows"} | {step: from_policy[step] for step in later}
        kept = answer | {"kept": queries.text("quota")}
        self._keep("selected", queries.compose(kept, queries.text("copies")), values)
        by_class = "select label, count(*) as n from {} group by label"
        through = {row["label"]: row["n"] for row in self.rows(by_class.format("policy_rows"))}
        candidates = through
        if not plain:
            query = queries.compose(steps, by_class.format("candidates"))
            candidates = {row["label"]: row["n"] for row in self.rows(query, **values)}
        self._count(classes, candidates, through)
        return selection.statement(parameters, weighted)

    def ranked(self, parameters: Parameters) -> str:
        """Works the rows of the manifest out; call `select` first.

        Returns:
            A query of DuckDB's that gives them, in the manifest's order.
        """
        self._keep("ranked", queries.text("manifest_rows"), parameters.bound)
        # Spark numbers its files in the order of the rows, and DuckDB keeps to the order of files and rows.
        self._con.read_parquet(self._written("ranked")).create_view("ranked")
        return "select * from ranked"

    def _count(self, classes: int, candidates: Mapping[int, int], through: Mapping[int, int]) -> None:
        """Makes the relation `counted`, as `selection.select` does."""
        labels = range(classes)
        counted = {
            "candidates": [candidates.get(c, 0) for c in labels],
            "eligible": [through.get(c, 0) for c in labels],
        }
        file = self._folder / "counted.parquet"
        pq.write_table(pa.table({"label": pa.array(labels, pa.int64())} | counted), file)
        self._see("counted", [str(file)])

    def _keep(self, name: str, query: str, values: Mapping[str, Any]) -> None:
        """Works a relation out once and keeps it in files: a view would be worked out each time that it is read."""
        with _told(), self._watched(f"Spark: {name}"):
            self._frame(query, values).write.parquet(str(self._folder / name))
        self._see(name, self._written(name))

    def _written(self, name: str) -> list[str]:
        found = sorted(str(path) for path in (self._folder / name).glob("part-*.parquet"))
        if not found:
            raise InputError(
                f"what Spark wrote to {self._folder} is not there: its machines do not see this machine's folder",
                "let TMPDIR name a folder that all of them see, or take --master 'local[*]'",
            )
        return found

    def _see(self, name: str, paths: Sequence[str]) -> None:
        frame = self._read(paths)
        frame.createOrReplaceTempView(name)
        described = self._con.read_parquet(list(paths))
        self._types[name] = dict(zip(described.columns, map(str, described.types), strict=True))

    def _read(self, paths: Sequence[str]) -> DataFrame:
        """Files of this machine by their paths, in which nothing is a pattern; a bucket's as Hadoop names them."""
        plain = [re.sub(r"([\\*?{}\[\]])", r"\\\1", path) for path in paths]
        urls = [re.sub("^s3:", "s3a:", path) if "://" in path else f"file://{os.path.abspath(path)}" for path in plain]  # noqa: PTH100
        with _told():
            return self._session.read.option("recursiveFileLookup", "true").parquet(*urls)

    def _frame(self, query: str, values: Mapping[str, Any]) -> DataFrame:
        from curator.curation import translation

        text, bound = translation.translate(query, self._types, values)
        return self._session.sql(text, args=bound)

    @contextmanager
    def _watched(self, what: str) -> Iterator[None]:
        """Shows how many of Spark's tasks are done while something runs."""
        tracker, over = self._session.sparkContext.statusTracker(), threading.Event()
        with progress.progress(what, None, "tasks") as advance:

            def watch() -> None:
                done: dict[int, int] = {}
                while not over.wait(1):
                    for stage in tracker.getActiveStageIds():
                        if (info := tracker.getStageInfo(stage)) is not None:
                            advance(info.numCompletedTasks - done.get(stage, 0))
                            done[stage] = info.numCompletedTasks

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            try:
                yield
            finally:
                over.set()
                watcher.join()


@contextmanager
def session(master: str, folder: Path) -> Iterator[SparkSession]:
    """A Spark session: one of its own inside the session that this process has, else one that ends here.

    Args:
        master: Spark's name for where it runs: local[2], spark://HOST:PORT, yarn.
        folder: For what Spark writes while it runs.

    Raises:
        InputError: pyspark or Java is missing, or Spark does not start.
    """
    _expect_installed()
    from pyspark.logger import PySparkLogger
    from pyspark.sql import SparkSession

    PySparkLogger.getLogger("SQLQueryContextLogger").disabled = True  # it tells each error once more, on standard error
    running = SparkSession.getActiveSession()
    handler = signal.getsignal(signal.SIGINT)
    logging.getLogger().addFilter(_not_py4j)
    try:
        own = (running or _start(master, folder)).newSession()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # Spark's own one talks to Java in the middle of another talk
        for name, value in _SAME.items():
            own.conf.set(name, value)
        yield own
    finally:
        if running is None:
            _stop()
        logging.getLogger().removeFilter(_not_py4j)


def _not_py4j(record: logging.LogRecord) -> bool:
    """Whether a record is not py4j's, which logs each exception that passes through it, Ctrl-C too."""
    return "py4j" not in record.pathname


def _stop() -> None:
    """Ends Spark, and the Java that was started for it: the next session may want another one."""
    from pyspark import SparkContext

    context, gateway = SparkContext._active_spark_context, SparkContext._gateway
    if context is not None:
        with suppress(Exception):
            context.stop()
    if gateway is not None and gateway.proc is not None:
        SparkContext._gateway = SparkContext._jvm = None
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait()


def _start(master: str, folder: Path) -> SparkSession:
    """Starts Spark, whose own messages go to a file."""
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    progress.say(f"starting Spark ({master})")
    conf = SparkConf().setMaster(master).setAll(list(_ALWAYS.items()))
    conf.set("spark.sql.warehouse.dir", str(folder / "warehouse"))
    if master.startswith("local"):
        conf.setAll([*_LOCAL.items(), ("spark.local.dir", str(folder))])
    log = folder / "spark.log"
    try:
        with log.open("wb") as told, _uninterrupted():
            # where `_stop` looks for it
            SparkContext._gateway = launch_gateway(conf, {"stdout": told, "stderr": told})  # type: ignore[no-untyped-call]
            SparkContext._jvm = SparkContext._gateway.jvm
        return SparkSession(SparkContext(conf=conf))
    except Exception as error:
        said = [
            line.strip() for line in ["", *log.read_text("utf-8", "replace").splitlines(), *str(error).splitlines()]
        ]
        reason = next(
            (line for line in said if "WARN" not in line and ("Exception" in line or "Error" in line)), said[-1]
        )
        mend = "give it a master that is there, e.g. --master 'local[*]'; Java has to be 17 or newer"
        raise InputError(f"Spark does not start with --master {master} ({reason})", mend) from None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back until Java has said where it is to be reached: before that nobody could end it."""
    came: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if here and signal.getsignal(n) != signal.SIG_IGN]
    had = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in had.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _expect_installed() -> None:
    for package in ("sqlglot", "pyspark.testing.utils"):  # the latter is what pyspark binds values with
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pyspark's, of the version of pandas, which is not used here
                importlib.import_module(package)
        except ImportError:
            name = package.partition(".")[0]
            raise InputError(f"--engine spark needs {name}, which is not installed", _INSTALL) from None
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=f"{home}/bin" if home else None) is None:
        raise InputError(
            f"--engine spark needs Java, and there is none {f'in {home}' if home else 'on the PATH'}", _JAVA
        )


@contextmanager
def _told() -> Iterator[None]:
    """Turns what Spark complains of into a message: its SQL was sound on DuckDB."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except CuratorError:
        raise
    except (PySparkException, Py4JError) as error:
        text = str(error)
        if "No space left on device" in text:
            raise
        reason = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
        caused = [line.removeprefix("Caused by: ") for line in text.splitlines() if line.startswith("Caused by: ")]
        mend = "--engine duckdb; if a file is not found: every machine of Spark's must see the store and TMPDIR"
        raise InputError(f"Spark cannot do it: {(caused or [reason])[-1].strip()[:300]}", mend) from None
