"""Where images come from: a folder, tar shards, or a listing, read as Arrow batches of one form.

Nothing here touches the store or opens a picture.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq

from curator import progress
from curator.errors import InputError, some, suggestion
from curator.schema import SPLITS
from curator.storage import roots
from curator.storage.bucket import Bucket, check_url, is_url
from curator.storage.roots import Root

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
TEXT_SUFFIXES = (".csv", ".tsv")
LISTING_SUFFIXES = (".parquet", *TEXT_SUFFIXES)
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


def read(source: str, split: str | None, folder_labels: bool, root: Root, base: str = "") -> Iterator[pa.RecordBatch]:
    """The images of a source in a stable order.

    Args:
        source: A folder, a `.tar` file or a glob of them, by path or a bucket's URL, or a `.parquet`, `.csv` or `.tsv`
            listing with a column `uri` and, if wanted, `label` (class name or index) and `split`.
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
    if is_url(source):
        if source.endswith(".tar"):
            return _shards(_matching(source), split, folder_labels, root)
        return _files(_objects(source), source, f"'{source}'", split, folder_labels, root)
    if path.is_dir():
        return _files(_walk(path, "", frozenset()), str(path), f"the folder '{path}'", split, folder_labels, root)
    if source.endswith(".tar"):
        pattern = glob.escape(source) if path.is_file() else source
        shards = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not shards:
            raise InputError(f"there is no shard '{source}'", "check the path or the pattern")
        return _shards(shards, split, folder_labels, root)
    if not path.exists():
        raise InputError(f"there is no folder or file '{source}'", "check the path; it is read from the current folder")
    if path.suffix.lower() in LISTING_SUFFIXES:
        return _listing(path, split, base)
    raise InputError(
        f"'{source}' is neither a folder, a .tar shard nor a listing",
        f"give a folder, .tar files or a listing that ends in {', '.join(LISTING_SUFFIXES)}",
    )


def local(source: str) -> str:
    """A listing or label file by its path on this machine, brought there if a URL names it; others as they are."""
    if is_url(source) and PurePosixPath(source).suffix.lower() in (*LISTING_SUFFIXES, ".arrow", ".feather"):
        return str(roots.brought(source))
    return source


def relative(path: str | Path, root: Root) -> str:
    """The uri of a file: relative to the root where it lies below it, else its absolute path or URL."""
    if is_url(str(path)):
        url = check_url(str(path))
        return "." if url == str(root) else url.removeprefix(f"{root}/") if isinstance(root, Bucket) else url
    if isinstance(root, Bucket):
        return os.path.abspath(path)  # noqa: PTH100 - as below
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - takes "..", which would give a file a second uri, and keeps links
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


def _need_split(split: str | None) -> str:
    if split is None:
        raise InputError("the split of the images is not given", f"add --split {'|'.join(SPLITS)}")
    return split


def _files(
    names: Iterator[str], folder: str, shown: str, split: str | None, folder_labels: bool, root: Root
) -> Iterator[pa.RecordBatch]:
    split = _need_split(split)
    prefix = relative(folder, root)
    others: Counter[str] = Counter()

    def files() -> Iterator[dict[str, object]]:
        for name in names:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix not in SUFFIXES:
                others[suffix or "no ending"] += 1
                continue
            uri = name if prefix == "." else f"{prefix}/{name}"
            yield {"uri": uri, "name": name, "split": split} | _class_of(name, folder_labels, folder)

    yield from _batches(files(), shown, others)
    if others:
        left_out = some(f"{count} {suffix}" for suffix, count in others.most_common())
        progress.say(f"left out {others.total()} files that are not images by their ending: {left_out}")


def _objects(url: str) -> Iterator[str]:
    """Names of all objects below a URL, in the order of their bytes, without those that stand for folders."""
    for name, _ in Bucket(check_url(url)).list():
        parts = name.split("/")
        if all(parts) and not any(part.startswith(".") for part in parts):
            yield name


def _matching(pattern: str) -> list[str]:
    """URLs of the shards that a pattern names.

    Raises:
        InputError: There is none.
    """
    above = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    bucket = Bucket(check_url(above))
    found = [f"{bucket}/{name}" for name, _ in bucket.list()]
    shards = [url for url in found if fnmatch.fnmatchcase(url, pattern) and url.count("/") == pattern.count("/")]
    if not shards:
        raise InputError(f"there is no shard '{pattern}'", "check the bucket and the pattern")
    return shards


