"""Manifests: immutable training lists with their lineage.

row of the table manifests -> Manifest -> its files, its lineage, what a check of them says
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from curator import queries
from curator.curation import checks, policies, selection
from curator.curation.parameters import DEFAULTS, Parameters
from curator.errors import InputError, some, suggestion
from curator.storage.place import Place
from curator.storage.store import ABSENT, Store

if TYPE_CHECKING:
    import duckdb

LINEAGE_FILE = "_lineage.json"  # readers of a Parquet folder pass over names that begin with "_"


class Manifest(NamedTuple):
    """A manifest that was built, found or, in a dry run, only thought of."""

    name: str
    place: Place
    folder: str  # below the place
    generation: int
    rows: int
    unique_images: int
    sha256: str | None
    lineage: dict[str, Any]

    @property
    def path(self) -> Path:
        """The folder of its files, on this machine."""
        return self.place.bring(self.folder)

    @property
    def uri(self) -> str:
        """Where others find its files."""
        return self.place.uri(self.folder)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """What the selection did to each class, see sql/class_counts.sql."""
        found: list[dict[str, Any]] = self.lineage["classes"]
        return found

    @property
    def short_classes(self) -> list[str]:
        """Classes in which the policy lets through fewer images than the quota."""
        quota = self.lineage["parameters"]["per_class"]
        return [c["class_name"] for c in self.classes if 0 < c["eligible"] < quota]

    @property
    def empty_classes(self) -> list[str]:
        """Classes of which the policy lets through no image."""
        return [c["class_name"] for c in self.classes if not c["eligible"]]


def find(store: Store, name: str, con: duckdb.DuckDBPyConnection | None = None) -> Manifest:
    """A published manifest.

    Args:
        store: The store.
        name: Its name.
        con: A connection to look it up in; one is made for it by default, which takes longer than the rest.

    Raises:
        InputError: There is none of that name.
    """
    found = get(store, name, con)
    if found is None:
        raise InputError(
            f"there is no manifest '{name}'{suggestion(name, names(store))}",
            "curator manifests, to see those there are; curator build-manifest --per-class K, to make one",
        )
    return found


def newest(store: Store, con: duckdb.DuckDBPyConnection) -> Manifest | None:
    """The manifest that was published last, as a connection sees it; None where there is none."""
    rows = queries.rows(con, "select * from manifests order by created_at desc, name limit 1")
    return _read(store, rows[0]) if rows else None


def published(store: Store) -> list[dict[str, Any]]:
    """The manifests table without the lineage, oldest first."""
    return store.rows("select * exclude (lineage) from manifests order by created_at, name")


def check(store: Store, name: str | None = None) -> list[checks.Verdict]:
    """Checks published manifests against their own record and the store as it is now.

    Args:
        store: The store.
        name: Name of one, or None for all of them.

    Raises:
        InputError: There is none of that name.
    """
    asked = [find(store, each) for each in (names(store) if name is None else [name])]
    for each in asked:  # what others read is checked, and not a copy of it on this machine
        store.place.release((store.path / each.folder).glob("*.parquet"))
    con = store.connect()
    try:
        return [
            checks.examine(con, m.name, m.path, m.unique_images, str(m.sha256), m.lineage["parameters"]) for m in asked
        ]
    finally:
        con.close()


def files(manifest: Manifest) -> list[Path]:
    """The Parquet files of a published manifest, in the order of its rows.

    Raises:
        InputError: Files are missing, or hold another number of rows than were published.
    """
    mend = f"curator check {manifest.name}, to see what is wrong with it"
    found = sorted(manifest.path.glob("part-*.parquet"))
    try:
        rows = sum(pq.read_metadata(file).num_rows for file in found)
    except (pa.ArrowException, OSError) as error:
        what = f"the files of the manifest '{manifest.name}' cannot be read ({str(error).splitlines()[0]})"
        raise InputError(what, mend) from None
    if rows != manifest.unique_images:
        raise InputError(
            f"the files in '{manifest.uri}' hold {rows} of the {manifest.unique_images} rows of the manifest", mend
        )
    return found


def names(store: Store) -> list[str]:
    """The names of the published manifests, sorted."""
    return [row["name"] for row in store.rows("select name from manifests order by name")]


def get(store: Store, name: str, con: duckdb.DuckDBPyConnection | None = None) -> Manifest | None:
    """A published manifest, see `find`; None where there is none of that name."""
    query = "select * from manifests where name = $name"
    rows = queries.rows(con, query, name=name) if con else store.rows(query, name=name)
    return _read(store, rows[0]) if rows else None


def _read(store: Store, row: dict[str, Any]) -> Manifest:
    """The manifest that a row of the manifests table tells of."""
    return Manifest(
        row["name"],
        store.place,
        row["path"],
        row["generation"],
        row["rows"],
        row["unique_images"],
        row["sha256"],
        _lineage(row["name"], row["lineage"]),
    )


def _lineage(name: str, text: str) -> dict[str, Any]:
    """A lineage; in one from before a table was thought of, the selection read that as if it were empty.

    Raises:
        InputError: It is not what a build writes, or a later release's, with an option that is not known here.
    """
    try:
        lineage: dict[str, Any] = json.loads(text)
        lineage["tables"] = dict.fromkeys(selection.INPUTS, ABSENT) | lineage["tables"]
        options = lineage["parameters"]
        lineage["parameters"] = {key: value for key, value in options.items() if key in DEFAULTS or value is not None}
        quota = options["per_class"]
        [0 < each["eligible"] < quota for each in lineage["classes"] if each["class_name"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        what = f"the lineage of the manifest '{name}' is damaged"
        raise InputError(what, "restore the table manifest_table from a backup") from None
    if strange := sorted(lineage["parameters"].keys() - DEFAULTS.keys()):
        what = f"the manifest '{name}' was built with an option that this version does not know: {some(strange)}"
        raise InputError(what, "update curator: a later one wrote it")
    return lineage


def read_earlier(store: Store, con: duckdb.DuckDBPyConnection, parameters: Parameters) -> list[str]:
    """Gives a policy that names another manifest in its parameter $manifest that one's rows.

    Returns:
        The other manifest's files; none where the policy names none.

    Raises:
        InputError: None is named, there is no such manifest, or its files are not whole.
    """
    if "manifest" not in parameters.settings:
        return []
    name = str(parameters.settings["manifest"])
    if not name:
        raise InputError(
            f"the policy {parameters.policy} takes the images of another manifest, and none is named",
            f"--set manifest=NAME{f', one of {some(names(store))}' if names(store) else ''}",
        )
    earlier = [str(file) for file in files(find(store, name))]
    con.read_parquet(earlier).create_view(policies.EARLIER)
    return earlier


def differences(there: Manifest, parameters: Parameters) -> list[str]:
    """The options that a manifest was built with and that differ, as "NAME HAD -> WANTED"."""
    # An option that is younger than the manifest had its default.
    had = DEFAULTS | there.lineage["parameters"]
    return [f"{name} {had[name]} -> {value}" for name, value in parameters.values.items() if had[name] != value]
