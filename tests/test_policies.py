"""Each policy against an independent statement of its rule in plain Python; see pools.py for what is drawn."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Case, Engine, Image, cases, f32

from curator import queries
from curator.curation import policies


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def expect(rows: dict[int, dict[str, Any]], kept: list[Image], scores: dict[int, float] | None = None) -> None:
    """Makes sure that the rows are the kept images in their classes, with the confidence as score or the scores."""
    want = {i.image_id: (i.label, i.confidence, (scores or {}).get(i.image_id, i.confidence)) for i in kept}
    assert {k: (row["label"], row["confidence"], row["score"]) for k, row in rows.items()} == want


def draw_of(image_id: int, seed: int) -> int:
    """The lower half of the md5 of an image and a seed."""
    return int.from_bytes(hashlib.md5(f"{image_id}/{seed}".encode()).digest()[8:], "little")


several = settings(max_examples=60, deadline=None)


@given(case=cases())
@several
def test_top(engine: Engine, case: Case) -> None:
    expect(engine.rows(case, "top"), case.candidates)


@given(case=cases())
@several
def test_threshold(engine: Engine, case: Case) -> None:
    """At or above, in float32."""
    kept = [image for image in case.candidates if image.confidence >= f32(case.edge)]
    expect(engine.rows(case, "threshold", threshold=case.edge), kept)


@given(case=cases())
@several
def test_class_adaptive(engine: Engine, case: Case) -> None:
    """Learning status: confident predictions of the teacher in the whole pool, whatever reviewers said later."""
    threshold = case.edge
    confident = Counter(image.classes[0] for image in case.images if image.confidence > f32(threshold))
    most = max(confident.values(), default=0)
    predicted = {image.classes[0] for image in case.images}

    def least(label: int) -> float:
        if label not in predicted:
            return 0.0
        status = confident[label] / most if most else 1.0
        return f32(threshold * (status / (2 - status)))

    kept = [image for image in case.candidates if image.confidence > least(image.label)]
    expect(engine.rows(case, "class-adaptive", threshold=threshold), kept)


@given(case=cases())
@several
def test_self_adaptive(engine: Engine, case: Case) -> None:
    tau = float(sum(Fraction(image.confidence) for image in case.images) / len(case.images))
    mass: dict[int, Fraction] = defaultdict(Fraction)
    for image in case.images:
        for label, p in zip(image.classes, image.probs, strict=True):
            mass[label] += Fraction(p)
    most = max(mass.values())
    kept = [i for i in case.candidates if i.confidence > (tau * float(mass[i.label] / most) if i.label in mass else 0)]
    expect(engine.rows(case, "self-adaptive"), kept)


@given(case=cases(), seed=st.integers(0, 2**32))
@several
def test_images_of(engine: Engine, case: Case, seed: int) -> None:
    """Those of an earlier manifest that are candidates, as they stood there; only people give another class.

    What a person had given there, and gives no more, is no class of this teacher, whose own then counts.
    """
    rng = np.random.default_rng(seed)
    ids = [image.image_id for image in case.images if rng.random() < 0.6] + [2**63 - 1]  # and one that is gone
    earlier = {
        i: (
            int(rng.integers(case.count)),
            str(rng.choice(["pseudo", "review"])),
            int(rng.integers(1, 9)),
            f32(rng.random()),
        )
        for i in ids
    }
    engine.con.execute("delete from earlier")
    engine.con.executemany("insert into earlier values (?, ?, ?, ?, ?)", [[i, *row] for i, row in earlier.items()])
    want = {}
    for image in case.candidates:
        if image.image_id in earlier:
            label, source, copies, weight = earlier[image.image_id]
            if isinstance(image.review, int):
                label = image.review
            elif image.review == "accept" or source == "review":
                label = image.classes[0]
            want[image.image_id] = (label, image.confidence, copies, weight)
    rows = engine.rows(case, "images-of")
    engine.con.execute("delete from earlier")
    assert {i: (r["label"], r["confidence"], r["score"], r["weight"]) for i, r in rows.items()} == want


def test_self_adaptive_keeps_none_of_equals(engine: Engine) -> None:
    """None is above the mean, however the mean was rounded."""
    for confidence in np.linspace(0.31, 1, 12):
        images = [Image(i, (0, 1), (f32(confidence), 0.0)) for i in range(1999)]
        assert engine.rows(Case(2, images), "self-adaptive") == {}


@given(case=cases())
@several
def test_soft_weight(engine: Engine, case: Case) -> None:
    rows = engine.rows(case, "soft-weight")
    expect(rows, case.candidates)
    confidences = [Fraction(image.confidence) for image in case.images]
    mu = sum(confidences) / len(confidences)
    variance = sum((c - mu) ** 2 for c in confidences) / len(confidences)
    for row in rows.values():
        below = mu - Fraction(row["confidence"])
        want = math.exp(-(below**2) / (2 * variance)) if below > 0 else 1
        assert row["weight"] == pytest.approx(want, rel=1e-6)  # as float32, in the end
        assert 0 < np.float32(row["weight"]) <= 1


@given(case=cases(), step=st.sampled_from([0.2, 0.1, 0.07, 0.35, 1, 0]))
@several
def test_percentile(engine: Engine, case: Case, step: float) -> None:
    def kept(generation: int) -> list[Image]:
        share = min(1, Fraction(str(step)) * (generation + 1))
        return [image for images in case.by_class.values() for image in images[: math.ceil(share * len(images))]]

    rows = engine.rows(case, "percentile", step=step)
    expect(rows, kept(case.generation))
    later = engine.rows(case._replace(generation=case.generation + 1), "percentile", step=step)
    assert rows.keys() <= later.keys()


def test_percentile_takes_no_image_too_many(engine: Engine) -> None:
    """0.2 * 3 as a double is above 0.6, and so is its fifth image."""
    sizes = (5, 10, 15, 20, 40, 60)
    images = [Image(100 * label + i, (label, 0, 1), (1.0, 0.0, 0.0)) for label, n in enumerate(sizes) for i in range(n)]
    for step in (0.2, 0.1, 0.05):
        for generation in range(10):
            rows = engine.rows(Case(6, images, generation=generation), "percentile", step=step)
            share = min(1, Fraction(str(step)) * (generation + 1))
            taken = Counter(row["label"] for row in rows.values())
            assert taken == {label: math.ceil(share * n) for label, n in enumerate(sizes)}


def bound(right: int, seen: int, z: float) -> float:
    """The lower end of Wilson's interval of a share."""
    share = right / seen
    half = z * math.sqrt(share * (1 - share) / seen + z * z / (4 * seen * seen))
    return (share + z * z / (2 * seen) - half) / (1 + z * z / seen)


