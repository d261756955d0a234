"""The account of a manifest: what its lineage says to a person, without reading a row.

lineage --> options, funnel, classes with their estimated precision, warnings
"""

from __future__ import annotations

import json
import math
from typing import Any

from curator.curation.manifests import Manifest
from curator.curation.parameters import DEFAULTS
from curator.errors import plural, some

MANY_COPIES = 10  # above this a class is said to be copied too often


def options(manifest: Manifest) -> dict[str, Any]:
    """The options that differ from what they are when nobody says anything; the policy and the quota always."""
    parameters = manifest.lineage["parameters"]
    shown = {"per-class": parameters["per_class"], "policy": parameters["policy"]}
    for name, value in parameters.items():
        if name not in ("generation", "policy_sql") and value not in (None, DEFAULTS[name]):
            shown[name.replace("_", "-")] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
    return shown


def funnel(manifest: Manifest) -> list[tuple[str, int]]:
    """What each rule leaves, in images, in the order of the rules; the last is rows, counted with copies."""
    counts = manifest.lineage["funnel"]
    parameters = manifest.lineage["parameters"]
    steps = [("in the pool", counts["pool"])]
    if counts["unreadable"]:
        steps.append(("readable", counts["pool"] - counts["unreadable"]))
    steps.append(("labeled by the teacher", counts["labeled"]))
    if parameters["where"]:
        steps.append(("let through by --where", counts["pass_where"]))
    said = "calibrated " if parameters.get("calibration") is not None else ""
    steps += [
        (f"with a {said}confidence above {parameters['min_confidence']:g}", counts["above_threshold"]),
        ("not rejected by a reviewer", counts["not_rejected"]),
        *_unique(counts, parameters),
        (f"let through by the policy {parameters['policy']}", counts["eligible"]),
        ("kept, within the quota", manifest.unique_images),
        ("rows, with copies", manifest.rows),
    ]
    return steps


def _unique(counts: dict[str, int], parameters: dict[str, Any]) -> list[tuple[str, int]]:
    if not parameters.get("dedup"):
        return [("not in the holdout (candidates)", counts["candidates"])]
    return [
        ("not in the holdout", counts["not_leaking"]),
        ("without repeats (candidates)", counts["candidates"]),
    ]


def classes(manifest: Manifest) -> list[dict[str, Any]]:
    """The classes of the lineage with an estimate of how many of their kept images are rightly labeled.

    `precision` is the share of rightly labeled ones among the holdout images that the teacher puts into the class at or
    above its cut-off, `low` to `high` its 95 % interval; all three are None without such images.
    """
    found = []
    for row in manifest.classes:
        seen, right = row["holdout_seen"], row["holdout_right"]
        low, high = wilson(right, seen) if seen else (None, None)
        found.append(row | {"precision": right / seen if seen else None, "low": low, "high": high})
    return found


def precision(manifest: Manifest) -> tuple[int, int]:
    """Holdout images at or above the cut-off of the class that the teacher puts them into: right ones, and all."""
    rows = manifest.classes
    return sum(row["holdout_right"] for row in rows), sum(row["holdout_seen"] for row in rows)


def short(manifest: Manifest) -> list[dict[str, Any]]:
    """Classes with fewer images to choose from than the quota, the fewest first."""
    names = set(manifest.short_classes)
    return sorted((row for row in manifest.classes if row["class_name"] in names), key=lambda row: row["eligible"])


def warnings(manifest: Manifest) -> list[str]:
    """What is wrong or unusual, as sentences."""
    counts, parameters = manifest.lineage["funnel"], manifest.lineage["parameters"]
    said = []
    if few := short(manifest):
        filled = "copies fill them up" if parameters["fill"] == "copies" else "they stay short"
        if parameters["fill"] == "copies" and parameters["max_copies"]:
            filled += f", but no image counts more than {parameters['max_copies']:,} times"
        said.append(
            f"{_classes(len(few), 'has', 'have')} fewer images to choose from than the quota of "
            f"{parameters['per_class']:,}, and {filled}: {some((row['class_name'] for row in few), 8)}."
        )
    if empty := manifest.empty_classes:
        said.append(f"{_classes(len(empty), 'has', 'have')} no image to choose from, so no row: {some(empty, 20)}.")
    copied = [row for row in manifest.classes if row["most_copies"] > MANY_COPIES]
    if copied:
        copied.sort(key=lambda row: (-row["most_copies"], row["label"]))
        worst = some((f"{row['class_name']} ({row['most_copies']:,})" for row in copied), 8)
        said.append(
            f"{_classes(len(copied), 'repeats', 'repeat')} an image more than {MANY_COPIES} times: {worst}. A student "
            "may learn such images by heart, wrong labels among them; --max-copies caps them."
        )
    if unscanned := counts["not_checked_for_leaks"]:
        were = plural(unscanned, "pool image was", "pool images were")
        said.append(
            f"{unscanned:,} {were} never scanned, so not compared with the holdout: images of it may be among the rows."
        )
    near = manifest.lineage.get("near_duplicates")
    if near and near["holdout"] and near["since"]:
        added = plural(near["since"], "image was added", "images were added")
        which = f"{near['since']:,} {added}" if near["scan"] else "Nothing was compared"
        when = "since the last scan for near-duplicates" if near["scan"] else "with the holdout but for its bytes"
        said.append(
            f"{which} {when}: pictures close to one of the holdout may be among the rows. curator quality leaks"
        )
    if (waiting := counts["pool"] - counts["unreadable"] - counts["labeled"]) > 0:
        have = plural(waiting, "readable pool image has", "readable pool images have")
        said.append(f"{waiting:,} {have} no label of generation {manifest.generation}, and could not be selected.")
    return said


def wilson(right: float, total: float, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share, 95 % by default (Wilson, "Probable inference", JASA 1927)."""
    if not total:
        return 0.0, 1.0
    share, scale = right / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def _classes(count: int, one: str, more: str) -> str:
    return f"{count:,} {plural(count, f'class {one}', f'classes {more}')}"
