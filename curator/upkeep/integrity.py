"""Integrity of a store: whether everything in it is there, whole, and what the rest of it says that it is.

    store.json -> logs, schemas -> files, pages -> sql/integrity/*.sql -> weights, packs, manifests

Each check gives what offends it, and how that is mended. What depends on a table that is damaged is not asked.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import deltalake
import pyarrow as pa
from deltalake.exceptions import DeltaError

from curator import progress, queries
from curator.curation import checks, manifests
from curator.curation.checks import SHOWN
from curator.errors import InputError, StoreError, interrupted
from curator.generations import browse, derived, drift
from curator.schema import FOLDERS, LATER, TABLES
from curator.storage import commit_log, delta, prefix
from curator.storage.store import ABSENT, Look, Store
from curator.upkeep.table_files import Files, Stated, stated

if TYPE_CHECKING:
    import duckdb

# Tables that follow from others, and whose files nobody has to restore.
FAMILIES = {name: family for family in (browse.FAMILY, drift.FAMILY) for name in family.tables}
# A later decision or scan is what these find; `curator check` tells of it, and nothing is damaged.
_LATER_KNOWN = {"rejected_image", "holdout_leak"}
_FILES = {"missing_files", "content_hash"}


class Finding(NamedTuple):
    """What one check found: how many offending things, the first of them, and the command or edit that mends it."""

    check: str
    offending: int
    rows: list[dict[str, Any]]
    mend: str


class Health(NamedTuple):
    """What all checks found in a store.

    Attributes:
        findings: Of each check, also of those that found nothing.
        not_run: Checks that read a damaged table.
        mended: What was mended before they ran.
    """

    findings: list[Finding]
    not_run: list[str]
    mended: list[str]

    @property
    def wrong(self) -> list[Finding]:
        """The findings of checks that found something."""
        return [found for found in self.findings if found.offending]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.wrong

    @property
    def document(self) -> dict[str, Any]:
        """The answer with --json."""
        listed = [found._asdict() for found in self.findings]
        return {"ok": self.ok, "checks": listed, "not_run": self.not_run, "mended": self.mended}


def examine(path: str | Path, pages: bool = True) -> Health:
    """Checks a store, writing nothing.

    Args:
        path: Its folder or URL.
        pages: Whether to read every page of the tables' files.

    Raises:
        StoreError: There is no store, or its bucket cannot be read.
    """
    try:
        store = Store(path)
    except StoreError as error:
        place = prefix.at(path)
        if not place.has("store.json") and not place.has("images/_delta_log"):
            raise
        mend = error.mend if place.has("store.json") else _form(place.uri("store.json"))
        return Health([Finding("settings", 1, [{"problem": error.what}], mend)], [], [])
    return _Examination(store, pages).health()


def _form(file: str) -> str:
    return f'restore {file} from a backup; its form is {{"format": 2, "root": "..", "kept_classes": 20}}'


class _Examination:
    """One look at a store, every table at one version.

    Args:
        store: The store.
        pages: Whether to read every page of the tables' files.

    Attributes:
        unsound: Tables of which something is missing or cannot be read.
    """

    def __init__(self, store: Store, pages: bool) -> None:
        self.store, self.place, self.pages = store, store.place, pages
        self.opened: dict[str, deltalake.DeltaTable] = {}
        self.unsound: set[str] = set()
        self.findings: list[Finding] = [Finding("settings", 0, [], "")]
        self.not_run: list[str] = []

    def health(self) -> Health:
        """Runs every check."""
        self._logs()
        self._files()
        looks = {name: Look.at(table) for name, table in self.opened.items() if name not in self.unsound}
        with closing(self.store.connect(looks=dict.fromkeys(TABLES, Look(ABSENT, [])) | looks)) as con:
            self._references(con)
            for check, table, look in (
                ("weights", "models", self._weights),
                ("packs", "packed", self._packs),
            ):
                if table in self.unsound:
                    self.not_run.append(check)
                else:
                    self._note(check, list(look(con)), _MENDS[check])
            self._manifests(con)
        return Health(self.findings, self.not_run, [])

    def _note(self, check: str, rows: list[dict[str, Any]], mend: str, offending: int | None = None) -> None:
        said = mend.replace("STORE", shlex.quote(str(self.place))) if rows else ""
        self.findings.append(Finding(check, len(rows) if offending is None else offending, rows[:SHOWN], said))

    def _logs(self) -> None:
        """The log of each table, and the columns that it states."""
        logs: list[dict[str, Any]] = []
        schemas: list[dict[str, Any]] = []
        unfinished = False
        # The later steps' tables come first, so that what they name is there in the earlier ones, see Store.versions.
        for name in reversed(TABLES):
            if not self.place.has(FOLDERS[name]):
                if name not in LATER:
                    logs.append({"table": name, "file": FOLDERS[name], "problem": "is missing"})
                    self.unsound.add(name)
                continue
            log = commit_log.look(self.place, name)
            unfinished |= log.unfinished is not None
            problems = log.problems
            try:
                opened = deltalake.DeltaTable(self.place.uri(FOLDERS[name]), storage_options=self.place.options)
                delta.expect_plain(opened)
            except StoreError as error:
                problems = [{"file": FOLDERS[name], "problem": f"{error.what}: {error.mend}"}]
            except (DeltaError, OSError) as error:
                if failed := self.place.failure(error):
                    raise failed from None
                said = f"cannot be opened ({str(error).splitlines()[0]})"
                problems = problems or [{"file": FOLDERS[name], "problem": said}]
            else:
                self.opened[name] = opened
                schemas += [{"table": name, **wrong} for wrong in _columns(name, opened)]
            logs += [{"table": name, **problem} for problem in problems]
            if problems:
                self.unsound.add(name)
        self.unsound |= {row["table"] for row in schemas}
        self._note("log", logs, _mend_of_tables(logs, _UNFINISHED * unfinished))
        self._note("schema", schemas, _MENDS["schema"])

    def _files(self) -> None:
        """The files that the newest versions name, and their pages."""
        there = {name: stated(name, self.opened[name]) for name in TABLES if name in self.opened}
        found: dict[str, list[dict[str, Any]]] = {"files": [], "pages": []}
        sound: list[tuple[str, Stated]] = []
        classes = sum(said.rows or 0 for said in there.get("classes", []))
        with closing(Files(self.place, classes)) as files:
            with progress.progress("looking at files", sum(map(len, there.values())), "files") as advance:
                for name, said in ((name, said) for name, files in there.items() for said in files):
                    if problem := files.of_file(name, said):
                        found["files"].append({"table": name, "file": said.name, "problem": problem})
                    else:
                        sound.append((name, said))
                    advance(1)
            if self.pages:
                with progress.progress("reading tables", sum(said.rows or 0 for _, said in sound), "rows") as advance:
                    for name, said in sound:
                        if problem := files.of_pages(name, said, advance):
                            found["pages"].append({"table": name, "file": said.name, "problem": problem})
        for check, rows in found.items():
            rows.sort(key=_first)
            self.unsound |= {row["table"] for row in rows}
            if check == "files" or self.pages:
                self._note(check, rows, _mend_of_tables(rows))

    def _references(self, con: duckdb.DuckDBPyConnection) -> None:
        """The queries of sql/integrity/."""
        con.register("bases", self._bases(con))
        versions = {name: table.version() for name, table in self.opened.items() if name not in self.unsound}
        con.register("newest", pa.table({"table_name": list(versions), "version": list(versions.values())}))
        every = queries.names("integrity")
        with progress.progress("asking what refers to what", len(every), "questions") as advance:
            for check in every:
                query = queries.text(f"integrity/{check}")
                reads = {*re.findall(r"\bstored_(\w+)", query)} | ({"labels"} if "bases" in query else set())
                if reads & self.unsound:
                    self.not_run.append(check)
                else:
                    mend = re.search(r"^-- Mend: +(.+)", query, re.MULTILINE)
                    self._note(check, *self._run(con, query, mend[1] if mend else ""))
                advance(1)

    def _run(self, con: duckdb.DuckDBPyConnection, query: str, mend: str) -> tuple[list[dict[str, Any]], str, int]:
        """The first offending rows of a query, its mend, and how many rows there are."""
        import duckdb

        offending = 0
        first: list[dict[str, Any]] = []
        try:
            for batch in con.sql(query).to_arrow_reader():
                offending += batch.num_rows
                first += batch.slice(0, SHOWN - len(first)).to_pylist()
        except duckdb.Error as error:  # pages that nobody has read before, with --quick
            if interrupted(error):
                raise KeyboardInterrupt from None
            if failed := self.place.failure(error):
                raise failed from None
            said = f"cannot be answered ({str(error).splitlines()[0]})"
            return [{"problem": said}], "restore the damaged file from a backup; curator doctor names it", 1
        return first, mend, offending

    def _bases(self, con: duckdb.DuckDBPyConnection) -> pa.Table:
        """What the derived tables are to hold of each generation, see derived.py."""
        rows = []
        if "labels" not in self.unsound:
            version = self.opened["labels"].version()
            for row in queries.rows(con, queries.text("generations")):
                generation = row["generation"]
                rows.append({"family": "browse", **derived.wanted(self.store, version, generation)._asdict()})
                pair = drift.pair(self.store, con, generation, version)
                rows += [{"family": "drift", **pair._asdict()}] if pair is not None else []
        types = {"family": pa.string(), "generation": pa.int16(), "previous": pa.int16(), "basis": pa.string()}
        return pa.Table.from_pylist(rows, pa.schema(list(types.items())))

    def _weights(self, con: duckdb.DuckDBPyConnection) -> Iterator[dict[str, Any]]:
        """Weights that are gone or have another hash than was recorded."""
        rows = queries.rows(con, "from stored_models where weights is not null order by model")
        with progress.progress("reading weights", len(rows), "models") as advance:
            for row in rows:
                named = {"model": row["model"], "weights": row["weights"]}
                if self.place.size(row["weights"]) is None:
                    yield named | {"problem": "is missing"}
                else:
                    with self.place.afresh(row["weights"]) as file:
                        found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                    if found != row["weights_hash"]:
                        yield named | {"problem": f"has the sha256 {found}, and {row['weights_hash']} was recorded"}
                advance(1)

    def _packs(self, con: duckdb.DuckDBPyConnection) -> Iterator[dict[str, Any]]:
        """Shards of packs that are gone, or too short for the pictures that they hold."""
        for pack in queries.rows(con, "select distinct pack from stored_packed order by pack"):
            for shard in queries.rows(con, queries.text("pack_shards"), **pack):
                size, least = self.place.size(shard["shard"]), int(shard["bytes"])
                if size is None or size < least:
                    said = "is missing" if size is None else f"has {size} bytes, and its pictures end at {least}"
                    yield {"pack": pack["pack"], "shard": shard["shard"], "images": shard["images"], "problem": said}

    def _manifests(self, con: duckdb.DuckDBPyConnection) -> None:
        """The manifests, as `curator check` does, but for what was decided after they were built."""
        if "manifests" in self.unsound:
            self.not_run += ["manifest_files", "manifest_rows"]
            return
        files: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        names = [row["name"] for row in queries.rows(con, "select distinct name from manifests order by name")]
        comparable = not self.unsound & {"images", "classes"}
        with progress.progress("checking manifests", len(names), "manifests") as advance:
            for name in names:
                try:
                    m = manifests.find(self.store, name, con)
                    self.place.release((self.store.path / m.folder).glob("*.parquet"))
                    verdict = checks.examine(con, name, m.path, m.unique_images, str(m.sha256), m.lineage["parameters"])
                except (ValueError, KeyError, TypeError, InputError) as error:
                    files.append({"manifest": name, "check": "lineage", "problem": f"cannot be read ({error})"})
                    continue
                for found in verdict.findings:
                    told = [{"manifest": name, "check": found.check, **row} for row in found.rows]
                    if found.check in _FILES:
                        files += told
                    elif found.check not in _LATER_KNOWN:
                        rows += told
                advance(1)
        self._note("manifest_files", files, _MENDS["manifest_files"])
        if comparable:
            self._note("manifest_rows", rows, _MENDS["manifest_rows"])
        else:
            self.not_run.append("manifest_rows")


def _first(row: dict[str, Any]) -> int:
    """Of what is shown: the tables that others follow from come first, then those that follow, see mending.py."""
    return 0 if row["table"] in ("images", "labels") else 1 if row["table"] in FAMILIES else 2


def _columns(name: str, opened: deltalake.DeltaTable) -> Iterator[dict[str, Any]]:
    """Columns of a table that are not those of schema.py."""
    found = {field.name: field.type for field in pa.schema(opened.schema().to_arrow())}
    want = {field.name: field.type for field in TABLES[name].schema}
    for column in [*want, *(found.keys() - want.keys())]:
        if found.get(column) != want.get(column):
            yield {
                "column": column, "problem": f"is {found.get(column, 'missing')} and not {want.get(column, 'there')}",
            }  # fmt: skip


_UNFINISHED = "curator doctor --mend takes an empty last commit away; then run again what was running. "
_MENDS = {
    "schema": "install the version of curator that wrote the table, or restore its folder from a backup",
    "weights": "restore the file from a backup, or train again under another name; the manifests and labels stay",
    "packs": "curator pack with the options of the pack, which packs what is missing again",
    "manifest_files": "curator doctor --mend builds a manifest again whose files are all gone; of a damaged one remove "
    "the folder below STORE/manifests first",
    "manifest_rows": "bring the images and classes back as they were, or build under another name from the store as it "
    "is now: curator build-manifest NEW --per-class K",
}


def _mend_of_tables(rows: list[dict[str, Any]], first: str = "") -> str:
    """How files of tables are mended."""
    derived_ones = {row["table"] for row in rows} & FAMILIES.keys()
    others = sorted({row["table"] for row in rows} - derived_ones)
    said = [first] * bool(first)
    if derived_ones:
        said.append(f"curator doctor --mend makes {', '.join(sorted(derived_ones))} again")
    if others:
        said.append(f"restore files of {', '.join(others)} from a backup; docs/doctor.md says what to do without one")
    return "; ".join(part.strip().rstrip(".") for part in said)