@given(
    case=cases(),
    precision=st.sampled_from([0.5, 0.75, 0.9]) | st.floats(0.1, 0.9),
    z=st.sampled_from([0, 0.5, 1, 1.645]),
)
@several
def test_precision(engine: Engine, case: Case, precision: float, z: float) -> None:
    close = 1e-12

    def least(judged: list[tuple[int, float, bool]]) -> float:
        """The lowest confidence from which on enough of the holdout is right; infinity where there is none."""
        above = {t: [right for _, confidence, right in judged if confidence >= t] for _, t, _ in judged}
        return min((t for t, r in above.items() if bound(sum(r), len(r), z) >= precision - close), default=math.inf)

    thresholds = {}
    for label in range(case.count):
        own = [row for row in case.holdout if row[0] == label]
        enough = own and bound(len(own), len(own), z) >= precision - close
        thresholds[label] = least(own if enough else case.holdout)
    rows = engine.rows(case, "precision", precision=precision, z=z)
    expect(rows, [image for image in case.candidates if image.confidence >= thresholds[image.label]])


@given(case=cases(), floor=st.sampled_from([0.1, 0.29, 0.0]))
@several
def test_top_p(engine: Engine, case: Case, floor: float) -> None:
    """Places are given away one after the other, as one would by hand."""
    quota = case.per_class
    first = [image for images in case.by_class.values() for image in images[:quota]]
    spare = [i for images in case.by_class.values() for i in images[quota:] if i.review is None]
    room = {label: quota - len(case.by_class[label][:quota]) for label in range(case.count)}
    moved, scores = [], {}
    for rank in (1, 2):
        able = [i for i in spare if len(i.probs) > rank and i.probs[rank] >= f32(floor)]
        for image in sorted(able, key=lambda i: (-i.probs[rank], i.image_id)):
            label = image.classes[rank]
            if room[label] > 0:
                room[label] -= 1
                spare.remove(image)
                moved.append((image, label))
                scores[image.image_id] = image.probs[rank] * 2.0 ** (-30 * rank)
    rows = engine.rows(case, "top-p", floor=floor)
    expect({i.image_id: rows.pop(i.image_id) for i in first}, first)
    want = {i.image_id: (label, i.confidence, scores[i.image_id]) for i, label in moved}
    assert {k: (row["label"], row["confidence"], row["score"]) for k, row in rows.items()} == want
    # and the quota, with its scores in float32, drops none of them
    assert (
        engine.rows(case, "top-p", ("eligible", "quota"), floor=floor).keys()
        == {i.image_id for i in first} | want.keys()
    )