def _walk(folder: Path, below: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Paths of all files below a folder, depth first, sorted, without holding more than one folder in memory."""
    state = (folder / below).stat()
    if (state.st_dev, state.st_ino) in above:
        return  # a link back to a folder that is being walked
    above |= {(state.st_dev, state.st_ino)}
    with os.scandir(folder / below) as entries:
        sorted_entries = sorted(entries, key=lambda entry: entry.name)
    for entry in sorted_entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith("."):
            continue  # what programs keep for themselves, such as .ipynb_checkpoints, must not become a class
        if entry.is_dir():
            yield from _walk(folder, name, above)
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


def _shards(shards: list[str], split: str | None, folder_labels: bool, root: Root) -> Iterator[pa.RecordBatch]:
    split = _need_split(split)
    others: Counter[str] = Counter()

    def members() -> Iterator[dict[str, object]]:
        for shard in shards:
            shard_uri = relative(shard, root)
            try:
                with roots.opened(shard) as file, tarfile.open(shard, "r:", file) as tar:
                    for member in tar:
                        suffix = PurePosixPath(member.name).suffix.lower()
                        name = member.name.removeprefix("./")
                        if any(part.startswith(".") for part in name.split("/")):
                            continue
                        if not member.isfile() or member.issparse() or suffix not in SUFFIXES:
                            others[suffix or "no ending"] += member.isfile()
                            continue
                        yield {
                            "uri": f"{shard_uri}::{name}",
                            "name": name,
                            "shard": shard_uri,
                            "byte_offset": member.offset_data,
                            "byte_length": member.size,
                            "split": split,
                        } | _class_of(name, folder_labels, shard)
                    _check_end(file, tar.offset)
            # Whatever damage trips in tarfile: a size that is no number or no offset, headers in headers, a long name.
            except (
                tarfile.TarError,
                ValueError,
                TypeError,
                LookupError,
                OverflowError,
                RecursionError,
                MemoryError,
            ) as error:
                raise InputError(
                    f"'{shard}' is not a readable, uncompressed tar file ({error or type(error).__name__})",
                    "write it again",
                ) from None

    yield from _batches(members(), some(f"'{shard}'" for shard in shards), others)


def _check_end(file: BinaryIO, at: int) -> None:
    """Makes sure that a tar ends where its members end: tarfile takes any damage behind the first one for the end."""
    ended = False
    file.seek(at)
    while block := file.read(1 << 20):
        ended = True
        if block.count(0) != len(block):
            raise tarfile.ReadError("it goes on behind its last readable member")
    if not ended:
        raise tarfile.ReadError("its end is missing")


def _batches(rows: Iterator[dict[str, object]], source: str, others: Counter[str]) -> Iterator[pa.RecordBatch]:
    position = 0
    waiting: list[dict[str, object]] = []
    for row in rows:
        try:
            str(row["uri"]).encode()
        except UnicodeEncodeError:
            raise InputError(
                f"the name {str(row['uri']).encode('utf-8', 'backslashreplace').decode()!r} in {source} is not UTF-8",
                "rename the file; a uri is text",
            ) from None
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
        columns = {f.name: _column(batch, f.name, f.type, path) for f in SCHEMA if f.name != "label"}
        columns |= _labels(batch, path)
        uris = columns["uri"].to_pylist()
        missing = next((row for row, uri in enumerate(uris) if not uri), None)
        if missing is not None:
            raise InputError(f"row {position + missing} of '{path}' has no uri", "fill it in, or remove the row")
        columns["position"] = pa.array(range(position, position + n), pa.int64())
        columns["name"] = columns["uri"]
        if base:
            columns["uri"] = pa.array([f"{base.rstrip('/')}/{uri}" for uri in uris], pa.string())
        if columns["split"].null_count:
            columns["split"] = columns["split"].fill_null(_need_split(split))
        unknown = sorted(set(columns["split"].unique().to_pylist()) - set(SPLITS))
        if unknown:
            raise InputError(f"'{path}' names the unknown split '{unknown[0]}'", f"splits are {', '.join(SPLITS)}")
        yield pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)
        position += n
    if not position:
        raise InputError(f"the listing '{path}' has no rows", "write one row per image")


def read_labels(path: Path) -> pa.Table:
    """A label file as a table of uri, class_name and label, one of the last two null.

    Raises:
        InputError: The file is missing or damaged, or lacks `uri` or `label`.
    """
    parts = []
    for batch in table_batches(path, ("uri", "label")):
        columns = {"class_name": pa.nulls(batch.num_rows, pa.string())} | _labels(batch.select(["uri", "label"]), path)
        parts.append(pa.table(columns | {"uri": _column(batch, "uri", pa.string(), path)}))
    if not parts:
        raise InputError(f"the label file '{path}' has no rows", "write one row per image")
    return pa.concat_tables([part.select(["uri", "class_name", "label"]) for part in parts])


def _labels(batch: pa.RecordBatch, path: Path) -> dict[str, pa.Array]:
    """Numbers in the column `label` are class indexes (pandas writes those with gaps as floats), text is names."""
    kind = batch.column("label").type if "label" in batch.schema.names else pa.int64()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return {"label": _column(batch, "label", pa.int64(), path)}
    names, numbers = _column(batch, "label", pa.string(), path), pa.nulls(batch.num_rows, pa.int64())
    if "class_name" not in batch.schema.names:
        return {"label": numbers, "class_name": names}
    # beside another name a number is an index; that the two mean one class is seen where the classes are known
    both = _column(batch, "class_name", pa.string(), path)
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


def _column(batch: pa.RecordBatch, name: str, kind: pa.DataType, path: Path) -> pa.Array:
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, kind)
    try:
        return batch.column(name).cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"the column '{name}' of '{path}' cannot be used as {kind} ({str(error).splitlines()[0]})",
            "correct its values, or leave the column out",
        ) from None


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
