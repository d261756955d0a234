"""Why one image is in a manifest, or why it is not.

the tables at the manifest's versions -> the steps of its selection, for this image -> the first rule that keeps it out
its files ---------------------------> the row, if there is one
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, NamedTuple

from curator import queries
from curator.curation import manifests, selection
from curator.curation.manifests import Manifest
from curator.curation.parameters import Parameters
from curator.errors import InputError
from curator.storage.store import Store


class Explanation(NamedTuple):
    """What became of one image in one manifest.

    Attributes:
        image_id: The image.
        is_in: Whether it is in the manifest.
        reason: Why, in one sentence.
        facts: What the rules looked at: uri, split, class, confidence, decision, rank, cut_off, copies, ...
    """

    image_id: int
    is_in: bool
    reason: str
    facts: dict[str, Any]


def explain(store: Store, name: str, image_id: int) -> Explanation:
    """Looks for an image in a manifest and for the rule that decided.

    Args:
        store: The store.
        name: Name of the manifest.
        image_id: The image.

    Raises:
        InputError: There is no such manifest or no such image.
    """
    found = manifests.find(store, name)
    parameters = Parameters(**found.lineage["parameters"])
    row = _row(store, found, image_id)
    with closing(store.connect(found.lineage["tables"])) as con:
        selection.prepare(con, parameters)
        manifests.read_earlier(store, con, parameters)
        # The policy may take long, so it is asked twice and no more: for the image, and for the others of its class.
        steps = selection.eligible(con, parameters)
        values = parameters.bound | {"image_id": image_id}
        query = queries.compose(steps, "select label, score from eligible where image_id = $image_id")
        mine = queries.rows(con, query, **values)
        place = mine[0] if mine else {"label": None, "score": None}
        judged = queries.rows(con, queries.compose(steps, selection.judging("explanation", parameters)), **values)
        if mine and judged:
            query = queries.compose(steps, queries.text("rank_in_class"))
            place |= queries.rows(con, query, **values, **place)[0]
        names = {c["label"]: c["class_name"] for c in queries.rows(con, "select * from classes")}
    if not judged:
        if not store.rows("select 1 from images where image_id = $id", id=image_id):
            raise InputError(
                f"there is no image {image_id}",
                "curator sql \"select image_id, uri from images where uri like '%...%'\"",
            )
        reason = f"it was added to the store after the version of the images table that '{name}' was built from"
        return Explanation(image_id, bool(row), reason, {})
    facts = judged[0] | {"rank": None, "of_class": None, "is_eligible": bool(mine)} | place
    for label in ("teacher_label", "new_label", "label"):
        facts[label.replace("label", "class")] = names.get(facts.pop(label))
    cut = next((c for c in found.classes if c["class_name"] == facts["class"]), None)
    facts |= {"kept_of_class": cut["kept"] if cut else None, "cut_off": cut["cut_off"] if cut else None}
    facts |= {"copies": row["copies"] if row else 0, "weight": row["weight"] if row else None}
    return Explanation(image_id, bool(row), _reason(facts, parameters, bool(row)), facts)


def _row(store: Store, manifest: Manifest, image_id: int) -> dict[str, Any]:
    files = [str(file) for file in manifests.files(manifest)]
    with closing(store.connect()) as con:
        con.read_parquet(files).create_view("rows")
        rows = queries.rows(con, "select copies, weight from rows where image_id = $image_id", image_id=image_id)
    return rows[0] if rows else {}


def _reason(facts: dict[str, Any], parameters: Parameters, is_in: bool) -> str:
    """The rule that decided, as a sentence; the rules are asked in the order of the selection."""
    if is_in:
        times = "once" if facts["copies"] == 1 else f"{facts['copies']} times"
        first = facts["is_accepted"] and parameters.accepted
        person = ", a class that a reviewer gave" if facts["decision"] == "relabel" else ""
        return (
            f"it counts {times} as {facts['class']}{person}: it is number {facts['rank']} of the {facts['of_class']} "
            f"images that the policy {parameters.policy} lets into the class, and the first {facts['kept_of_class']} "
            "are kept" + (", what reviewers accepted or gave a class before all others" if first else "")
        )
    if facts["split"] != "unlabeled":
        return f"it is in the {facts['split']} split, and only the unlabeled pool is selected from"
    if facts["status"] == "unreadable":
        return "it cannot be read"
    if not facts["is_labeled"]:
        return f"the teacher of generation {parameters.generation} has not labeled it"
    if not facts["passes_where"]:
        return f"--where does not let it through: {parameters.where}"
    if not facts["is_above"]:
        under = "" if parameters.calibration is None else f" under the temperature {parameters.calibration:g}"
        return f"its confidence {facts['confidence']:.6g} is not above {parameters.min_confidence:g}{under}"
    if facts["decision"] == "reject":
        return "a reviewer rejected it"
    if facts["is_twin"]:
        return "an image of the holdout has the same bytes"
    if facts["is_leak"]:
        return "it shows an image of the holdout, says the scan for near-duplicates"
    if not facts["is_candidate"]:
        return (
            "it repeats a labeled image, or a candidate that a reviewer decided on or that is more confident, and "
            "--dedup leaves one"
        )
    if not facts["is_eligible"]:
        return f"the policy {parameters.policy} does not let it through; its confidence is {facts['confidence']:.6g}"
    said = (
        f"it is number {facts['rank']} of the {facts['of_class']} images that the policy {parameters.policy} lets into "
        f"the class {facts['class']}, and the first {facts['kept_of_class']} are kept"
    )
    if facts["score"] != facts["confidence"]:  # the policy ranks by something else
        return said
    ties = " (of equals the lower image_id comes first)" if facts["confidence"] == facts["cut_off"] else ""
    return f"{said}; the least confident of them has {facts['cut_off']:.6g}, this one {facts['confidence']:.6g}{ties}"