def test_top_p_by_hand(engine: Engine) -> None:
    """Two places a class: class 1 takes its two of the second rank, class 2 one of the second and one of the third."""
    probs = (f32(0.35), f32(0.29), f32(0.29))  # the last two at the floor, and below it in double precision
    ranks = [(0, 1, 2)] * 5 + [(0, 2, 3), (0, 1, 2)]
    accepted = Image(9, (0, 1, 2), (f32(0.35), f32(0.34), 0.0), "accept")  # would be the first to go
    images = [*(Image(i, classes, probs) for i, classes in enumerate(ranks)), accepted]
    case = Case(4, images, per_class=2)
    rows = engine.rows(case, "top-p", floor=0.29)
    assert {i: row["label"] for i, row in rows.items()} == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}


@given(case=cases(), bins=st.sampled_from([1, 2, 3, 10]))
@several
def test_stratified(engine: Engine, case: Case, bins: int) -> None:
    def bin_of(image: Image) -> int:
        low = case.min_confidence
        return min(math.floor((image.confidence - low) / (1 - low) * bins), bins - 1)

    strata: dict[tuple[int, int], list[Image]] = defaultdict(list)
    for image in sorted(case.candidates, key=lambda i: (draw_of(i.image_id, case.seed), i.image_id)):
        strata[image.label, bin_of(image)].append(image)
    turns = {i.image_id: turn for images in strata.values() for turn, i in enumerate(images, 1)}
    expect(engine.rows(case, "stratified", bins=bins), case.candidates, {k: -turn for k, turn in turns.items()})
    kept = engine.rows(case, "stratified", ("eligible", "quota"), bins=bins)
    for label, images in case.by_class.items():
        taken = {b: sum(i.image_id in kept for i in strata[label, b]) for b in range(bins)}
        assert sum(taken.values()) == min(case.per_class, len(images))
        for b, number in taken.items():
            assert number == len(strata[label, b]) or number >= max(taken.values()) - 1


def test_stratified_has_no_bin_below_the_threshold(engine: Engine) -> None:
    """With --calibrated and --accepted there are candidates of lower confidence: they are in the first bin."""
    policy = policies.load("stratified")
    candidates = "select i as image_id, 0 as label, [0.1, 0.2, 0.5, 0.9][i] as confidence from range(1, 5) as t (i)"
    query = queries.compose({"candidates": candidates, "policy": policy.text}, "from policy")
    rows = queries.rows(engine.con, query, min_confidence=0.4, seed=0, bins=2)
    assert sorted((row["image_id"] == 4, row["score"]) for row in rows) == [
        (False, -3),
        (False, -2),
        (False, -1),
        (True, -1),
    ]


@given(case=cases())
@several
def test_released_code(engine: Engine, case: Case) -> None:
    """The walk of the released code: down the edges 1.00, 0.99, ... until the count reaches the quota."""
    kept, scores = [], {}
    for images in case.by_class.values():
        for hundredth in range(100, -1, -1):
            above = [image for image in images if image.confidence >= hundredth / 100]
            if len(above) >= case.per_class:
                break
        for image in above:
            draw = (draw_of(image.image_id, case.seed) >> 11) / 2**53
            if draw < case.per_class / len(above):
                kept.append(image)
                scores[image.image_id] = 1 - draw
    expect(engine.rows(case, "released-code"), kept, scores)


