"""The tables of a store: every column once, with its type and its meaning.

SQL views, the loader, the app and the docs take names and types from here. Types are limited to what Delta Lake
knows (no unsigned integers, no float16).
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

SPLITS = ("labeled", "unlabeled", "holdout")
DECISIONS = ("accept", "reject", "relabel", "skip")
STATUSES = ("ok", "unreadable", "unscanned")
SOURCES = ("labeled", "pseudo", "review")

_TIME = pa.timestamp("us", tz="UTC")
# Delta Lake reads list items back under the name "element"; using it from the start keeps one schema everywhere.
_CLASSES = pa.list_(pa.field("element", pa.int16()))
_PROBS = pa.list_(pa.field("element", pa.float32()))


class Column(NamedTuple):
    """One column of a table."""

    name: str
    type: pa.DataType
    meaning: str


class Table(NamedTuple):
    """One table of the store."""

    name: str
    grain: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the table's files."""
        return pa.schema([pa.field(column.name, column.type) for column in self.columns])


IMAGES = Table(
    "images",
    "one row per image",
    (
        Column("image_id", pa.int64(), "63-bit hash of the uri, see sql/image_ids.sql"),
        Column("uri", pa.string(), "path relative to the store's root, an absolute path, or SHARD::MEMBER"),
        Column("shard", pa.string(), "the tar file that holds the bytes; null for a file of its own"),
        Column("byte_offset", pa.int64(), "first byte of the picture in the shard"),
        Column("byte_length", pa.int64(), "size of the picture in bytes"),
        Column("split", pa.string(), "labeled, unlabeled or holdout"),
        Column("label", pa.int16(), "trusted class index; null in the pool"),
        Column("width", pa.int32(), "pixels, after EXIF orientation; null until scanned"),
        Column("height", pa.int32(), "pixels, after EXIF orientation; null until scanned"),
        Column("content_hash", pa.string(), "blake2b-128 of the file's bytes, hex; null until scanned"),
        Column("phash", pa.int64(), "64-bit perceptual hash; null until scanned"),
        Column("status", pa.string(), "ok, unreadable or unscanned"),
        Column("problem", pa.string(), "why the picture is unreadable; null otherwise"),
        Column("added_at", _TIME, "when the row was added"),
    ),
)

LABELS = Table(
    "labels",
    "one row per image and generation: the teacher's soft label",
    (
        Column("image_id", pa.int64(), "the image"),
        Column("generation", pa.int16(), "generation of the model that gave the label"),
        Column("model", pa.string(), "name of that model"),
        Column("split", pa.string(), "the image's split when it was labeled"),
        Column("label", pa.int16(), "top-1 class; the lowest index wins a tie"),
        Column("confidence", pa.float32(), "top-1 probability, from the full distribution, not rounded"),
        Column("margin", pa.float32(), "top-1 minus top-2 probability"),
        Column("entropy", pa.float32(), "-sum p ln p over all classes, in nats"),
        Column("top_classes", _CLASSES, "the kept classes, most probable first"),
        Column("top_probs", _PROBS, "their probabilities, rounded, see curator/softlabels.py"),
        Column("tail", pa.float32(), "probability mass outside the kept classes, rounded too"),
    ),
)

REVIEWS = Table(
    "reviews",
    "one row per decision of a person; the latest of an image wins",
    (
        Column("image_id", pa.int64(), "the image"),
        Column("generation", pa.int16(), "generation of the label that was judged; null if none"),
        Column("decision", pa.string(), "accept, reject, relabel or skip (skip takes an earlier decision back)"),
        Column("new_label", pa.int16(), "class index given by a relabel; null otherwise"),
        Column("reviewer", pa.string(), "who decided"),
        Column("reason", pa.string(), "free text; null if none"),
        Column("decided_at", _TIME, "when"),
    ),
)

