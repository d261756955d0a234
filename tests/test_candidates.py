"""What keeps pool images out of a manifest, or lets them in: near leaks, repeats, decisions, a temperature."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROBS, Answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import picture, write

from curator.curation import account, building, manifests, selection
from curator.curation.explanation import explain
from curator.curation.parameters import Parameters
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.repeats import duplicates
from curator.schema import CALIBRATIONS, DUPLICATES, MANIFESTS
from curator.storage import additions
from curator.storage.store import ABSENT, Store

WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def scanned(store: Store, ids: dict[str, int], groups: str, leaks: str = "", labeled: str = "") -> None:
    """Writes what a scan would have found: groups like "abc de", and letters near the holdout or labeled images."""
    rows = []
    for group in groups.split():
        for letter in group:
            row: dict[str, Any] = {
                "image_id": ids[letter],
                "group_id": min(ids[other] for other in group),
                **{"nearest": ids[group[0]], "kind": "phash", "distance": 2.0, "leak": letter in leaks},
                **{"labeled_twin": letter in labeled, "scan": "s", "found_at": WHEN},
            }
            rows.append(row)
    additions.append(store, "duplicates", pa.Table.from_pylist(rows, DUPLICATES.schema))


def kept(store: Store, ids: dict[str, int], name: str, **options: Any) -> str:
    """The letters of the images of a manifest, sorted."""
    built = building.build(store, name, {"per_class": 9, **options})
    names = {image_id: letter for letter, image_id in ids.items()}
    (verdict,) = manifests.check(store, name)
    assert verdict.ok, verdict
    return "".join(sorted(names[i] for i in pq.read_table(built.path)["image_id"].to_pylist()))


def test_near_leaks_stay_out_unless_they_are_to_be_kept(store: Store, ids: dict[str, int]) -> None:
    assert kept(store, ids, "before") == "abcdefghi"
    assert manifests.find(store, "before").lineage["tables"]["duplicates"] == store.versions()["duplicates"]
    scanned(store, ids, "ab ef", leaks="ae")
    assert kept(store, ids, "after") == "bcdfghi"
    assert kept(store, ids, "all", near_leaks="keep") == "abcdefghi"
    funnel = manifests.find(store, "after").lineage["funnel"]
    assert (funnel["not_rejected"], funnel["not_leaking"], funnel["candidates"]) == (9, 7, 7)
    assert explain(store, "after", ids["a"]).reason == (
        "it shows an image of the holdout, says the scan for near-duplicates"
    )
    # A manifest from before the scan is built again as it was, and fails its check, for it would train on the holdout.
    assert building.build(store, "again", {}, as_of="before").unique_images == 9
    (verdict,) = manifests.check(store, "before")
    assert {found.check: found.offending for found in verdict.findings}["holdout_leak"] == 2


def test_a_manifest_from_before_the_table_was_thought_of(store: Store, ids: dict[str, int]) -> None:
    built = building.build(store, "old", {"per_class": 9})
    lineage = built.lineage | {"tables": {k: v for k, v in built.lineage["tables"].items() if k != "duplicates"}}
    row = store.rows("select * replace ($lineage as lineage) from stored_manifests", lineage=json.dumps(lineage))
    table = pa.Table.from_pylist(row, MANIFESTS.schema)
    deltalake.write_deltalake(store.delta("manifests"), table, mode="overwrite")
    scanned(store, ids, "ab", leaks="ab")
    assert manifests.find(store, "old").lineage["tables"]["duplicates"] == ABSENT
    assert building.build(store, "again", {}, as_of="old").sha256 == built.sha256
    assert explain(store, "old", ids["a"]).is_in


def test_of_repeats_the_most_confident_stays(store: Store, ids: dict[str, int]) -> None:
    scanned(store, ids, "abd efi gh", labeled="g")
    assert kept(store, ids, "m") == "abcdefghi"
    assert kept(store, ids, "u", dedup=True) == "aceh"
    first = min("bc", key=lambda letter: ids[letter])  # they are equally confident
    found = manifests.find(store, "u")
    assert (found.lineage["funnel"]["not_leaking"], found.lineage["funnel"]["candidates"]) == (9, 4)
    assert explain(store, "u", ids["b"]).reason.startswith("it repeats a labeled image, or a candidate that a")
    scanned(store, ids, "bc")
    assert kept(store, ids, "equals", dedup=True, where="image_id in (" + f"{ids['b']}, {ids['c']})") == first


@given(
    group=st.lists(st.integers(0, 4), min_size=9, max_size=9),
    labeled=st.sets(st.sampled_from("abcdefghi")),
    leaks=st.sets(st.sampled_from("abcdefghi")),
    floor=st.sampled_from([0.0, 0.35, 0.65]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_repeats_by_the_rule(
    store: Store, ids: dict[str, int], group: list[int], labeled: set[str], leaks: set[str], floor: float
) -> None:
    """Group 0 stands for images without a twin."""
    groups = [[x for x, number in zip(PROBS, group, strict=True) if number == wanted] for wanted in range(1, 5)]
    expected = {x for x, number in zip(PROBS, group, strict=True) if number == 0 and max(PROBS[x]) > floor}
    for members in groups:
        able = [x for x in members if max(PROBS[x]) > floor and x not in labeled and x not in leaks]
        expected |= set(sorted(able, key=lambda x: (-np.float32(max(PROBS[x])), ids[x]))[:1])
    rows = [
        {"image_id": ids[x], "group_id": min(ids[y] for y in members), "leak": x in leaks, "labeled_twin": x in labeled}
        for members in groups
        for x in members
    ]
    parameters = Parameters(0, 9, min_confidence=floor, dedup=True)
    con = store.connect()
    try:
        con.register("found", pa.Table.from_pylist(rows, DUPLICATES.schema))
        con.execute("create or replace temp view stored_duplicates as from found")
        selection.prepare(con, parameters)
        steps = selection.steps(parameters)
        query = selection.queries.compose(steps, "select image_id from candidates")
        found = {row["image_id"] for row in selection.queries.rows(con, query, **parameters.bound)}
    finally:
        con.close()
    assert found == {ids[x] for x in expected}


def test_what_people_accepted_passes_the_threshold(store: Store, ids: dict[str, int]) -> None:
    for letter, decision, new in (("i", "accept", None), ("h", "relabel", "owl"), ("a", "reject", None)):
        add_review(store, ids[letter], decision, new)
    assert kept(store, ids, "m", min_confidence=0.55) == "bcefg"
    assert kept(store, ids, "accepted", min_confidence=0.55, accepted=True) == "bcefghi"
    found = manifests.find(store, "accepted").lineage["funnel"]
    assert [found[name] for name in ("above_threshold", "not_rejected", "candidates", "eligible")] == [8, 7, 7, 7]
    add_review(store, ids["i"], "skip")
    assert kept(store, ids, "undone", min_confidence=0.55, accepted=True) == "bcefgh"
    assert kept(store, ids, "ranked", min_confidence=0.55, accepted=True, policy="stratified") == "bcefgh"


def test_an_accept_says_nothing_of_another_class(store: Store, ids: dict[str, int]) -> None:
    """A later teacher gives "a" another class than the one that was accepted, and "b" the same one."""
    assert (PROBS["a"][0], PROBS["b"][0]) == (max(PROBS["a"]), max(PROBS["b"]))
    for letter in "ab":
        add_review(store, ids[letter], "accept")
    probs = {"a": (0.3, 0.36, 0.34), "b": (0.36, 0.34, 0.3), "c": (0.1, 0.8, 0.1)}
    rows = {"image_id": [ids[x] for x in probs], "probs": pa.array(probs.values(), pa.list_(pa.float32()))}
    pq.write_table(pa.table(rows), store.path.parent / "later.parquet")
    import_labels(store, str(store.path.parent / "later.parquet"), 1, "later")
    assert kept(store, ids, "m", min_confidence=0.5, accepted=True, generation=1) == "bc"
    assert kept(store, ids, "low", min_confidence=0.1, accepted=True, generation=1) == "abc"
    assert "before all others" not in explain(store, "low", ids["a"]).reason
    assert "before all others" in explain(store, "low", ids["b"]).reason
    assert manifests.find(store, "m").lineage["funnel"]["above_threshold"] == 2


def test_of_repeats_the_one_that_a_person_decided_on_stays(store: Store, ids: dict[str, int]) -> None:
    scanned(store, ids, "abd efi gh")
    assert kept(store, ids, "before", dedup=True) == "aceg"
    add_review(store, ids["d"], "relabel", "owl")
    add_review(store, ids["i"], "accept")
    add_review(store, ids["g"], "reject")
    assert kept(store, ids, "after", dedup=True) == "cdhi"


@pytest.mark.parametrize("policy", ["top", "soft-weight", "stratified"])
def test_what_people_accepted_comes_first(store: Store, ids: dict[str, int], policy: str) -> None:
    options = {"policy": policy, "min_confidence": 0.3, "per_class": 1, "fill": "none"}
    owls = "select image_id from read_parquet('{}/*.parquet') where class_name = 'owl'"

    def first(name: str, **more: bool) -> list[int]:
        built = building.build(store, name, options | more)
        return [row["image_id"] for row in store.rows(owls.format(built.path))]

    before = first("before")
    add_review(store, ids["h"], "relabel", "owl")
    assert first("trusting", accepted=True) == [ids["h"]] != before
    assert first("as-before") == before, "without --accepted the teacher's confidence in the old class ranks it"
    told = explain(store, "trusting", ids["h"]).reason
    assert "what reviewers accepted or gave a class before all others" in told
    (owl,) = (c for c in manifests.find(store, "trusting").classes if c["class_name"] == "owl")
    assert owl["kept"] == 1


def test_the_temperature_of_another_teacher_is_not_taken(store: Store, ids: dict[str, int]) -> None:
    rows = {"image_id": [ids["a"]], "probs": pa.array([(0.3, 0.36, 0.34)], pa.list_(pa.float32()))}
    pq.write_table(pa.table(rows), store.path.parent / "later.parquet")
    import_labels(store, str(store.path.parent / "later.parquet"), 1, "later")
    fit = {"images": 9, "fitted_at": dt.datetime.now(dt.UTC)}
    rows = [fit | {"model": "outside", "generation": 0, "temperature": 2.0}]
    additions.append(store, "calibrations", pa.Table.from_pylist(rows, CALIBRATIONS.schema))
    built = building.build(store, "first", {"per_class": 9, "generation": 0, "calibrated": True})
    again = building.build(store, "again", {}, as_of="first")
    assert again.sha256 == built.sha256
    with pytest.raises(InputError, match="no temperature was fitted for 'later'"):
        building.build(store, "second", {"generation": 1, "min_confidence": 0.0}, as_of="first")
    rows = [fit | {"model": "later", "generation": 1, "temperature": 0.5}]
    additions.append(store, "calibrations", pa.Table.from_pylist(rows, CALIBRATIONS.schema))
    found = building.build(store, "second", {"generation": 1, "min_confidence": 0.0}, as_of="first")
    assert found.lineage["parameters"]["calibration"] == 0.5
    with pytest.raises(InputError, match="there is no generation 2 at the table versions of 'first'"):
        building.build(store, "third", {"generation": 2}, as_of="first")


def test_a_threshold_on_calibrated_confidences(
    store: Store, ids: dict[str, int], curator: Callable[..., Answer]
) -> None:
    with pytest.raises(InputError, match="no temperature was fitted for 'outside'"):
        building.build(store, "m", {"per_class": 9, "calibrated": True})
    raw = {letter: max(probs) for letter, probs in PROBS.items()}
    for temperature in (2.0, 0.5, 1.0):
        row = {
            "model": "outside",
            "generation": 0,
            "temperature": temperature,
            "images": 9,
            "fitted_at": dt.datetime.now(dt.UTC),
        }
        additions.append(store, "calibrations", pa.Table.from_pylist([row], CALIBRATIONS.schema))
        scaled = {
            x: max(probs) ** (1 / temperature) / sum(p ** (1 / temperature) for p in probs)
            for x, probs in PROBS.items()
        }
        expected = "".join(x for x in sorted(PROBS) if scaled[x] > 0.55)
        options = ("--min-confidence", 0.55, "--calibrated", "--store", store.path, "--json")
        answer = curator("build-manifest", f"t{temperature:g}", "--per-class", 9, *options)
        assert answer.code == 0, answer.err
        found = manifests.find(store, f"t{temperature:g}")
        assert found.lineage["parameters"]["calibration"] == temperature
        names = {image_id: letter for letter, image_id in ids.items()}
        table = pq.read_table(found.path)
        assert "".join(sorted(names[i] for i in table["image_id"].to_pylist())) == expected, temperature
        for image_id, confidence in zip(table["image_id"].to_pylist(), table["confidence"].to_pylist(), strict=True):
            assert confidence == np.float32(raw[names[image_id]])  # as the teacher gave it
    first = manifests.find(store, "t2")
    assert first.unique_images < manifests.find(store, "t0.5").unique_images
    # The temperature is the manifest's own: a newer fit does not change what it is built to again.
    assert building.build(store, "again", {}, as_of="t2").sha256 == first.sha256
    assert "under the temperature 2" in explain(store, "t2", ids["i"]).reason


def test_what_was_not_checked_is_said(store: Store, tmp_path: Path) -> None:
    def said(name: str) -> list[str]:
        found = account.warnings(building.build(store, name, {"per_class": 2}))
        return [sentence for sentence in found if "curator quality leaks" in sentence]

    assert said("no-holdout") == []
    for number in range(3):
        write(tmp_path / "held" / "cat" / f"{number}.png", picture(0, number, 40))
    add_images(store, str(tmp_path / "held"), "holdout")
    assert said("before")[0].startswith("Nothing was compared with the holdout but for its bytes")
    duplicates.find(store)
    assert said("scanned") == []
    assert manifests.find(store, "scanned").lineage["near_duplicates"]["rule"]["distance"] == duplicates.DISTANCE
    write(tmp_path / "more" / "x.png", picture(1, 9, 40))
    add_images(store, str(tmp_path / "more"), "unlabeled")
    assert said("later")[0].startswith("1 image was added since the last scan")