def test_released_code_compares_with_its_edges_in_double_precision(engine: Engine) -> None:
    """0.29 as float32 is below 0.29, but 100 times it, in float32, is 29."""
    assert np.floor(np.float32(0.29) * np.float32(100)) == 29
    images = [Image(0, (0, 1), (f32(0.29), 0.0)), *(Image(i, (0, 1), (0.2950, 0.0)) for i in (1, 2))]
    assert engine.rows(Case(2, images, per_class=2, min_confidence=0.2), "released-code").keys() == {1, 2}


def sure(count: int, confidence: float = 0.995) -> Case:
    images = [Image(7 * i, (0, 1), (f32(confidence), f32(1 - confidence))) for i in range(count)]
    return Case(2, images, per_class=count // 4)


@pytest.mark.parametrize("name", ["released-code", "stratified"])
def test_a_seed_gives_the_same_rows_and_another_seed_others(engine: Engine, name: str) -> None:
    case = sure(400)
    kept = [engine.rows(case._replace(seed=seed), name, ("eligible", "quota")).keys() for seed in (1, 1, 2)]
    assert kept[0] == kept[1]
    # two draws of a quarter share a sixteenth: 25 of 400, with a deviation of 4.3
    assert abs(len(kept[0] & kept[2]) - 25) < 20


def test_released_code_keeps_the_quota_on_average(engine: Engine) -> None:
    case = sure(400)
    numbers = [len(engine.rows(case._replace(seed=seed), "released-code")) for seed in range(60)]
    deviation = math.sqrt(400 * 0.25 * 0.75)
    assert abs(np.mean(numbers) - 100) < 4 * deviation / math.sqrt(60)
    assert deviation / 2 < np.std(numbers) < 2 * deviation, "the number itself is drawn"


def test_released_code_takes_all_of_a_short_class(engine: Engine) -> None:
    case = sure(40)._replace(per_class=41)
    assert engine.rows(case, "released-code").keys() == {image.image_id for image in case.images}


def test_statistics_do_not_depend_on_the_order_of_the_rows(engine: Engine) -> None:
    """Threads take the rows in another order each time, and a manifest must be the same each time."""
    drawn = np.random.default_rng(5).uniform(0.01, 1, 5000).astype(np.float32).tolist()
    images = [Image(i, (i % 5, 5), (p, min(p, f32(1 - p)))) for i, p in enumerate(drawn)]
    for name in ("soft-weight", "self-adaptive", "class-adaptive"):
        answers = [
            engine.rows(Case(6, list(order)), name)
            for order in (images, images[::-1], sorted(images, key=lambda i: i[2]))
        ]
        assert answers[0] == answers[1] == answers[2], name


def test_a_weight_is_never_0(engine: Engine) -> None:
    """One image far below many equal ones is so unlikely that its weight is not a number of float32."""
    images = [Image(i, (0, 1), (1.0, 0.0)) for i in range(1000)] + [Image(1000, (0, 1), (f32(0.31), f32(0.3)))]
    rows = engine.rows(Case(2, images), "soft-weight")
    assert rows[0]["weight"] == 1
    assert 0 < np.float32(rows[1000]["weight"]) < 1e-30


@pytest.mark.parametrize("name", policies.names())
def test_no_image_and_one_image(engine: Engine, name: str) -> None:
    assert engine.rows(Case(3, []), name) == {}
    one = Case(3, [Image(1, (0, 1, 2), (1.0, 0.0, 0.0))], [(0, 0.5, True)] * 100)
    # the mean of one confidence is that confidence, and nothing is above it; the earlier manifest is empty
    assert len(engine.rows(one, name)) == (0 if name in ("self-adaptive", "images-of") else 1)


def test_each_policy_has_a_test() -> None:
    assert {f"test_{name.replace('-', '_')}" for name in policies.names()} <= globals().keys()