MODELS = Table(
    "models",
    "one row per trained or imported model",
    (
        Column("model", pa.string(), "unique name"),
        Column("generation", pa.int16(), "0 for the first teacher; a student is one above its manifest's labels"),
        Column("recipe", pa.string(), "the resolved recipe as JSON; null for a model from outside"),
        Column(
            "weights",
            pa.string(),
            "path of the weights, relative to the store; null for a model from outside",
        ),
        Column("weights_hash", pa.string(), "sha256 of the weights file"),
        Column(
            "parents",
            pa.list_(pa.field("element", pa.string())),
            "the models whose labels or weights it used",
        ),
        Column("manifest", pa.string(), "the manifest it was trained on; null for none"),
        Column("metrics", pa.string(), "last training figures as JSON"),
        Column("created_at", _TIME, "when it was registered"),
    ),
)

METRICS = Table(
    "metrics",
    "one row per run, step and name",
    (
        Column("model", pa.string(), "the run"),
        Column("step", pa.int64(), "optimiser steps done"),
        Column("epoch", pa.float64(), "passes over the labeled images done"),
        Column("name", pa.string(), "loss, lr, images_per_second, top1, ..."),
        Column("value", pa.float64(), "the figure"),
        Column("at", _TIME, "when"),
    ),
)

CLASSES = Table(
    "classes",
    "one row per class",
    (
        Column("label", pa.int16(), "class index, 0 to C-1"),
        Column("class_name", pa.string(), "unique name"),
    ),
)

MANIFESTS = Table(
    "manifests",
    "one row per manifest",
    (
        Column("name", pa.string(), "unique name"),
        Column("path", pa.string(), "folder of its Parquet files, relative to the store"),
        Column("generation", pa.int16(), "generation of the soft labels"),
        Column("per_class", pa.int64(), "the quota"),
        Column("rows", pa.int64(), "rows counted with their copies"),
        Column("unique_images", pa.int64(), "different images"),
        Column("sha256", pa.string(), "hash of the rows and the parameters"),
        Column("lineage", pa.string(), "how it was made, as JSON"),
        Column("created_at", _TIME, "when it was published"),
    ),
)

PACKED = Table(
    "packed",
    "one row per image and pack: where a training finds its copy of the picture",
    (
        Column("image_id", pa.int64(), "the image"),
        Column("pack", pa.string(), "name of the pack, from its settings: 256-q90, or original"),
        Column("shard", pa.string(), "the pack's tar file that holds the bytes, relative to the store"),
        Column("byte_offset", pa.int64(), "first byte of the picture in the shard"),
        Column("byte_length", pa.int64(), "size of the picture in bytes"),
        Column("width", pa.int32(), "pixels of the packed picture, after EXIF orientation"),
        Column("height", pa.int32(), "pixels of the packed picture, after EXIF orientation"),
        Column("content_hash", pa.string(), "blake2b-128 of the packed bytes, hex"),
        Column("source_hash", pa.string(), "blake2b-128 of the original's bytes as they were read, hex"),
        Column("added_at", _TIME, "when the row was added"),
    ),
)

TABLES = {table.name: table for table in (IMAGES, LABELS, REVIEWS, MODELS, METRICS, CLASSES, MANIFESTS, PACKED)}

MANIFEST_ROW = Table(
    "manifest row",
    "one row per selected image, ordered by label, then rank",
    (
        Column("image_id", pa.int64(), "the image"),
        Column("uri", pa.string(), "where it is, as in images"),
        Column("shard", pa.string(), "tar file, or null"),
        Column("byte_offset", pa.int64(), "first byte in the shard, or null"),
        Column("byte_length", pa.int64(), "bytes in the shard, or null"),
        Column("source", pa.string(), "pseudo, or review where a person gave the class"),
        Column("label", pa.int32(), "the class the row counts for"),
        Column("class_name", pa.string(), "its name"),
        Column("confidence", pa.float32(), "the teacher's top-1 probability"),
        Column("copies", pa.int32(), "how often the row counts in one pass"),
        Column("weight", pa.float32(), "what the row weighs in the loss; 1 unless the policy says otherwise"),
        Column("generation", pa.int32(), "generation of the soft label"),
        Column("top_classes", pa.list_(pa.field("element", pa.int32())), "kept classes, most probable first"),
        Column("top_probs", _PROBS, "their probabilities"),
        Column("tail", pa.float32(), "probability mass outside the kept classes"),
    ),
)
