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

from curator import progress
from curator.errors import InputError, some, suggestion
from curator.pictures import listings
from curator.schema import SPLITS
from curator.storage import roots
from curator.storage.bucket import Bucket, check_url, is_url
from curator.storage.roots import Root

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
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
    if path.suffix.lower() in listings.SUFFIXES:
        return _listing(path, split, base)
    raise InputError(
        f"'{source}' is neither a folder, a .tar shard nor a listing",
        f"give a folder, .tar files or a listing that ends in {', '.join(listings.SUFFIXES)}",
    )


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
        if len(waiting) == listings.BATCH:
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
    for batch in listings.table_batches(path, ("uri",)):
        n = batch.num_rows
        columns = {f.name: listings.column(batch, f.name, f.type, path) for f in SCHEMA if f.name != "label"}
        columns |= listings.labels(batch, path)
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
