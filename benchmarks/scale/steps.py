"""Sizes, requests, time and cost of one generation over a pool, from measured rates and from what is assumed.

    Measured + Assumed, images, classes --arithmetic--> bytes, requests, seconds of each step, USD

What takes twice as long for twice as many images is taken as such; the hashes of near-duplicates grow with the square.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from rates import cell, text

CLASSES = (1000, 21_000)
PART_SECONDS = 30.0  # curator/teachers/labeling.py
MENDS = {
    "near-duplicates": "one machine compares all hashes, which grows with the square: leave the scan out (copies "
    "of the same bytes are kept out without it), or scan stores of a few million images each. Not built: holdout "
    "against pool alone, which grows with the pool",
    "start of label": "each rank counts and sorts the whole pool for itself, at each start: label one `--split` or one "
    "store at a time. Not built: one rank sorts, once, and writes the list down",
    "build-manifest": "one machine reads all labels: `--engine spark`, or one with more cores and memory",
    "sorted for the app": "one machine sorts all labels; nothing waits for it: let it run while the student trains",
    "changes of a generation": "one machine joins two generations; nothing waits for it: let it run meanwhile",
    "commit of the parts": "fewer and larger parts: `label --part-seconds 300`",
    "add-images, scanned": "more hosts, each with its own shards; or `--no-scan`, which does without hashes",
}
GPU_WORK = ("label", "train")


class Assumed(NamedTuple):
    """What assumptions.toml says."""

    prices: dict[str, float]
    gpu: dict[str, float]
    hosts: dict[str, int]
    pools: dict[int, int]
    work: dict[str, float]


def assumed(file: Path) -> Assumed:
    """Reads the assumptions."""
    found = tomllib.loads(file.read_text("utf-8"))
    return Assumed(**found | {"pools": {int(images): hosts for images, hosts in found["pools"].items()}})


class Rates(NamedTuple):
    """Measured figures: of the other benchmarks, and of this one (`own`, see questions.py)."""

    own: dict[str, Any]
    picture: float  # bytes
    packed: float
    scan: float  # images/s of a core
    decode: float  # CPU seconds of an image
    labels: float  # bytes of a row at 1000 classes
    select: float  # rows of the pool a second, the whole manifest
    unique: float  # images of the manifest, as a share of the pool
    rows: float  # its rows, copies counted, as a share of the pool
    changes: float  # seconds of an image
    pairs: float  # seconds of a million hashes with themselves
    label: float  # images/s here, ONNX Runtime on the CPU
    train: float  # images/s here
    app: float  # seconds until the gallery of 10M images is there


def rates(own: dict[str, Any]) -> Rates:
    """Takes the figures from where they stand."""
    lite0 = "tf_efficientnet_lite0, 224 px | 2020 x 82 KB | onnxruntime"
    return Rates(
        own,
        picture=text("loader", r"mean ([\d.]+) KB") * 1e3,
        packed=cell("packing", "256-q90", "bytes a picture"),
        scan=cell("duplicates", "curator add-images", "images/s (each run)") / 2,
        decode=cell("labeling", lite0, "CPU ms an image: loader") / 1e3,
        labels=cell("storage", "synthetic | top-20", "bytes an image"),
        select=cell("selection", "100,000,000 |", "pool rows/s"),
        unique=cell("selection", "100,000,000 |", "images") / 100e6,
        rows=cell("selection", "100,000,000 | 43,333 |", "rows") / 100e6,
        changes=text("disagreement", r"Making the tables[^:]*: ([\d.]+) s") / 10e6,
        pairs=cell("duplicates", "pairs within 10 bits: ", "s") + cell("duplicates", "pairs within 10 bits of a", "s"),
        label=cell("labeling", lite0, "label, images/s"),
        train=cell("training", "efficientnet_lite0, 224 px, JPEGs", "train, images/s (each run)"),
        app=cell("app", "Gallery", "first load, s"),
    )


def sizes(rates: Rates, classes: int) -> dict[str, tuple[float, float]]:
    """Bytes, and the share of the pool's images that they are of."""
    own, wide = rates.own, rates.own["wide_21000"]["bytes"] / rates.own["wide_1000"]["bytes"]
    manifest = own[f"manifest_{classes}"]
    return {
        "pictures": (rates.picture, 1),
        "table images": (own["parts"]["image_row_bytes"], 1),
        "table labels": (rates.labels * (1 if classes == CLASSES[0] else wide), 1),
        "sorted for the app": (own["publication"]["bytes"], 1),
        "manifest": (manifest["bytes"], rates.unique),
        "manifest laid out for the loader": (manifest["laid_out"], rates.unique),
        "packed pictures of the manifest": (rates.packed, rates.unique),
    }


