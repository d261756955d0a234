"""Where images come from: a folder, tar shards, or a listing, read as Arrow batches of one form.

Nothing here touches the store or opens a picture.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset

from curator import progress
from curator.errors import InputError, some, suggestion
from curator.schema import SPLITS

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
LISTING_SUFFIXES = (".parquet", ".csv", ".tsv")
# `name` is the path inside the source, by which a label file may know the image.
SCHEMA = pa.schema(
    {
        "position": pa.int64(),
        "uri": pa.string(),
        "name": pa.string(),
        "shard": pa.string(),
        "byte_offset": pa.int64(),
        "byte_length": pa.int64(),
        "split": pa.string(),
        "class_name": pa.string(),
        "label": pa.int64(),
    }
)
_BATCH = 50_000


def read(source: str, split: str | None, folder_labels: bool, root: Path, base: str = "") -> Iterator[pa.RecordBatch]:
    """The images of a source in a stable order.

    Args:
        source: A folder, a `.tar` file or a glob of them, or a `.parquet`, `.csv` or `.tsv` listing with a column
            `uri` and, if wanted, `label` (class name or index) and `split`.
        split: The split of images whose listing does not say.
        folder_labels: Whether the first folder below the source (or inside the tar) is the class.
        root: Uris of files below this folder are relative to it.
        base: Put before the uris of a listing, which are otherwise taken as written.

    Yields:
        Batches of the form SCHEMA, with `position` counting from 0.

    Raises:
        InputError: The source is missing, of an unknown kind, or holds no image.
    """
    path = Path(source)
    if split is not None and split not in SPLITS:
        raise InputError(f"the split '{split}' is unknown{suggestion(split, SPLITS)}", f"--split {'|'.join(SPLITS)}")
    if path.is_dir():
        return _folder(path, split, folder_labels, root)
    if source.endswith(".tar"):
        shards = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not shards:
            raise InputError(f"there is no shard '{source}'", "check the path or the pattern")
        return _shards([Path(shard) for shard in shards], split, folder_labels, root)
    if not path.exists():
        raise InputError(f"there is no folder or file '{source}'", "check the path; it is read from the current folder")
    if path.suffix.lower() in LISTING_SUFFIXES:
        return _listing(path, split, base)
    raise InputError(
        f"'{source}' is neither a folder, a .tar shard nor a listing",
        f"give a folder, .tar files or a listing that ends in {', '.join(LISTING_SUFFIXES)}",
    )


def relative(path: Path, root: Path) -> str:
    """The uri of a file: relative to the root where it lies below it, else its absolute path."""
    absolute = path.absolute()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


def _need_split(split: str | None) -> str:
    if split is None:
        raise InputError("the split of the images is not given", f"add --split {'|'.join(SPLITS)}")
    return split


def _folder(folder: Path, split: str | None, folder_labels: bool, root: Path) -> Iterator[pa.RecordBatch]:
    split = _need_split(split)
    prefix = relative(folder, root)
    others: Counter[str] = Counter()

    def files() -> Iterator[dict[str, object]]:
        for name in _walk(folder, ""):
            suffix = PurePosixPath(name).suffix.lower()
            if suffix not in SUFFIXES:
                others[suffix or "no ending"] += 1
                continue
            uri = name if prefix == "." else f"{prefix}/{name}"
            yield {"uri": uri, "name": name, "split": split} | _class_of(name, folder_labels, str(folder))

    yield from _batches(files(), f"the folder '{folder}'", others)
    if others:
        left_out = some(f"{count} {suffix}" for suffix, count in others.most_common())
        progress.say(f"left out {others.total()} files that are not images by their ending: {left_out}")


def _walk(folder: Path, below: str) -> Iterator[str]:
    """Paths of all files below a folder, depth first, sorted, without holding more than one folder in memory."""
    with os.scandir(folder / below) as entries:
        sorted_entries = sorted(entries, key=lambda entry: entry.name)
    for entry in sorted_entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir():
            yield from _walk(folder, name)
        else:
            yield name


def _class_of(name: str, folder_labels: bool, source: str) -> dict[str, object]:
    if not folder_labels:
        return {}
    if "/" not in name:
        raise InputError(
            f"'{name}' lies directly in {source}, not in a class folder",
            f"move it to {source}/CLASS/{name}, or give the classes with --labels FILE",
        )
    return {"class_name": name.split("/", 1)[0]}


def _shards(shards: list[Path], split: str | None, folder_labels: bool, root: Path) -> Iterator[pa.RecordBatch]:
    split = _need_split(split)
    others: Counter[str] = Counter()

    def members() -> Iterator[dict[str, object]]:
        for shard in shards:
            shard_uri = relative(shard, root)
            try:
                with tarfile.open(shard, "r:") as tar:
                    for member in tar:
                        suffix = PurePosixPath(member.name).suffix.lower()
                        if not member.isfile() or suffix not in SUFFIXES:
                            others[suffix or "no ending"] += member.isfile()
                            continue
                        name = member.name.removeprefix("./")
                        yield {
                            "uri": f"{shard_uri}::{name}",
                            "name": name,
                            "shard": shard_uri,
                            "byte_offset": member.offset_data,
                            "byte_length": member.size,
                            "split": split,
                        } | _class_of(name, folder_labels, str(shard))
            except tarfile.TarError as error:
                raise InputError(
                    f"'{shard}' is not a readable, uncompressed tar file ({error})", "write it again"
                ) from None

    yield from _batches(members(), some(f"'{shard}'" for shard in shards), others)


def _batches(rows: Iterator[dict[str, object]], source: str, others: Counter[str]) -> Iterator[pa.RecordBatch]:
    position = 0
    waiting: list[dict[str, object]] = []
    for row in rows:
        waiting.append(row | {"position": position})
        position += 1
        if len(waiting) == _BATCH:
            yield pa.RecordBatch.from_pylist(waiting, SCHEMA)
            waiting = []
    if not position:
        found = f"; it holds {others.total()} other files" if others else ""
        raise InputError(
            f"there are no images in {source}{found}",
            f"image files end in {', '.join(sorted(SUFFIXES))}",
        )
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, SCHEMA)


def _listing(path: Path, split: str | None, base: str) -> Iterator[pa.RecordBatch]:
    position = 0
    for batch in table_batches(path, ("uri",)):
        n = batch.num_rows
        uris = batch.column("uri").cast(pa.string())
        if uris.null_count:
            row = position + uris.is_null().to_pylist().index(True)
            raise InputError(f"row {row} of '{path}' has no uri", "fill it in, or remove the row")
        columns: dict[str, pa.Array] = {
            "position": pa.array(range(position, position + n), pa.int64()),
            "name": uris,
        }
        columns["uri"] = uris if not base else pa.array([f"{base.rstrip('/')}/{uri}" for uri in uris.to_pylist()])
        for name in ("shard", "byte_offset", "byte_length", "split", "class_name", "label"):
            if name in batch.schema.names:
                columns[name] = batch.column(name)
        label = columns.get("label")
        if label is not None and not pa.types.is_integer(label.type):
            columns["class_name"] = columns.pop("label").cast(pa.string())
        if "split" not in columns or columns["split"].null_count:
            given = columns.get("split", pa.nulls(n, pa.string())).cast(pa.string())
            columns["split"] = given.fill_null(_need_split(split))
        unknown = set(columns["split"].unique().to_pylist()) - set(SPLITS)
        if unknown:
            raise InputError(f"'{path}' names the unknown split '{unknown.pop()}'", f"splits are {', '.join(SPLITS)}")
        yield pa.RecordBatch.from_arrays(
            [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in SCHEMA],
            schema=SCHEMA,
        )
        position += n
    if not position:
        raise InputError(f"the listing '{path}' has no rows", "write one row per image")


def table_batches(
    path: Path, needed: tuple[str, ...], rows: int = _BATCH, columns: list[str] | None = None
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
                    # "007.jpg" without its ending, or a class called "01", must not become a number
                    column_types={"uri": pa.string(), "class_name": pa.string()},
                    strings_can_be_null=True,
                ),
            )
        dataset = pyarrow.dataset.dataset(path, format=form)
        for name in needed:
            if name not in dataset.schema.names:
                raise InputError(
                    f"'{path}' has no column '{name}'{suggestion(name, dataset.schema.names)}",
                    f"its columns are {', '.join(dataset.schema.names)}; rename one to '{name}'",
                )
        # One fragment at a time keeps the order of rows and the memory of wide tables small.
        yield from dataset.to_batches(columns, batch_size=rows, batch_readahead=2, fragment_readahead=1)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(
            f"'{path}' cannot be read as {kind} ({str(error).splitlines()[0]})", "write the file again"
        ) from None


def read_class_file(file: Path) -> list[str]:
    """Class names from a text file, one a line in the order of their indexes; blank lines are passed over.

    Raises:
        InputError: The file is missing or not text.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the class file '{file}' cannot be read ({error})", "give a text file, one name a line"
        ) from None
    return [line.strip() for line in lines if line.strip()]
