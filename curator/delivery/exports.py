"""Exports: a published manifest in the forms that other tools read.

    files of the manifest -+-> rows, in their order ---------------> one csv, jsonl or parquet file
                           +-> samples: pictures, read and checked -> a folder: links, webdataset or huggingface
                               all of it is written beside the destination and renamed

Pictures are passed on as the bytes that they are. One that is missing or damaged, or has other bytes than when it was
scanned, is left out and named. Memory holds one batch. The same manifest and options give the same bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from curator import digests, progress, queries
from curator.curation import building, checks, manifests
from curator.delivery import samples
from curator.errors import InputError, printable, some, suggestion

if TYPE_CHECKING:
    from curator.curation.manifests import Manifest
    from curator.storage.store import Store

TABLES = ("csv", "jsonl", "parquet")
SHARDED = ("webdataset", "huggingface")
FORMATS = (*TABLES, "folder", *SHARDED)
# What torchvision, and the command line of others, call them.
_ALSO = {"imagefolder": "folder", "hf": "huggingface"}
SHARD_ROWS = 10_000
SHARD_BYTES = 1_000_000_000


class Exported(NamedTuple):
    """What an export wrote.

    Attributes:
        rows: Rows of the manifest that are in it.
        copies: What these count for with their copies.
        images: Pictures, that is links or samples; 0 in a table.
        files: Links among them; the lineage is not counted.
        unreadable: Images that were left out.
        problems: The first of them: image_id, uri, problem.
    """

    name: str
    format: str
    path: str
    rows: int
    copies: int
    images: int
    files: int
    unreadable: int
    problems: list[dict[str, Any]]


def export(
    store: Store,
    name: str,
    form: str,
    destination: str | Path,
    *,
    shard_rows: int | None = None,
    shard_bytes: int | None = None,
    repeat_copies: bool = False,
    extract: bool = False,
) -> Exported:
    """Writes a published manifest in a form that other tools read.

    Args:
        store: The store.
        name: The manifest.
        form: One of FORMATS.
        destination: The file (for TABLES) or folder to write: absent, or an empty one.
        shard_rows: Most samples of a file of SHARDED forms, SHARD_ROWS if not given.
        shard_bytes: Most bytes of such a file, SHARD_BYTES if not given; one sample may be larger.
        repeat_copies: Whether each copy is a sample of its own (SHARDED).
        extract: Whether pictures in tar shards become files (folder).

    Raises:
        InputError: An option is wrong, the destination is taken, the manifest is damaged or has images of the holdout,
            a folder cannot link to its images, or none of them can be read. Nothing was written.
    """
    form = _ALSO.get(form, form)
    if form not in FORMATS:
        raise InputError(f"the format '{form}' is unknown{suggestion(form, FORMATS)}", f"--format {'|'.join(FORMATS)}")
    if form not in SHARDED and (repeat_copies or shard_rows is not None or shard_bytes is not None):
        raise InputError(
            f"--shard-rows, --shard-bytes and --repeat-copies have no meaning for {form}",
            f"leave them out; they are for {' and '.join(SHARDED)}",
        )
    if extract and form != "folder":
        raise InputError(f"--extract has no meaning for {form}", "leave it out; it is for --format folder")
    limits = (SHARD_ROWS if shard_rows is None else shard_rows, SHARD_BYTES if shard_bytes is None else shard_bytes)
    if min(limits) < 1:
        raise InputError("a file cannot hold less than one row or byte", "give --shard-rows and --shard-bytes above 0")
    manifest = manifests.find(store, name)
    place = _place(Path(destination), manifest, form)
    with closing(store.connect()) as con:
        parts = open_rows(con, manifest)
        if form == "folder":
            _expect_linkable(con, extract)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=place.parent) as beside:
            making = Path(beside) / "made"
            columns = pq.read_schema(parts[0]).remove_metadata()
            if form in TABLES:
                _write_table(form, _tables(manifest, parts), columns, manifest, making)
                done = Exported(name, form, str(destination), manifest.unique_images, manifest.rows, 0, 1, 0, [])
            else:
                making.mkdir()
                total = manifest.rows if repeat_copies else manifest.unique_images
                given = samples.Samples(con, store.root, total, repeat_copies)
                if form == "folder":
                    files = samples.write_folder(given, store.root, making, place)
                elif form == "webdataset":
                    files = samples.write_tars(given, making, name, *limits)
                else:
                    files = samples.write_parquet(given, making, columns, store.classes(), *limits)
                _expect_some(given, store)
                (making / manifests.LINEAGE_FILE).write_text(json.dumps(manifest.lineage, indent=1) + "\n", "utf-8")
                bad = len(given.unreadable)
                rows, images = manifest.unique_images - bad, files if form == "folder" else given.number
                done = Exported(name, form, str(destination), rows, given.copies, images, files, bad, given.problems)
            if form != "folder":  # millions of links, which hold nothing of their own
                _sync(making)
            making.rename(place)
    return done


def _sync(made: Path) -> None:
    for file in made.rglob("*") if made.is_dir() else [made]:
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())


def _expect_some(given: samples.Samples, store: Store) -> None:
    if not given.number:
        first = given.problems[0]
        raise InputError(
            f"none of the {len(given.unreadable)} images can be read, e.g. '{printable(first['uri'])}': "
            f"{printable(first['problem'])}",
            f"bring the pictures back; relative uris start from {store.root}",
        )


def _place(destination: Path, manifest: Manifest, form: str) -> Path:
    """The destination as an absolute path without links.

    Raises:
        InputError: Something is there.
    """
    place = destination.resolve()
    if not place.exists():
        return place
    if form in TABLES and place.is_dir():
        mend = f"give the path of a file, e.g. {destination / f'{manifest.name}.{form}'}"
        raise InputError(f"'{destination}' is a folder, and {form} is one file", mend)
    if form in TABLES:
        empty = place.is_file() and not place.stat().st_size
    else:
        empty = place.is_dir() and not any(place.iterdir())
    if not empty:
        raise InputError(
            f"'{destination}' exists and is not empty, and an export writes over nothing",
            "give another destination, or remove this one",
        )
    if place.is_mount() or place.samefile(Path.cwd()):
        mend = f"give a folder in it, e.g. {destination / manifest.name}"
        raise InputError(f"'{destination}' is the current folder or a mount point, and cannot be replaced", mend)
    return place


def open_rows(con: duckdb.DuckDBPyConnection, manifest: Manifest) -> list[Path]:
    """Makes the rows of a manifest the relation `rows`, and gives its files.

    Raises:
        InputError: Files are missing or damaged, or an image of the manifest is in the holdout by now.
    """
    parts = manifests.files(manifest)
    con.read_parquet([str(part) for part in parts]).create_view("rows")
    checks.expect_no_leak(con, manifest.name, manifest.lineage)
    return parts


def _expect_linkable(con: duckdb.DuckDBPyConnection, extract: bool) -> None:
    """Makes sure that a folder can have every image of the manifest.

    Raises:
        InputError: It cannot.
    """
    reader = con.sql(queries.text("export_unlinkable"), params={"endings": samples.LINKED, "extract": extract})
    found = reader.limit(samples.SHOWN).fetchall()
    if found and found[0][1] is not None:
        raise InputError(
            f"images of the manifest lie in tar shards and are no files to link to: {some(uri for uri, _ in found)}",
            "--extract, to write these as files; or --format webdataset, or huggingface",
        )
    if found:
        raise InputError(
            f"images of the manifest have endings that readers of image folders pass over: "
            f"{some(uri for uri, _ in found)}",
            f"--format webdataset, or huggingface; a folder holds {', '.join(samples.LINKED)}",
        )


def _damaged(manifest: Manifest, error: Exception) -> InputError:
    what = f"the files of the manifest '{manifest.name}' cannot be read ({str(error).splitlines()[0]})"
    return InputError(what, f"curator check {manifest.name}, to see what is wrong with it")


def _tables(manifest: Manifest, parts: list[Path]) -> Iterator[pa.Table]:
    """The rows of the manifest in their order, in tables of at most `digests.ROWS` rows."""
    with progress.progress("exporting", manifest.unique_images, "rows") as advance:
        for part in parts:
            try:
                with pq.ParquetFile(part, pre_buffer=False) as file:  # which would hold the whole file
                    for batch in file.iter_batches(digests.ROWS):
                        yield pa.Table.from_batches([batch]).replace_schema_metadata()
                        advance(batch.num_rows)
            except pa.ArrowException as error:
                raise _damaged(manifest, error) from None
            except OSError as error:
                if error.errno is not None:
                    raise
                raise _damaged(manifest, error) from None


def _write_table(form: str, tables: Iterator[pa.Table], schema: pa.Schema, manifest: Manifest, file: Path) -> None:
    if form == "parquet":
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
            writer.add_key_value_metadata({building.FOOTER_KEY: json.dumps(manifest.lineage, sort_keys=True)})
    elif form == "csv":
        flat = pa.schema([pa.field(f.name, pa.string() if pa.types.is_list(f.type) else f.type) for f in schema])
        with pyarrow.csv.CSVWriter(file, flat) as writer:
            for table in tables:
                writer.write_table(pa.table(list(map(_flat, table.columns)), flat))
    else:
        # DuckDB, because Python's own JSON takes ten times as long, and a manifest may have 100 million rows
        with file.open("w", encoding="utf-8") as out, closing(duckdb.connect()) as con:
            for table in tables:
                con.register("rows", table)
                lines = con.sql(queries.text("export_jsonl")).to_arrow_table()["line"]
                out.writelines(f"{line}\n" for line in lines.to_pylist())


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A list column as JSON text, any other as it is."""
    if not pa.types.is_list(column.type):
        return column
    joined = pc.binary_join(column.combine_chunks().cast(pa.list_(pa.string())), ", ")
    return pc.binary_join_element_wise("[", joined, "]", "")
