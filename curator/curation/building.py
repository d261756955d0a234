"""Building a manifest: from the options to a published training list.

    selection -> rows in batches -> staging folder + sha256 -> renamed to manifests/NAME -> one row in the table

The sha256 covers the rows and the parameters, not times, names or paths. The files hold no time either, so the same
store versions and options give the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator import digests, progress, queries
from curator.curation import checks, manifests, policies, selection
from curator.curation.manifests import LINEAGE_FILE, Manifest
from curator.curation.parameters import Parameters
from curator.errors import AnswerIsNo, InputError, StoreError, some
from curator.lock import alone
from curator.names import check_name
from curator.repeats import duplicates
from curator.schema import MANIFEST_ROW, MANIFESTS
from curator.storage import additions
from curator.storage.store import Store, Versions

if TYPE_CHECKING:
    import duckdb

FOOTER_KEY = b"curator.lineage"
_BATCH = digests.ROWS
_FILE_ROWS = 64 * _BATCH


def build(
    store: Store,
    name: str | None,
    options: dict[str, Any],
    *,
    as_of: str | None = None,
    strict: bool = False,
    dry_run: bool = False,
    master: str | None = None,
) -> Manifest:
    """Selects, balances, writes and publishes a manifest.

    Args:
        store: The store.
        name: Its name, or None for g<generation>-<per_class>.
        options: Fields of `parameters.Parameters`; without a generation, the newest.
        as_of: Name of a manifest whose recorded table versions are to be read instead of the newest, and whose
            parameters stand where `options` says nothing.
        strict: Whether a short or empty class is a reason to write nothing.
        dry_run: Whether to write nothing anyway.
        master: Where Spark is to select, e.g. local[2], see spark.py; None selects with DuckDB. The rows are the same.

    Raises:
        InputError: An option is wrong, nothing can be selected, or the name is taken by other content.
        AnswerIsNo: `strict`, and a class falls short.
    """
    recorded = manifests.find(store, as_of).lineage if as_of is not None else {"parameters": {}, "tables": {}}
    calibrated = options.get("calibrated")  # with --as-of, what is not said is as it was
    options = {name: value for name, value in options.items() if name != "calibrated"}
    options = policies.resolve(recorded["parameters"], options)
    if "per_class" not in options:
        raise InputError("the quota is not given", "curator build-manifest --per-class 130000")
    asked = options.get("generation")
    # Wrong options are told before anything is read, all of them at once; the newest generation is looked up below.
    parameters = Parameters(**options | {"generation": 0 if asked is None else asked})
    if name is not None:
        check_name("manifest", name)
    versions = store.versions() | recorded["tables"]
    con = store.connect(versions)
    # The kept rows lie outside the store: a dry run writes nothing there.
    with (
        tempfile.TemporaryDirectory(prefix="curator-selection-") as kept,
        contextlib.closing(con),
        contextlib.ExitStack() as running,
    ):
        try:
            parameters = dataclasses.replace(parameters, generation=selection.generation(con, asked))
        except InputError as error:
            error.what += "" if as_of is None else f" at the table versions of '{as_of}'"
            raise
        if not queries.rows(con, "select 1 from classes limit 1"):  # its rows were there before the first label
            raise StoreError("the table of classes is empty", f"restore {store.place.uri('classes')} from a backup")
        other = parameters.generation != recorded["parameters"].get("generation")
        if calibrated is None and parameters.calibration is not None and other:
            calibrated = True  # the temperature of another teacher says nothing of this one
        if calibrated is not None:
            found = selection.temperature(con, parameters.generation) if calibrated else None
            parameters = dataclasses.replace(parameters, calibration=found)
        name = name or f"g{parameters.generation}-{parameters.per_class}"
        there = manifests.get(store, name)
        alike = next(
            (other for other in manifests.names(store) if other.lower() == name.lower() and other != name), None
        )
        if alike is not None:
            raise InputError(f"the manifest '{alike}' has the same name in SQL as '{name}'", "give another name")
        if there is not None and not dry_run:
            _check_options(there, parameters)
        progress.say(f"selecting from generation {parameters.generation}")
        selection.prepare(con, parameters, "table" if master is None else "view")
        earlier = manifests.read_earlier(store, con, parameters)
        spark = None
        if master is None:
            ask: selection.Ask = partial(queries.rows, con)
            sql = selection.select(con, parameters, Path(kept), store.footers("labels", versions["labels"]))
        else:
            from curator.curation.spark import Engine, session

            parts = {table: store.files(table, versions[table]) for table in selection.INPUTS}
            spark = Engine(
                running.enter_context(session(master, Path(kept))), Path(kept), con, parts | {policies.EARLIER: earlier}
            )
            ask, sql = spark.rows, spark.select(parameters)
        lineage = selection.lineage(ask, parameters, versions, sql)
        lineage["near_duplicates"] = _near_duplicates(store, con, versions)
        rows = sum(c["rows"] for c in lineage["classes"])
        unique = sum(c["kept"] for c in lineage["classes"])
        manifest = Manifest(name, store.place, f"manifests/{name}", parameters.generation, rows, unique, None, lineage)
        if strict and (manifest.short_classes or manifest.empty_classes):
            raise AnswerIsNo(
                f"{len(manifest.short_classes)} classes have fewer images to choose from than {parameters.per_class} "
                f"({some(manifest.short_classes) or 'none'}) and {len(manifest.empty_classes)} have none "
                f"({some(manifest.empty_classes) or 'none'}); nothing was written",
                "lower --per-class or --min-confidence, or leave --strict out",
            )
        if not rows:
            funnel = lineage["funnel"]
            raise InputError(
                f"nothing can be selected from generation {parameters.generation}: of {funnel['labeled']} labeled pool "
                f"images {funnel['above_threshold']} pass with a confidence above {parameters.min_confidence}, "
                f"{funnel['candidates']} are candidates, and the policy {parameters.policy} lets none through",
                "lower --min-confidence, widen --where, set the policy's parameters with --set, or label the unlabeled "
                "split first",
            )
        if dry_run:
            return manifest
        ranked = queries.text("manifest_rows") if spark is None else spark.ranked(parameters)
        return _publish(store, con, manifest, parameters, ranked, {"engine": spark.name} if spark else {})


def _near_duplicates(store: Store, con: duckdb.DuckDBPyConnection, versions: Versions) -> dict[str, Any]:
    """What the scan looked at whose answer the selection used, and how much of the store came later."""
    counts = "select count(*) as images, count(*) filter (split = 'holdout') as holdout from stored_images"
    there = queries.rows(con, counts)[0]
    scan = duplicates.last_scan(store, versions["duplicates"])
    since = there["images"] - (scan.images if scan else 0)
    return {
        "scan": scan and scan.scan,
        "rule": scan and scan.rule._asdict(),
        "since": since,
        "holdout": there["holdout"],
    }


def _check_options(there: Manifest, parameters: Parameters) -> None:
    """Makes sure that the manifest of this name was built with the same options.

    Raises:
        InputError: It was not.
    """
    if differ := manifests.differences(there, parameters):
        raise _taken(there.name, f"the options differ: {', '.join(differ)}")


def _taken(name: str, why: str) -> InputError:
    return InputError(
        f"the manifest '{name}' exists and has other content ({why})",
        f"give the new one another name; a manifest never changes (to build '{name}' as it was: "
        f"curator build-manifest NEW --as-of {name})",
    )


def _publish(
    store: Store,
    con: duckdb.DuckDBPyConnection,
    manifest: Manifest,
    parameters: Parameters,
    ranked: str,
    made: dict[str, str],
) -> Manifest:
    """Writes the files, moves them into place and commits the row, or finds the same content there."""
    above = store.path / "manifests"
    above.mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{manifest.name}-", dir=above))
    try:
        staging.chmod(0o755)
        sha256 = _write(con, manifest, parameters, ranked, staging)
        checks.expect_sound(con, staging, parameters)
        lineage = manifest.lineage | {"sha256": sha256} | made  # the files do not say which engine, and so are the same
        (staging / LINEAGE_FILE).write_text(json.dumps(lineage, indent=1) + "\n", "utf-8")
        folder = store.place.own_folder(manifest.folder, sha256)
        manifest = manifest._replace(sha256=sha256, lineage=lineage, folder=folder)
        with alone(above):
            table = store.delta("manifests")
            published = manifests.get(store, manifest.name)
            if published is not None:
                _check_options(published, parameters)
                if published.sha256 != sha256:
                    raise _taken(manifest.name, "the store has changed since")
                if store.place.files(published.folder):
                    progress.say(f"the manifest '{manifest.name}' is there already, with the same content")
                    return published
            place = store.path / (published.folder if published is not None else folder)
            if place.exists():  # left by a build that died before its commit
                shutil.rmtree(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            store.place.settle(staging.iterdir())
            staging.rename(place)
            store.place.settle([place])
            store.place.mirror(place)
            if published is not None:
                progress.say(f"the files of the manifest '{manifest.name}' were gone and are there again")
                return published
            row = pa.Table.from_pylist([_row(store, manifest)], MANIFESTS.schema)
            additions.claim(store, "manifests", row, f"manifest {manifest.name}", table)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _row(store: Store, manifest: Manifest) -> dict[str, Any]:
    """The manifest's row in the manifests table."""
    return {
        "name": manifest.name,
        "path": manifest.folder,
        "generation": manifest.generation,
        "per_class": manifest.lineage["parameters"]["per_class"],
        "rows": manifest.rows,
        "unique_images": manifest.unique_images,
        "sha256": manifest.sha256,
        "lineage": json.dumps(manifest.lineage),
        "created_at": additions.now(store.rows, "manifests"),
    }