def rank_rate(rates: Rates, known: Assumed, classes: int) -> float:
    """Images a second of a rank: its GPU, then the softmax in the same thread; summary and decoding go on beside it."""
    wide, gpu = rates.own[f"wide_{classes}"], known.gpu["label_images_per_second"]
    in_turn = 1 / (1 / gpu + 1 / wide["softmax_rows"])
    return min(in_turn, wide["summary_rows"], known.hosts["cores"] / known.hosts["gpus"] / rates.decode)


def start(rates: Rates, images: float) -> float:
    """Seconds until a rank has its first batch."""
    return rates.own["start"]["torchrun"] + images * rates.own["listing"]["first"] / rates.own["rows"]


def parts(rates: Rates, known: Assumed, images: float, classes: int) -> float:
    """Parts of a run that nobody disturbs."""
    ranks = known.pools[int(images)] * known.hosts["gpus"]
    return max(ranks, images / rank_rate(rates, known, classes) / PART_SECONDS)


def seconds(rates: Rates, known: Assumed, images: float, classes: int) -> dict[str, float]:
    """Seconds of each step on the assumed hosts."""
    hosts = known.pools[int(images)]
    gpus, own = hosts * known.hosts["gpus"], rates.own
    slower = own[f"manifest_{classes}"]["seconds"] / own[f"manifest_{CLASSES[0]}"]["seconds"]
    return {
        "add-images, scanned": images / (rates.scan * hosts * known.hosts["cores"]),
        "near-duplicates": rates.pairs * (images / 1e6) ** 2,
        "start of label": start(rates, images),
        "label": images / (gpus * rank_rate(rates, known, classes)),
        "commit of the parts": parts(rates, known, images, classes) * own["commit"]["commit_ms"] / 1e3,
        "sorted for the app": images * own["publication"]["seconds"] / own["publication"]["images"],
        "changes of a generation": images * rates.changes,
        "build-manifest": images / rates.select * slower,
        "train": known.work["passes"] * images * rates.rows / (gpus * known.gpu["train_images_per_second"]),
    }


def here(rates: Rates) -> dict[str, float]:
    """Seconds of an image on the machine that measured, where that is another figure: two cores and no GPU."""
    return {"add-images, scanned": 1 / rates.scan / 2, "label": 1 / rates.label, "train": 10 * rates.rows / rates.train}


def requests(rates: Rates, known: Assumed, images: float, classes: int) -> dict[str, tuple[float, bool]]:
    """Requests to an object store, and whether they write."""
    size, by = sizes(rates, classes), known.work["request_bytes"]
    ranks = known.pools[int(images)] * known.hosts["gpus"]
    table = {name: images * share * each for name, (each, share) in size.items()}
    written = parts(rates, known, images, classes)
    return {
        "pictures for label, one file each": (images, False),
        "pictures for label, in tars": (table["pictures"] / by, False),
        "list of images, by each rank at a start": (ranks * (table["table images"] / by + 1), False),
        "parts of labels": (2 * written, True),  # the part, and what is put in its place when it is whole
        "labels and images for a manifest": (2 * written + (table["table labels"] + table["table images"]) / by, False),
        "packed pictures for training, all passes": (
            known.work["passes"] * table["packed pictures of the manifest"] / by,
            False,
        ),
    }


def costs(rates: Rates, known: Assumed, images: float, classes: int) -> dict[str, float]:
    """USD of a generation; of storage for a month."""
    price, took, size = known.prices, seconds(rates, known, images, classes), sizes(rates, classes)
    hosts = known.pools[int(images)]
    gpu_hour = hosts * known.hosts["gpus"] * price["gpu_hour"] / 3600
    core_hour = known.hosts["cores"] * price["core_hour"] / 3600
    pictures = size["pictures"][0] * images
    kept = sum(each * share * images for each, share in size.values())
    asked = requests(rates, known, images, classes)
    one_by_one = asked.pop("pictures for label, one file each")[0]

    def paid(count: float, writes: bool) -> float:
        return count / 1000 * price["put_1000" if writes else "get_1000"]

    return {
        "pictures kept a month": pictures / 1e9 * price["storage_gb_month"],
        "all the rest kept a month": (kept - pictures) / 1e9 * price["storage_gb_month"],
        "requests, pictures in tars": sum(paid(*each) for each in asked.values()),
        "requests, a file for each picture": paid(one_by_one, False),
        "GPUs: start, label": (took["start of label"] + took["label"]) * gpu_hour,
        "GPUs: train": took["train"] * gpu_hour,
        "cores: add-images": took["add-images, scanned"] * hosts * core_hour,
        "cores: one machine for the rest, near-duplicates left out": core_hour
        * sum(took[name] for name in ("sorted for the app", "changes of a generation", "build-manifest")),
    }
