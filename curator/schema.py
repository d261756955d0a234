"""The tables of a store: every column once, with its type and its meaning.

SQL views, the loader, the app and the docs take names and types from here. Types are limited to what Delta Lake
knows (no unsigned integers, no float16).
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

SPLITS = ("labeled", "unlabeled", "holdout")
DECISIONS = ("accept", "reject", "relabel", "skip")

_TIME = pa.timestamp("us", tz="UTC")
# Delta Lake reads list items back under the name "element"; using it from the start keeps one schema everywhere.
_CLASSES = pa.list_(pa.field("element", pa.int16()))
_PROBS = pa.list_(pa.field("element", pa.float32()))
_SQL = {
    pa.bool_(): "BOOLEAN",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    _TIME: "TIMESTAMPTZ",
}


def sql_type(kind: pa.DataType) -> str:
    """The name that DuckDB has for the type of a column."""
    return f"{sql_type(kind.value_type)}[]" if pa.types.is_list(kind) else _SQL[kind]


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

    @property
    def no_rows(self) -> str:
        """The query of a table that has no files yet, in the types that DuckDB reads from files.

        From an Arrow table DuckDB would know them by itself, but it first looks whether it is one of pandas, and that
        loads pandas where it is installed: 20 MiB and 0.2 s.
        """
        columns = ", ".join(f"null::{sql_type(column.type)} as {column.name}" for column in self.columns)
        return f"select {columns} where false"


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
        Column("top_probs", _PROBS, "their probabilities, rounded, see curator/generations/softlabels.py"),
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

DUPLICATES = Table(
    "duplicates",
    "one row per image that repeats another one; each scan replaces the whole table in one commit",
    (
        Column("image_id", pa.int64(), "the image"),
        Column(
            "group_id", pa.int64(), "lowest image_id of the images that repeat each other, on its side of the holdout"
        ),
        Column("nearest", pa.int64(), "the closest twin, of any split"),
        Column(
            "kind", pa.string(), "what shows it: bytes, phash, mirror (a phash of the mirrored picture) or embedding"
        ),
        Column("distance", pa.float32(), "to the closest twin: 0, differing bits of 64, or 1 minus the cosine"),
        Column("leak", pa.bool_(), "outside the holdout, and a twin of one of its images"),
        Column("holdout_twin", pa.int64(), "the closest holdout image; null unless leak"),
        Column("labeled_twin", pa.bool_(), "a twin of an image of the labeled split"),
        Column("scan", pa.string(), "the scan that found it"),
        Column("found_at", _TIME, "when"),
    ),
)

EMBEDDINGS = Table(
    "embeddings",
    "one row per image and model: the features that its last layer reads",
    (
        Column("image_id", pa.int64(), "the image"),
        Column("model", pa.string(), "name of the model"),
        Column("weights_hash", pa.string(), "sha256 of its weights"),
        Column("vector", pa.binary(), "D values of 8 bits with sign, scaled so that the largest is 127"),
    ),
)

HELD_OUT = Table(
    "held_out",
    "one row per labeled image and run of folds: the soft label of a model that was trained without the image",
    (
        Column("image_id", pa.int64(), "the image"),
        Column("run", pa.string(), "name of the run of folds"),
        Column(
            "fold", pa.int16(), "the fold that the image is in, 0 to K-1, see sql/folds.sql; -1 for imported labels"
        ),
        *LABELS.columns[LABELS.schema.get_field_index("label") :],
    ),
)

CALIBRATIONS = Table(
    "calibrations",
    "one row per fit; the newest of a model counts",
    (
        Column("model", pa.string(), "the model whose confidences it corrects"),
        Column("generation", pa.int16(), "its generation"),
        Column("temperature", pa.float64(), "T of p^(1/T), see sql/calibrated.sql; above 1 lowers confidences"),
        Column("nll_before", pa.float64(), "mean -ln p of the true class on the holdout, in nats, at T = 1"),
        Column("nll_after", pa.float64(), "the same under temperatures fitted without the image"),
        Column("ece_before", pa.float64(), "expected calibration error, 15 bins, at T = 1"),
        Column("ece_after", pa.float64(), "the same under temperatures fitted without the image"),
        Column("images", pa.int64(), "holdout images that it was fitted on"),
        Column("fitted_at", _TIME, "when"),
    ),
)

DRIFT = Table(
    "drift",
    "one row per generation, split, trusted class, class before and class after: two generations compared",
    (
        Column("generation", pa.int16(), "the later generation"),
        Column("previous", pa.int16(), "the one before it that has labels"),
        Column("split", pa.string(), "split of the images"),
        Column("truth", pa.int16(), "trusted class of images of the holdout; null in the other splits"),
        Column("label_before", pa.int16(), "class that the earlier teacher gave; null where it gave none"),
        Column("label_after", pa.int16(), "class that the later teacher gave; null where it gave none"),
        Column("images", pa.int64(), "how many images"),
        Column("confidence_before", pa.float64(), "mean confidence of the earlier teacher"),
        Column("confidence_after", pa.float64(), "mean confidence of the later teacher"),
        Column("basis", pa.string(), "digest of the names of the label files that it was counted from"),
    ),
)

CHANGES = Table(
    "changes",
    "one row per image and generation that gave it another class, or moved its confidence far",
    (
        Column("image_id", pa.int64(), "the image"),
        Column("generation", pa.int16(), "the later generation"),
        Column("split", pa.string(), "split of the image"),
        Column("label_before", pa.int16(), "class that the earlier teacher gave"),
        Column("label_after", pa.int16(), "class that the later teacher gave"),
        Column("confidence_before", pa.float32(), "the earlier teacher's confidence in its class"),
        Column("confidence_after", pa.float32(), "the later teacher's confidence in its class"),
        Column("severity", pa.float32(), "above 0 for another class, below 0 for the same, see sql/changes.sql"),
        Column("uri", pa.string(), "where it is, as in images"),
        Column("shard", pa.string(), "tar file, or null"),
        Column("byte_offset", pa.int64(), "first byte in the shard, or null"),
        Column("byte_length", pa.int64(), "bytes in the shard, or null"),
        Column("basis", pa.string(), "as in drift"),
    ),
)

BROWSE = Table(
    "browse",
    "one row per image and generation, sorted by split, class and confidence",
    (
        Column("image_id", pa.int64(), "the image"),
        Column("generation", pa.int16(), "generation of the label"),
        Column("split", pa.string(), "the image's split when it was labeled"),
        Column("label", pa.int16(), "top-1 class"),
        Column("confidence", pa.float32(), "as in labels"),
        Column("margin", pa.float32(), "as in labels"),
        Column("entropy", pa.float32(), "as in labels"),
        Column("uri", pa.string(), "where it is, as in images"),
        Column("shard", pa.string(), "tar file, or null"),
        Column("byte_offset", pa.int64(), "first byte in the shard, or null"),
        Column("byte_length", pa.int64(), "bytes in the shard, or null"),
        Column("basis", pa.string(), "digest of the names of the label files that it was sorted from"),
    ),
)

HISTOGRAMS = Table(
    "histograms",
    "one row per generation, split, class and step of confidence that holds an image",
    (
        Column("generation", pa.int16(), "generation of the labels"),
        Column("split", pa.string(), "split of the images"),
        Column("label", pa.int16(), "top-1 class"),
        Column("step", pa.int16(), "confidence in steps of 0.02, 0 to 49; 0.02 itself counts in the second step"),
        Column("images", pa.int64(), "how many images"),
        Column("basis", pa.string(), "as in browse"),
    ),
)

AUDITS = Table(
    "audits",
    "one row per sampled image: which images a precision is estimated from, drawn before anybody looked",
    (
        Column("generation", pa.int16(), "generation whose labels are audited"),
        Column("seed", pa.int64(), "seed of the draw"),
        Column("per_class", pa.int32(), "images drawn of each class"),
        Column("min_confidence", pa.float32(), "only images with a confidence above this were drawn from"),
        Column("image_id", pa.int64(), "the image"),
        Column("label", pa.int16(), "class that the teacher gave"),
        Column("confidence", pa.float32(), "the teacher's confidence"),
        Column("stratum", pa.int16(), "range of confidences within the class, 0 is the lowest"),
        Column("stratum_images", pa.int64(), "images of the class in that range, from which it was drawn"),
        Column("place", pa.int32(), "in which turn of its class it is to be looked at, from 1"),
        Column("drawn_at", _TIME, "when"),
    ),
)

EVALUATIONS = Table(
    "evaluations",
    "one row per evaluation and figure; the newest of a figure counts",
    (
        Column("model", pa.string(), "the model that was evaluated"),
        Column("suite", pa.string(), "clean, class, reliability, attack, corruption, perturbation or outside"),
        Column("kind", pa.string(), "the class, attack, corruption, perturbation or folder; null for all together"),
        Column(
            "level", pa.float64(), "class index, start of a bin, eps of an attack, severity of a corruption; or null"
        ),
        Column("measure", pa.string(), "top1, top5, ece, confidence, mce, flip_probability, auroc_energy, ..."),
        Column("value", pa.float64(), "the figure"),
        Column("low", pa.float64(), "lower end of its 95 % interval; null where none was taken"),
        Column("high", pa.float64(), "upper end of its 95 % interval"),
        Column("images", pa.int64(), "images that it was taken from"),
        Column("seed", pa.int64(), "seed of the draws"),
        Column("basis", pa.string(), "digest of the holdout images and their classes; the same for what compares"),
        Column("options", pa.string(), "what else it depends on, as JSON"),
        Column("at", _TIME, "when"),
    ),
)

TABLES = {
    table.name: table
    for table in (
        IMAGES, LABELS, REVIEWS, MODELS, METRICS, CLASSES, MANIFESTS, PACKED, DUPLICATES, EMBEDDINGS, HELD_OUT,
        CALIBRATIONS,
        DRIFT, CHANGES, BROWSE, HISTOGRAMS, AUDITS, EVALUATIONS,
    )
}  # fmt: skip

# Where a table's name is also the name of a folder of artefacts, the table lies beside it.
FOLDERS = {name: name for name in TABLES} | {"manifests": "manifest_table", "models": "model_table"}
# Made when something is first written to them; until then they are empty.
LATER = {
    "packed", "duplicates", "embeddings", "held_out", "calibrations", "drift", "changes", "browse", "histograms",
    "audits", "evaluations",
}  # fmt: skip

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
