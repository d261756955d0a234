"""Counts by class and bin, as they are made, and as they are read back from the footers of parts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.curation import building, selection
from curator.generations import labels
from curator.generations.histogram import EDGE, Histogram
from curator.generations.labels import import_labels
from curator.storage.store import Store

confidences = st.lists(
    st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.3, float(EDGE), 0.5, 1 - 2**-24, 1.0]), min_size=1, max_size=60
)


@given(scores=confidences, classes=st.sampled_from([3, 5000]))
@settings(max_examples=200, deadline=None)
def test_a_lower_score_is_never_in_a_better_bin(scores: list[float], classes: int) -> None:
    histogram = Histogram(classes)
    ordered = np.sort(np.array(scores, np.float32))[::-1]
    bins = histogram.bin(ordered)
    assert (np.diff(bins) >= 0).all()
    assert 0 <= bins.min() <= bins.max() < histogram.bins
    assert (ordered >= histogram.lowest(bins)).all()


def test_the_threshold_lies_between_two_bins() -> None:
    around = np.array([np.nextafter(EDGE, np.float32(1)), EDGE, np.nextafter(EDGE, np.float32(0))], np.float32)
    above, at, below = Histogram(3).bin(around)
    assert above < at == below


@given(scores=confidences, classes=st.sampled_from([3, 5000]), above=st.sampled_from([-np.inf, float(EDGE)]))
@settings(max_examples=200, deadline=None)
def test_packed_counts_are_the_counts(scores: list[float], classes: int, above: float) -> None:
    score = np.array(scores, np.float32)
    label = np.arange(len(score)) % 3
    whole, twice, direct = Histogram(classes), Histogram(classes, above=above), Histogram(classes, above=above)
    whole.add(label, score)
    for _ in range(2):
        assert twice.unpack(whole.pack())
        direct.add(label, score)
    assert (twice.running == direct.running).all()
    assert twice.counted.sum() == 2 * (score > np.float32(above)).sum()


def test_packed_counts_that_cannot_be_used() -> None:
    packed = Histogram(3).pack()
    packed.decode("ascii")
    assert not Histogram(3, above=0.31).unpack(packed)  # some rows of its bin count, others do not
    assert not Histogram(4).unpack(packed)
    assert not Histogram(5000).unpack(packed)


def test_parts_carry_the_counts_of_their_generation(store: Store, tmp_path: Path) -> None:
    import_labels(store, str(tmp_path / "probs.parquet"), 1, "second")
    for generation in (0, 1):
        found = Histogram(3, above=0.3)
        assert labels.add_counts(store.footers("labels"), generation, found)
        assert found.counted.tolist() == [5, 3, 1]  # i, with 0.40 for dog, and h, with 0.34 for cat, are among them


def test_a_selection_reads_the_counts_and_gives_the_same_rows(
    store: Store, curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("build-manifest", "--store", store.path, "--per-class", 2, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(selection.Histogram, "add", None)
        read = curator(*command, "a")
        assert read.code == 0, read.err
        with pytest.raises(TypeError):  # another threshold, and so a count of its own
            building.build(store, "c", {"per_class": 2, "min_confidence": 0.31})
    with monkeypatch.context() as patch:
        patch.setattr(labels, "add_counts", lambda *_: False)
        counted = curator(*command, "b")
    assert read.json["sha256"] == counted.json["sha256"]


def test_a_part_without_counts_is_counted(store: Store) -> None:
    """As when another tool has merged the parts into larger ones."""
    built = building.build(store, "a", {"per_class": 2})
    (part,) = store.files("labels")
    rows = pq.read_table(part).replace_schema_metadata(None)
    pq.write_table(rows, part)
    assert not labels.add_counts(store.footers("labels"), 0, Histogram(3))
    assert building.build(store, "b", {"per_class": 2}).sha256 == built.sha256


def test_counts_that_do_not_fit_the_rows_stop_the_build(store: Store) -> None:
    (part,) = store.files("labels")
    rows = pq.read_table(part)
    pq.write_table(rows.slice(2).replace_schema_metadata(pq.read_metadata(part).metadata), part)
    with pytest.raises(RuntimeError, match="7 rows are within the quota, and 9 were counted"):
        building.build(store, "a", {"per_class": 9})
