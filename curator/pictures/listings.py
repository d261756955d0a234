"""Tables that people bring: listings of images, files of labels, soft labels and class names.

    .parquet .arrow .csv .tsv, a folder of Parquet --table_batches--> Arrow batches whose text and offsets are sound

What a row means is said where it is used: `sources` for images, `generations/label_file.py` for soft labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq

from curator.errors import InputError, some, suggestion
from curator.storage import roots
from curator.storage.bucket import is_url

TEXT_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (".parquet", *TEXT_SUFFIXES)
BATCH = 50_000  # rows


def local(source: str) -> str:
    """A listing or label file by its path on this machine, brought there if a URL names it; others as they are."""
    if is_url(source) and PurePosixPath(source).suffix.lower() in (*SUFFIXES, ".arrow", ".feather"):
        return str(roots.brought(source))
    return source


def table_batches(
    path: Path, needed: tuple[str, ...], rows: int = BATCH, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The batches of a Parquet, Arrow or CSV file, or of a folder of Parquet files.

    Args:
        path: The file or folder.
        needed: Columns that must be there.
        rows: Most rows of a batch.
        columns: Columns to read; all of them by default.

    Raises:
        InputError: The file is missing or damaged, or lacks a needed column.
    """
    kind = {".csv": "csv", ".tsv": "csv", ".arrow": "ipc", ".feather": "ipc"}.get(path.suffix.lower(), "parquet")
    if not path.exists():
        raise InputError(f"there is no file '{path}'", "check the path; it is read from the current folder")
    try:
        form: str | pyarrow.dataset.FileFormat = kind
        if kind == "csv":
            form = pyarrow.dataset.CsvFileFormat(
                pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ","),
                convert_options=pyarrow.csv.ConvertOptions(
                    # "007.jpg" without its ending, or a class called "01", must not become a number, and a class
                    # called "null" or "nan" is a name
                    column_types={name: pa.string() for name in ("uri", "shard", "split", "class_name", "label")},
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
        dataset = pyarrow.dataset.dataset(path, format=form)
        names = dataset.schema.names  # which are text only if they are asked for here
        for name in needed:
            if name not in names:
                raise InputError(
                    f"'{path}' has no column '{name}'{suggestion(name, names)}",
                    f"its columns are {', '.join(names)}; rename one to '{name}'",
                )
        if kind == "parquet":
            # A dataset's own scan reads ahead of a slow reader without a bound that counts bytes: 5 GB for a million
            # rows of a thousand probabilities.
            for file in dataset.files:
                with pq.ParquetFile(file, pre_buffer=False) as parquet:
                    yield from map(_sound, parquet.iter_batches(rows, columns=columns, use_threads=False))
        else:
            yield from map(
                _sound, dataset.to_batches(columns, batch_size=rows, batch_readahead=2, fragment_readahead=1)
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(
            f"'{path}' cannot be read as {kind} ({(str(error).splitlines() or [type(error).__name__])[0]})",
            "write the file again",
        ) from None


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose offsets lie in its buffers and whose text is UTF-8: Arrow's readers take a file's word for it."""
    batch.validate(full=True)
    return batch


def read_labels(path: Path) -> pa.Table:
    """A label file as a table of uri, class_name and label, one of the last two null.

    Raises:
        InputError: The file is missing or damaged, or lacks `uri` or `label`.
    """
    parts = []
    for batch in table_batches(path, ("uri", "label")):
        columns = {"class_name": pa.nulls(batch.num_rows, pa.string())} | labels(batch.select(["uri", "label"]), path)
        parts.append(pa.table(columns | {"uri": column(batch, "uri", pa.string(), path)}))
    if not parts:
        raise InputError(f"the label file '{path}' has no rows", "write one row per image")
    return pa.concat_tables([part.select(["uri", "class_name", "label"]) for part in parts])


def labels(batch: pa.RecordBatch, path: Path) -> dict[str, pa.Array]:
    """Numbers in the column `label` are class indexes (pandas writes those with gaps as floats), text is names."""
    kind = batch.column("label").type if "label" in batch.schema.names else pa.int64()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return {"label": column(batch, "label", pa.int64(), path)}
    names, numbers = column(batch, "label", pa.string(), path), pa.nulls(batch.num_rows, pa.int64())
    if "class_name" not in batch.schema.names:
        return {"label": numbers, "class_name": names}
    # beside another name a number is an index; that the two mean one class is seen where the classes are known
    both = column(batch, "class_name", pa.string(), path)
    beside = pc.fill_null(pc.not_equal(names, both), False)
    indexed = pc.and_(beside, pc.fill_null(pc.match_substring_regex(names, "^(0|[1-9][0-9]{0,8})$"), False))
    different = batch.append_column("_", pc.and_not(beside, indexed)).filter(pc.field("_")).column("uri").to_pylist()
    if different:
        raise InputError(
            f"label and class_name of '{path}' name different classes for: {some(different[:6])}",
            "correct them, or leave one of the columns out",
        )
    numbers = pc.if_else(indexed, names, None).cast(pa.int64())
    return {"label": numbers, "class_name": pc.coalesce(both, names)}


def column(batch: pa.RecordBatch, name: str, kind: pa.DataType, path: Path) -> pa.Array:
    """A column in the type that it is used in; nulls where the file lacks it.

    Raises:
        InputError: A value is none of that type.
    """
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, kind)
    try:
        return batch.column(name).cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"the column '{name}' of '{path}' cannot be used as {kind} ({str(error).splitlines()[0]})",
            "correct its values, or leave the column out",
        ) from None


def read_class_file(file: Path) -> list[str]:
    """Class names from a text file, one a line in the order of their indexes; blank lines are passed over.

    Raises:
        InputError: The file is missing or not text.
    """
    try:
        # not splitlines, which takes U+0085 and others in a name for the end of a line
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the class file '{file}' cannot be read ({error})", "give a text file, one name a line"
        ) from None
    return [line.strip() for line in lines if line.strip()]
