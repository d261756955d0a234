"""Drawn pools for tests of the policies, and the way to ask a policy about one.

drawn images, reviews, holdout --Engine.rows--> relations in DuckDB --sql/policies/NAME.sql--> rows by image_id
"""

from collections import defaultdict
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from curator import queries
from curator.curation import policies
from curator.schema import LABELS


def f32(number: float) -> float:
    return float(np.float32(number))


def around(*numbers: float) -> list[float]:
    """The numbers as float32, and the float32 next to each on both sides."""
    return [float(np.nextafter(np.float32(n), np.float32(side))) for n in numbers for side in (0, n, 1)]


class Image(NamedTuple):
    """A pool image with its soft label, and what a reviewer said: None, "accept" or a class."""

    image_id: int
    classes: tuple[int, ...]
    probs: tuple[float, ...]
    review: int | str | None = None

    @property
    def label(self) -> int:
        return self.review if isinstance(self.review, int) else self.classes[0]

    @property
    def confidence(self) -> float:
        return self.probs[0]


class Case(NamedTuple):
    """The pool, the holdout as (label, confidence, is_right), and the options."""

    count: int
    images: list[Image]
    holdout: list[tuple[int, float, bool]] = []
    per_class: int = 3
    min_confidence: float = 0.3
    seed: int = 0
    generation: int = 0
    edge: float = 0.5

    @property
    def candidates(self) -> list[Image]:
        return [image for image in self.images if image.confidence > f32(self.min_confidence)]

    @property
    def by_class(self) -> dict[int, list[Image]]:
        """The candidates of each class, the most confident first."""
        found = defaultdict(list)
        for image in sorted(self.candidates, key=lambda i: (-i.confidence, i.image_id)):
            found[image.label].append(image)
        return found


# As float32 some of them are above the number, some below.
EDGES = [0.29, 0.3, 0.35, 0.6, 0.8, 0.95]
OTHERS = [0.2, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0]
SECONDS = [*around(0.1, 0.29), 0.0, 0.2]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few different confidences, so that there are many ties, some of them at an edge.

    The sizes and options are hypothesis's, the rows a generator's: drawn one by one they would be few, and slow.
    """
    count, edge = draw(st.integers(2, 6)), draw(st.sampled_from(EDGES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = [f32(number) for number in rng.choice(OTHERS, rng.integers(1, 4), replace=False)]
    levels += around(edge) if rng.random() < 0.7 else []
    images = []
    for image_id in _ids(rng, draw(st.sampled_from([1, 2, 5, 15, 30, 60]))):
        # The last class never ranks first, so it has a row at most from a reviewer or as a second or third rank.
        first = rng.integers(count - 1)
        order = [first, *rng.permutation([c for c in range(count) if c != first])]
        p1, p2, p3 = np.array([rng.choice(levels), *rng.choice(SECONDS, 2)], np.float32)
        p2 = min(p2, p1, 1 - p1)
        p3 = min(p3, p2, 1 - p1 - p2)
        probs = tuple(float(p) for p in (p1, p2, p3)[:count])
        said = [*[None] * 6, "accept", "accept", *range(count)][rng.integers(8 + count)]
        images.append(Image(image_id, tuple(int(c) for c in order[: len(probs)]), probs, said))
    # One class is often right, the next seldom.
    judged = [int(label) for label in rng.integers(count, size=draw(st.sampled_from([0, 1, 10, 30])))]
    sure = rng.random(count)
    return Case(
        count,
        images,
        [(label, float(rng.choice(levels)), bool(rng.random() < sure[label])) for label in judged],
        draw(st.sampled_from([1, 2, 3, 5, 10, 1000])),
        draw(st.sampled_from([0.0, 0.2, 0.3, edge])),
        draw(st.integers(-(2**31), 2**31)),
        draw(st.integers(0, 6)),
        edge,
    )


def _ids(rng: np.random.Generator, count: int) -> list[int]:
    """Different ids, in no order, some of them small and some as large as they get."""
    ids = {*rng.integers(0, 99, count).tolist(), *rng.integers(2**62, 2**63 - 1, count).tolist()}
    return [int(i) for i in rng.choice(sorted(ids), count, replace=False)]


class Engine:
    """A connection to keep for many cases. It is dropped when it is closed: hypothesis keeps what a test was given."""

    def __init__(self) -> None:
        self.con = duckdb.connect(config={"threads": 1})
        self.con.execute("create table leaks (image_id BIGINT)")
        self.con.execute("create table earlier (image_id BIGINT, label INT, source VARCHAR, copies INT, weight FLOAT)")

    def close(self) -> None:
        self.con.close()
        del self.con

    def rows(self, case: Case, name: str, steps: tuple[str, ...] = (), **given: Any) -> dict[int, dict[str, Any]]:
        """The rows of a policy, or of the steps behind it, by image_id."""
        columns: dict[str, list[Any]] = {
            "image_id": [image.image_id for image in case.images],
            "label": [image.classes[0] for image in case.images],
            "confidence": [image.confidence for image in case.images],
            "top_classes": [image.classes for image in case.images],
            "top_probs": [image.probs for image in case.images],
        }
        nothing = [None] * len(case.images)
        allowed = {field.name: pa.array(columns.get(field.name, nothing), field.type) for field in LABELS.schema}
        self.con.register("allowed", pa.table(allowed))
        said = [(i.image_id, i.review) for i in case.images if i.review is not None]
        decisions = {
            "image_id": pa.array([i for i, _ in said], pa.int64()),
            "decision": pa.array(["relabel" if isinstance(r, int) else r for _, r in said], pa.string()),
            "new_label": pa.array([r if isinstance(r, int) else None for _, r in said], pa.int16()),
        }
        self.con.register("decisions", pa.table(decisions))
        given_classes = [
            (i.image_id, i.review if isinstance(i.review, int) else i.classes[0])
            for i in case.images
            if i.review is not None and i.review != "reject"
        ]
        accepted = {"image_id": [i for i, _ in given_classes], "label": [label for _, label in given_classes]}
        schema = pa.schema({"image_id": pa.int64(), "label": pa.int32()})
        self.con.register("accepted", pa.table(accepted, schema=schema))
        label, confidence, is_right = zip(*case.holdout, strict=True) if case.holdout else ((), (), ())
        holdout = {"label": pa.array(label, pa.int32()), "confidence": pa.array(confidence, pa.float32())}
        self.con.register("holdout", pa.table(holdout | {"is_right": pa.array(is_right, pa.bool_())}))
        self.con.register("classes", pa.table({"label": pa.array(range(case.count), pa.int16())}))
        policy = policies.load(name)
        parts = {"candidates": queries.text("candidates"), "policy": policy.text} | {s: queries.text(s) for s in steps}
        query = queries.compose(parts, f"from {list(parts)[-1]}")
        values = case._asdict() | policies.settle(policy, given)
        rows = queries.rows(self.con, query, **values)
        assert len({row["image_id"] for row in rows}) == len(rows), "an image is returned more than once"
        return {row["image_id"]: row for row in rows}
