"""Tables from outside: soft labels, listings and label files, as Parquet, Arrow, CSV and TSV.

The first byte of an input says which ending its file gets.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
from hypothesis import assume
from hypothesis import strategies as st

from curator.generations import label_file, softlabels
from curator.pictures import listings, sources
from curator.pictures.images import add_images

from .target import Target, odd_text, often
from .world import CLASSES, URIS, World

ENDINGS = (".parquet", ".arrow", ".csv", ".tsv")


def write(table: pa.Table, ending: str) -> bytes:
    """An input that holds a table."""
    out = io.BytesIO()
    if ending == ".parquet":
        pq.write_table(table, out, row_group_size=5)
    elif ending == ".arrow":
        with pa.ipc.new_file(out, table.schema) as file:
            file.write_table(table)
    else:
        pyarrow.csv.write_csv(table, out, pyarrow.csv.WriteOptions(delimiter="," if ending == ".csv" else "\t"))
    return bytes([ENDINGS.index(ending)]) + out.getvalue()


def _file(world: World, data: bytes, name: str) -> str:
    ending = ENDINGS[data[0] % len(ENDINGS)] if data else ENDINGS[0]
    file = world.given / f"{name}{ending}"
    file.write_bytes(data[1:])
    return str(file)


# Soft labels


def _read_soft_labels(world: World, data: bytes) -> None:
    file = _file(world, data, "labels")
    with _connection(world).cursor() as con:  # with tables of its own
        rejected = label_file.Rejected(5)
        for summary, images in label_file.read(world.store, con, file, "import_rows", {"generation": 1}, rejected):
            ids, splits = images["image_id"].to_numpy(), images["split"].to_pylist()
            rows = softlabels.table(summary, ids, 1, "m", splits)
            rows.validate(full=True)
            assert np.isfinite(rows["entropy"].to_numpy()).all()
            assert ((summary.confidence >= 0) & (summary.confidence <= 1)).all()
            assert ((summary.label >= 0) & (summary.label < len(CLASSES))).all()


@functools.cache
def _connection(world: World) -> duckdb.DuckDBPyConnection:
    """Opened once: to open the store takes longer than to read such a file."""
    world.store.classes = lambda: CLASSES  # type: ignore[method-assign]
    return world.store.connect()


@functools.cache
def _soft_label_seeds() -> list[bytes]:
    probs = pa.array([[0.5, 0.25, 0.25]] * 9, pa.list_(pa.float32()))
    top = {
        "top_classes": pa.array([[0, 2]] * 9, pa.list_(pa.int16())),
        "top_probs": pa.array([[0.75, 0.25]] * 9, pa.list_(pa.float32())),
    }
    fixed = pa.array([[1.0, 2.0, 3.0]] * 9, pa.list_(pa.float64(), 3))
    uris = pa.array(URIS)
    tables = [
        pa.table({"uri": uris, "probs": probs}),
        pa.table({"uri": uris.dictionary_encode(), "logits": fixed}),
        pa.table({"image_id": pa.array(range(9), pa.int64()), **top}),
    ]
    texts = [pa.table({"uri": URIS, "probs": ["[0.5,0.25,0.25]"] * 9})]
    return [write(t, e) for t in tables for e in (".parquet", ".arrow")] + [write(t, ".csv") for t in texts]


# Listings and label files


def _read_listing(world: World, data: bytes) -> None:
    split = "labeled" if data[:1] and data[0] & 16 else "unlabeled"
    for batch in sources.read(_file(world, data, "listing"), split, False, world.given):
        batch.validate(full=True)


def _read_labels(world: World, data: bytes) -> None:
    listings.read_labels(Path(_file(world, data, "classes"))).validate(full=True)


def _add_listing(world: World, data: bytes) -> None:
    split = "labeled" if data[:1] and data[0] & 16 else "unlabeled"
    add_images(world.store, _file(world, data, "listing"), split, scan=False)


def _add_labels(world: World, data: bytes) -> None:
    file = _file(world, data, "classes")
    source = world.given / "pictures"
    if not source.exists():
        source.mkdir()
        for name in CLASSES:
            (source / f"{name}.png").write_bytes((world.folder / f"{name}.png").read_bytes())
    add_images(world.store, str(source), "labeled", labels=file, scan=False)


@functools.cache
def _listing_seeds() -> list[bytes]:
    new = [f"new/{n}.jpg" for n in range(5)]
    tables = [
        pa.table({"uri": new, "label": ["cat", "dog", "owl", "cat", "dog"]}),
        pa.table({"uri": new, "label": pa.array([0, 1, 2, None, 1], pa.int32()), "split": ["holdout"] * 5}),
        pa.table({"uri": new, "shard": ["a.tar"] * 5, "byte_offset": [512] * 5, "byte_length": [9] * 5}),
    ]
    return [write(table, ending) for table in tables for ending in ENDINGS]


@functools.cache
def _label_seeds() -> list[bytes]:
    names = [f"{name}.png" for name in CLASSES]
    tables = [pa.table({"uri": names, "label": CLASSES}), pa.table({"uri": names, "label": pa.array([0, 1, 2])})]
    return [write(table, ending) for table in tables for ending in ENDINGS]


# Made tables: columns of wanted and other names, of fitting and other types

_NUMBERS = st.one_of(
    st.floats(width=32), st.sampled_from([0.0, -0.0, 1.0, 0.5, 1e-45, 1e38, -1.0, 1 + 1e-4, float("nan"), float("inf")])
)
_WHOLE = st.one_of(st.integers(-3, 5), st.sampled_from([2**15, 2**31, 2**63 - 1, -(2**63), 255]))
_LIST_TYPES = [
    pa.list_(pa.float32()),
    pa.large_list(pa.float64()),
    pa.list_(pa.float16()),
    pa.list_(pa.float32(), 3),
    pa.list_(pa.int8()),
    pa.list_(pa.uint64()),
    pa.list_(pa.int64()),
    pa.list_(pa.string()),
    pa.list_(pa.list_(pa.float32())),
    pa.list_view(pa.float32()),
    pa.list_(pa.decimal128(20, 5)),
]
_TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int64(), pa.int8(), pa.uint64(), pa.float32()),
    *(pa.float64(), pa.bool_(), pa.timestamp("ns"), pa.date32(), pa.decimal128(38, 3), pa.null(), pa.binary(4)),
    *(pa.dictionary(pa.int8(), pa.string()), pa.struct({"x": pa.int32()}), pa.map_(pa.string(), pa.int32())),
    *(pa.duration("s"), pa.time64("us"), pa.float16(), pa.run_end_encoded(pa.int32(), pa.string())),
]
_WANTED = ["uri", "image_id", "probs", "logits", "top_classes", "top_probs", "label", "split", "shard", "byte_offset"]
_WANTED += ["byte_length", "class_name", "name", "position"]


def _cell(kind: pa.DataType) -> st.SearchStrategy[object]:
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = pa.string()
    if pa.types.is_fixed_size_list(kind):
        return st.lists(_cell(kind.value_type), min_size=kind.list_size, max_size=kind.list_size)
    if hasattr(kind, "value_type") and not pa.types.is_map(kind):
        return st.one_of(st.just([0.5, 0.25, 0.25]), st.lists(_cell(kind.value_type), max_size=5), st.none())
    if pa.types.is_floating(kind):
        return _NUMBERS
    if pa.types.is_integer(kind):
        return _WHOLE
    if pa.types.is_struct(kind):
        return st.none() | st.just({"x": 1})
    if pa.types.is_map(kind):
        return st.just([("a", 1)])
    if pa.types.is_boolean(kind):
        return st.booleans()
    if "string" in str(kind):
        return st.one_of(st.sampled_from([*URIS, *CLASSES, "labeled", "unlabeled", "holdout", "0", "9"]), odd_text())
    if "binary" in str(kind):
        return st.binary(min_size=4, max_size=4)
    return st.just(1) | st.none()


def _column(kind: pa.DataType, rows: int) -> st.SearchStrategy[list[object]]:
    cell = _cell(kind)
    return st.lists(cell if rows % 2 else cell | st.none(), min_size=rows, max_size=rows)


@st.composite
def made(draw: st.DrawFn, first: tuple[str, ...]) -> bytes:
    """A table with some of the first columns and others."""
    ending = draw(st.sampled_from([*ENDINGS, ".parquet", ".arrow"]))
    rows = draw(st.integers(0, 6))
    names = [*draw(st.lists(st.sampled_from(first), min_size=1, max_size=len(first)))]
    names += draw(st.lists(st.sampled_from(_WANTED), max_size=2))
    columns, fields = [], []
    for name in names:
        likely = {"uri": pa.string(), "image_id": pa.int64(), "label": pa.string(), "split": pa.string()}
        usual = likely.get(name, _LIST_TYPES[0])
        kind = draw(st.sampled_from([usual, usual, usual, *_LIST_TYPES, *_TYPES]))
        column = draw(_column(kind, rows))
        try:
            plain = pa.string() if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind
            array = pa.array(column, plain)
            if plain is not kind:
                array = array.dictionary_encode() if pa.types.is_dictionary(kind) else pa.compute.run_end_encode(array)
        except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeEncodeError):
            array = pa.nulls(rows)
        columns.append(array)
        fields.append(pa.field(name, array.type))
    try:
        return write(pa.Table.from_arrays(columns, schema=pa.schema(fields)), ending)
    except (pa.ArrowException, OSError):
        assume(False)
        raise AssertionError from None


@st.composite
def text(draw: st.DrawFn) -> bytes:
    """Lines of a CSV or TSV file."""
    ending = draw(st.sampled_from([2, 3]))
    comma = ",\t"[ending - 2]
    names = comma.join(draw(st.lists(st.sampled_from(["uri", "label", "split", "image_id", "probs"]), max_size=4)))
    cells = st.one_of(st.sampled_from(["new/1.jpg", "cat.png", "cat", "1", '"a"', '"', '"a\nb"', ""]), odd_text())
    lines = draw(st.lists(st.lists(cells, max_size=4).map(comma.join), max_size=5))
    body = draw(st.sampled_from(["\n", "\r\n", "\r"])).join([names, *lines])
    return (
        bytes([ending])
        + draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]))
        + body.encode("utf-8", "surrogatepass")
    )


def _listings() -> st.SearchStrategy[bytes]:
    return often(_listing_seeds()) | made(("uri", "label", "split")) | text()


def _label_files() -> st.SearchStrategy[bytes]:
    return often(_label_seeds()) | made(("uri", "label")) | text()


TARGETS = [
    Target(
        "soft labels",
        _soft_label_seeds,
        lambda: often(_soft_label_seeds()) | made(("uri", "image_id", "probs", "logits", "top_classes", "top_probs")),
        _read_soft_labels,
        6000,
    ),
    Target("listings", _listing_seeds, _listings, _read_listing, 6000),
    Target("label files", _label_seeds, _label_files, _read_labels, 5000),
    Target("listings, added", _listing_seeds, _listings, _add_listing, 75, writes=True),
    Target("label files, added", _label_seeds, _label_files, _add_labels, 75, writes=True),
]