def _write(
    con: duckdb.DuckDBPyConnection, manifest: Manifest, parameters: Parameters, ranked: str, folder: Path
) -> str:
    """Writes the rows that a query gives as Parquet files and returns their sha256."""
    digest = digests.begin(parameters.changed)
    footer = {FOOTER_KEY: json.dumps(manifest.lineage, sort_keys=True)}
    written = 0
    last = (-1, 0.0, 0)
    writer: pq.ParquetWriter | None = None
    batches = queries.batches(con, ranked, _BATCH, **parameters.bound)
    with progress.progress("writing the manifest", manifest.unique_images, "rows") as advance:
        for batch in batches:
            last = checks.expect_order(batch, last)
            table = batch.select(MANIFEST_ROW.schema.names).cast(MANIFEST_ROW.schema)
            digests.update(digest, table)
            if written % _FILE_ROWS == 0:
                if writer is not None:
                    writer.add_key_value_metadata(footer)
                    writer.close()
                writer = _open(folder / f"part-{written // _FILE_ROWS:05d}.parquet")
            assert writer is not None
            writer.write_table(table, row_group_size=_BATCH)
            written += table.num_rows
            advance(table.num_rows)
    if writer is not None:
        writer.add_key_value_metadata(footer)
        writer.close()
    if written != manifest.unique_images:
        raise InputError(
            f"{manifest.unique_images - written} selected images are not in the images table",
            "the store is inconsistent: restore the images table, or import the labels again",
        )
    return digest.hexdigest()


def _open(file: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file,
        MANIFEST_ROW.schema,
        compression="zstd",
        compression_level=3,
        write_page_checksum=True,
        use_dictionary=[
            "shard",
            "source",
            "label",
            "class_name",
            "copies",
            "weight",
            "generation",
            "top_classes.list.element",
        ],
        column_encoding={"top_probs.list.element": "BYTE_STREAM_SPLIT", "confidence": "BYTE_STREAM_SPLIT"},
    )
