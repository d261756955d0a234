"""The rule of selection, against an independent statement of it in plain Python."""

import dataclasses
import datetime as dt
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROBS, Answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator import queries
from curator.curation import building, selection
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.generations import softlabels
from curator.schema import IMAGES, REVIEWS
from curator.storage import additions
from curator.storage.store import Store

CLASSES = ["ant", "bee", "cow", "dog", "eel"]
THIRD = float(np.float32(0.3))
ABOVE = float(np.nextafter(np.float32(0.3), np.float32(1)))
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True)
class Image:
    """One image of a case, with the top class and confidence of each generation that labeled it."""

    image_id: int
    split: str
    content_hash: str | None
    labels: dict[int, tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A store's content, the decisions in the order of their time, and the options of a build."""

    images: list[Image]
    reviews: list[tuple[int, str, int | None, int | None]]  # image, decision, class, generation
    options: dict[str, Any]


def stated(case: Case, generation: int) -> list[tuple[int, int, int, str, float]]:
    """The rule of the design, in plain Python: (label, image_id, copies, source, confidence) by label, then rank."""
    held_out = {image.content_hash for image in case.images if image.split == "holdout"} - {None}
    decided = {image_id: judgement for image_id, *judgement in case.reviews}
    quota = case.options["per_class"]
    ranked: dict[int, list[tuple[bool, float, int, str, float]]] = {}
    for image in case.images:
        if image.split != "unlabeled" or generation not in image.labels or image.content_hash in held_out:
            continue
        label, confidence = image.labels[generation]
        decision, new, judged = decided.get(image.image_id, ("skip", None, None))
        said = {"relabel": new, "accept": image.labels.get(judged, (None,))[0]}.get(decision)
        first = case.options.get("accepted", False) and said == (label if new is None else new)
        above = np.float32(confidence) > np.float32(case.options["min_confidence"])
        if not (above or first) or decision == "reject":
            continue
        source = "review" if decision == "relabel" else "pseudo"
        # what people accepted is in order as far as a FLOAT above all confidences tells it, see sql/accepted_first.sql
        score = float(np.float32(1e31 * (1 + confidence))) if first else confidence
        ranked.setdefault(label if new is None else new, []).append(
            (not first, -score, image.image_id, source, confidence)
        )
    rows = []
    for label in sorted(ranked):
        kept = sorted(ranked[label])[:quota]
        for rank, (_, _, image_id, source, confidence) in enumerate(kept):
            copies = quota // len(kept) + (rank < quota % len(kept))
            if case.options["max_copies"] is not None:
                copies = min(copies, case.options["max_copies"])
            if case.options["fill"] == "none":
                copies = 1
            rows.append((label, image_id, copies, source, confidence))
    return rows


def fill_store(store: Store, case: Case) -> None:
    """Writes a case into an empty store."""
    images = [
        {"image_id": i.image_id, "uri": f"{i.image_id}.jpg", "split": i.split, "content_hash": i.content_hash}
        | {"status": "ok", "label": None if i.split == "unlabeled" else 0, "added_at": START}
        for i in case.images
    ]
    additions.append(store, "images", pa.Table.from_pylist(images, IMAGES.schema))
    for generation in (0, 1):
        labeled = [image for image in case.images if generation in image.labels]
        if labeled:
            probs = np.array([distribution(*image.labels[generation]) for image in labeled])
            summary = softlabels.summarize(probs, 20)
            ids, splits = [image.image_id for image in labeled], [image.split for image in labeled]
            additions.append(store, "labels", softlabels.table(summary, ids, generation, f"m{generation}", splits))
    if case.reviews:
        # Written out of order: the time of a decision counts, not its place.
        rows = [
            {"image_id": i, "decision": d, "new_label": n, "generation": g, "reviewer": "x"}
            | {"decided_at": START + dt.timedelta(hours=h)}
            for h, (i, d, n, g) in enumerate(case.reviews)
        ][::-1]
        additions.append(store, "reviews", pa.Table.from_pylist(rows, REVIEWS.schema))


def distribution(label: int, confidence: float) -> np.ndarray:
    """A distribution whose top-1 is the class with exactly the confidence; at 0.2, five equals, the class is 0."""
    row = np.full(len(CLASSES), (1 - confidence) / (len(CLASSES) - 1), np.float32)
    row[label] = confidence
    return row


CONFIDENCES = [float(np.float32(c)) for c in (0.25, 0.3, ABOVE, 0.5, 0.7, 0.9, 1.0)]
THRESHOLDS = [0.0, 0.25, 0.3, THIRD, ABOVE, 0.3 + 1e-9, 0.3 - 1e-9, 0.5, 0.9]
soft_label = st.tuples(st.integers(0, 3), st.sampled_from(CONFIDENCES))  # the last class never wins


@st.composite
def cases(draw: st.DrawFn) -> Case:
    image_ids = draw(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 50), min_size=1, max_size=40, unique=True))
    images = [
        Image(
            image_id,
            draw(st.sampled_from(["unlabeled"] * 8 + ["holdout", "labeled"])),
            draw(st.sampled_from([None, None, "aa", "bb", "cc", "dd", "ee", "ff"])),
            draw(st.dictionaries(st.integers(0, 1), soft_label, min_size=1)),
        )
        for image_id in image_ids
    ]
    judged = st.sampled_from([None, 0, 1])
    decisions = st.one_of(
        st.tuples(st.sampled_from(image_ids), st.sampled_from(["accept", "reject", "skip"]), st.none(), judged),
        st.tuples(st.sampled_from(image_ids), st.just("relabel"), st.integers(0, 4), judged),
    )
    options = {
        "per_class": draw(st.sampled_from([1, 2, 3, 5, 7, 10, 100])),
        "min_confidence": draw(st.sampled_from(THRESHOLDS)),
        "fill": draw(st.sampled_from(["copies", "copies", "none"])),
        "max_copies": draw(st.sampled_from([None, None, 1, 3])),
        "accepted": draw(st.booleans()),
    }
    return Case(images, draw(st.lists(decisions, max_size=15)), options)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An empty store to copy: a hundred times faster than making one."""
    return Store.create(tmp_path_factory.mktemp("selection") / "empty", CLASSES)


@pytest.fixture(scope="module")
def fresh(empty: Store) -> Callable[[], Store]:
    """Makes an empty store of its own for each case."""
    numbers = itertools.count()

    def make() -> Store:
        path = empty.path.with_name(f"s{next(numbers)}")
        shutil.copytree(empty.path, path)
        return Store(path)

    return make


def rows_of(path: Path) -> list[tuple[int, int, int, str, float]]:
    """The rows of a manifest as the statement gives them."""
    table = pq.read_table(path)
    columns = ("label", "image_id", "copies", "source", "confidence")
    return list(zip(*(table[column].to_pylist() for column in columns), strict=True))


@given(case=cases())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_manifest_is_what_the_rule_says(fresh: Callable[[], Store], case: Case) -> None:
    store = fresh()
    fill_store(store, case)
    generation = max(g for image in case.images for g in image.labels)
    want = stated(case, generation)
    if not want:
        with pytest.raises(InputError, match="nothing can be selected"):
            building.build(store, "m", case.options)
        return
    built = building.build(store, "m", case.options)
    got = rows_of(built.path)
    assert got == want
    assert built.rows == sum(copies for _, _, copies, _, _ in want)
    assert built.unique_images == len(want)
    totals = {label: sum(row[2] for row in rows) for label, rows in itertools.groupby(got, lambda row: row[0])}
    assert {c["label"]: c["rows"] for c in built.classes} == dict.fromkeys(range(5), 0) | totals
    if case.options["fill"] == "copies" and case.options["max_copies"] is None:
        assert set(totals.values()) == {case.options["per_class"]}
    shutil.rmtree(store.path)


@pytest.mark.parametrize("generation", [0, 1])
def test_the_rule_through_the_command_line(
    fresh: Callable[[], Store], process: Callable[..., Answer], generation: int
) -> None:
    rng = np.random.default_rng(generation)
    images = [
        Image(
            int(rng.integers(2**40)),
            str(rng.choice(["unlabeled", "holdout"], p=[0.9, 0.1])),
            f"{rng.integers(300):02x}",
            {g: (int(rng.integers(4)), float(rng.choice(CONFIDENCES))) for g in (0, 1)},
        )
        for _ in range(300)
    ]
    chosen = rng.integers(300, size=60)
    reviews = [(images[i].image_id, "reject" if i % 2 else "relabel", None if i % 2 else int(i % 5), 1) for i in chosen]
    case = Case(images, reviews, {"per_class": 40, "min_confidence": 0.3, "fill": "copies", "max_copies": None})
    store = fresh()
    fill_store(store, case)
    answer = process(
        *("build-manifest", "m", "--per-class", 40, "--min-confidence", 0.3, "--generation", generation),
        *("--store", store.path, "--json"),
    )
    assert answer.code == 0, answer.err
    assert rows_of(Path(answer.json["path"])) == stated(case, generation)


def test_a_confidence_equal_to_the_threshold_is_not_above_it(fresh: Callable[[], Store]) -> None:
    """0.3 as float32 is above 0.3 as float64; the comparison must be in float32."""
    assert THIRD > 0.3
    images = [Image(1, "unlabeled", None, {0: (0, THIRD)}), Image(2, "unlabeled", None, {0: (0, ABOVE)})]
    store = fresh()
    fill_store(store, Case(images, [], {}))
    built = building.build(store, "m", {"per_class": 1, "min_confidence": 0.3, "fill": "none"})
    assert rows_of(built.path) == [(0, 2, 1, "pseudo", ABOVE)]


def test_a_golden_manifest(store: Store, ids: dict[str, int]) -> None:
    """A hash that was once worked out; it changes only if rows or the hash rule change, and then on purpose."""
    add_review(store, ids["c"], "reject")
    add_review(store, ids["i"], "relabel", "owl")
    built = building.build(store, "golden", {"per_class": 3, "min_confidence": 0.3})
    letters = {image_id: name for name, image_id in ids.items()}
    got = [(row[0], letters[row[1]], row[2], row[3]) for row in rows_of(built.path)]
    assert got == [
        *[(0, "a", 1, "pseudo"), (0, "b", 1, "pseudo"), (0, "d", 1, "pseudo")],
        *[(1, "e", 2, "pseudo"), (1, "f", 1, "pseudo")],
        *[(2, "g", 2, "pseudo"), (2, "i", 1, "review")],
    ]
    assert built.sha256 == "783e51b45b895396ada25da92b62fcff015299fbdf7eab54dd4bd8777464c298"


RIGHT = {
    "confidence > 0.65 and margin < 0.8": "bce",
    "uri like '%/a.jpg' or uri = 'pool/i.jpg'": "ai",
    "class_name = 'owl' or label = 1": "efgi",
    "width is null and status = 'unscanned' and problem is null": "abcdefghi",
    "top_probs[2] >= 0.33 and list_contains(top_classes, 2)": "h",
    "len(list_filter(top_probs, lambda p: p > 0.25)) = 2": "df",
    "image_id in (select image_id from labels where generation = 0 and confidence >= 0.8::FLOAT)": "abc",
    "image_id in (with best as (select max_by(image_id, confidence) as i from labels) select i from best)": "a",
    "exists (select 1 from images as other where other.image_id = p.image_id and other.uri > 'pool/h')": "hi",
    "confidence > 0.65 -- only the best": "abce",
    "/* all */ true": "abcdefghi",
    "CONFIDENCE > 0.85\n  and true": "a",
    "uri = 'pool/a.jpg' or uri like '%/* where */ true%'": "a",
}


@pytest.mark.long
def test_where_lets_through_what_it_says(store: Store, ids: dict[str, int]) -> None:
    for number, (where, letters) in enumerate(RIGHT.items()):
        options = {"per_class": 9, "min_confidence": 0.0, "fill": "none", "where": where}
        built = building.build(store, f"w{number}", options)
        kept = {row[1] for row in rows_of(built.path)}
        assert "".join(name for name in PROBS if ids[name] in kept) == letters, where
        assert built.lineage["funnel"]["pass_where"] == len(letters), where
        assert where in built.lineage["sql"]


WRONG = {
    "confidence >": "is not an SQL expression: syntax error",
    "true; select 1": "is not an SQL expression: syntax error",
    "true) or (true": "is not an SQL expression: syntax error",
    "1) from images --": "is not an SQL expression: syntax error",
    "1 from images --": "is not an SQL expression: syntax error",
    "true /* open": "is not an SQL expression: unterminated",
    "-- nothing": "is not an SQL expression",
    "true, true": "holds more than one expression",
    "confidense > 0.5": "unknown column 'confidense'; did you mean 'confidence'?",
    "random() > 0.5": "uses random, which gives another answer each time",
    "added_at < now()": "uses now, which",
    "added_at < current_timestamp": "uses current_timestamp, which",
    "added_at < current_date and image_id in (select image_id from images)": "uses current_date, which",
    "age(added_at) > interval 1 day": "uses age, which",
    "image_id in (select image_id from images using sample 3)": "uses a sample, which",
    "confidence > $min_confidence": "holds a placeholder",
    "image_id in (select image_id from read_csv('x.csv'))": "reads 'read_csv()'",
    "image_id in (select image_id from 'x.parquet')": "reads 'x.parquet'",
    "image_id in (select image_id from query('from images'))": "reads 'query()'",
    "generation in (select generation from manifests)": "reads 'manifests'",
    "width": "gives INTEGER, not true or false",
    "'true'": "gives VARCHAR, not true or false",
    "null": "not true or false",
    "count(*) > 1": "cannot be computed: Binder Error",
    "image_id in (select nonesuch from images)": "cannot be computed: Binder Error",
    "nonesuch(confidence) > 1": "cannot be computed: Catalog Error",
    "uri::INT > 1": "cannot be computed: Conversion Error",
    "image_id * 9223372036854775807 > image_id": "cannot be computed: Out of Range Error",
    "*": "cannot be computed",
    " ": "--where is empty",
}


@pytest.mark.long
def test_a_wrong_where_is_refused_with_its_reason(store: Store, curator: Callable[..., Answer]) -> None:
    for where, message in WRONG.items():
        answer = curator("build-manifest", "w", "--per-class", 2, "--where", where, "--store", store.path)
        assert answer.code == 2, where
        assert answer.out == "", where
        assert message in answer.err, where
        assert "mend: " in answer.err, where
    assert not (store.path / "manifests").exists()


def test_every_policy_and_step_is_in_the_statement() -> None:
    parameters = selection.Parameters(0, 5, where="width > 3")
    text = selection.statement(parameters)
    for name in ("decisions", "holdout_twins", "pool", "allowed", "policies/top", "copies"):
        part = queries.text(name).replace("/* where */ true", "width > 3")
        assert part in text, name
    assert "0.3" not in text, "values are bound, never pasted"


def test_parameters_name_every_mistake_at_once() -> None:
    with pytest.raises(InputError) as caught:
        selection.Parameters(-1, 0, float("nan"), "tpo", "firm", 0.0, "full", 0, " ")
    for part in (
        "--generation -1 is negative",
        "--per-class 0 is not at least 1",
        "--min-confidence nan is not in [0, 1)",
        "--policy tpo is unknown; did you mean 'top'?",
        "--targets firm is not one of soft, hard",
        "--temperature 0.0 is not above 0",
        "--fill full is not one of copies, none",
        "--max-copies 0 is not in 1 to 2147483647",
        "--where is empty",
    ):
        assert part in caught.value.what


@pytest.mark.parametrize(
    "options",
    [{"per_class": 2**31}, {"max_copies": 10**40}, {"temperature": float("inf")}, {"min_confidence": 1.0}],
    ids=str,
)
def test_parameters_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(options)).replace('_', '-')} "):
        selection.Parameters(**{"generation": 0, "per_class": 1} | options)


def test_the_largest_quota_and_cap_are_computed(store: Store) -> None:
    most = 2**31 - 1
    built = building.build(store, "m", {"per_class": most, "max_copies": most, "min_confidence": 0.85})
    assert built.rows == most
