"""Audits: what is drawn, what counts, and how often the interval holds the truth."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import given
from hypothesis import strategies as st
from test_labels import write

from curator.curation import building
from curator.decisions.reviews import add_review, add_reviews
from curator.errors import InputError
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality import audit as audits
from curator.quality.audit import Estimate, Stratum, audit, estimate
from curator.schema import DUPLICATES
from curator.storage import additions
from curator.storage.store import Store

EDGES = (0.5, 0.7, 0.85, 0.95)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """4,000 images of two classes, the more of them the lower their confidence."""
    folder = tmp_path_factory.mktemp("audit")
    store = Store.create(folder / "store", ["cat", "dog", "owl"])
    rng = np.random.default_rng(0)
    n = 4000
    confidence = (0.34 + 0.66 * rng.random(n) ** 2).astype(np.float32)
    probs = np.zeros((n, 3), np.float32)
    label = rng.integers(2, size=n)
    probs[np.arange(n), label] = confidence
    probs[np.arange(n), (label + 1) % 3] = probs[np.arange(n), (label + 2) % 3] = (1 - confidence) / 2
    uris = [f"{i:04d}.jpg" for i in range(n)]
    add_images(store, write(folder / "l.parquet", uri=uris), "unlabeled", scan=False)
    rows = pa.array([row.tolist() for row in probs], pa.list_(pa.float32()))
    import_labels(store, write(folder / "p.parquet", uri=uris, probs=rows), 0, "outside")
    return store


def sample(store: Store, **key: object) -> list[dict[str, object]]:
    audit(store, **key)
    where = " and ".join(f"{name} = {value}" for name, value in key.items())
    return store.rows(f"select * from audits where {where} order by label, place")


def test_the_draw(pool: Store) -> None:
    rows = sample(pool, seed=0, per_class=50)
    labels = pool.rows("select image_id, label, confidence from labels where confidence > 0.3")
    for label in (0, 1):
        frame = [row for row in labels if row["label"] == label]
        mine = [row for row in rows if row["label"] == label]
        assert 50 <= len(mine) <= 54
        assert [row["place"] for row in mine] == list(range(1, len(mine) + 1))
        for stratum in range(5):
            of_it = [r for r in frame if sum(r["confidence"] > np.float32(e) for e in EDGES) == stratum]
            drawn = [r for r in mine if r["stratum"] == stratum]
            assert {r["image_id"] for r in drawn} <= {r["image_id"] for r in of_it}
            assert {r["stratum_images"] for r in drawn} == {len(of_it)}
            assert abs(len(drawn) - max(2, 50 * len(of_it) / len(frame))) < 1


def test_the_same_again_other_seeds_and_sizes(pool: Store) -> None:
    one = sample(pool, seed=0, per_class=50)
    assert not audit(pool, seed=0, per_class=50).is_new
    assert sample(pool, seed=0, per_class=50) == one
    mine = {row["image_id"] for row in one}
    other = {row["image_id"] for row in sample(pool, seed=1, per_class=50)}
    assert len(mine & other) < 15
    assert mine <= {row["image_id"] for row in sample(pool, seed=0, per_class=200)}


def test_all_of_a_small_class(store: Store) -> None:
    found = audit(store, per_class=100)
    assert {row["class_name"]: row["drawn"] for row in found.classes} == {"cat": 5, "dog": 3, "owl": 1}
    assert {row["class_name"]: row["images"] for row in found.classes} == {"cat": 5, "dog": 3, "owl": 1}
    assert len(found.open) == 9


def test_it_draws_from_what_build_manifest_selects_from(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    """Nothing that shows a holdout image, by its bytes or by the scan; what people rejected counts, as it must."""
    for name, split, label in (("same", "holdout", ["cat"]), ("own", "unlabeled", None)):
        (tmp_path / f"{name}.jpg").write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
        columns = {"uri": [f"{name}.jpg"]} | ({} if label is None else {"label": label})
        add_images(store, write(tmp_path / "l.parquet", **columns), split)
    probs = pa.array([[0.9, 0.05, 0.05]], pa.list_(pa.float32()))
    import_labels(store, write(tmp_path / "p.parquet", uri=["own.jpg"], probs=probs), 0, "outside")
    twin = {"image_id": ids["a"], "group_id": ids["a"], "nearest": 5, "kind": "phash", "distance": 4.0, "leak": True}
    near = {"image_id": ids["b"], "group_id": ids["b"], "nearest": 6, "kind": "phash", "distance": 4.0, "leak": False}
    additions.append(store, "duplicates", pa.Table.from_pylist([twin, near], DUPLICATES.schema))
    add_review(store, ids["e"], "reject")
    drawn = {row["image_id"] for row in sample(store, per_class=100)}
    assert drawn == {ids[name] for name in "bcdefghi"}
    manifest = building.build(store, "m", {"per_class": 100})
    taken = pq.read_table(manifest.path)["image_id"].to_pylist()
    assert {*taken} == drawn - {ids["e"]}


def test_only_the_sample_counts_and_the_latest_decision(store: Store, ids: dict[str, int]) -> None:
    drawn = {row["image_id"] for row in audit(store, per_class=2, class_name="cat").open}
    cats = [ids[name] for name in "abcdh"]
    for image_id in cats:
        add_review(store, image_id, "accept" if image_id in drawn else "reject")
    found = audit(store, per_class=2, class_name="cat")
    assert found.classes[0]["decided"] == len(drawn)
    assert found.classes[0]["precision"] == 1
    assert found.open == []
    wrong = sorted(drawn)[0]
    add_review(store, wrong, "relabel", "owl")
    assert audit(store, per_class=2, class_name="cat").classes[0]["right"] == len(drawn) - 1
    add_review(store, wrong, "relabel", "cat")
    assert audit(store, per_class=2, class_name="cat").classes[0]["right"] == len(drawn)
    add_review(store, wrong, "skip")
    found = audit(store, per_class=2, class_name="cat")
    assert found.classes[0]["decided"] == len(drawn) - 1
    assert [row["image_id"] for row in found.open] == [wrong]


def test_reading_a_sample_writes_nothing(store: Store, ids: dict[str, int]) -> None:
    key = audits.Key(0, 0, 2, float(np.float32(0.3)))
    with closing(store.connect()) as con:
        assert audits.drawn(con) == []
        assert audits.read(con, key) is None
    assert not (store.path / "audits").exists()
    found = audit(store, per_class=2)
    audit(store, per_class=5, seed=1)
    add_review(store, ids["g"], "reject")  # the only owl
    version = store.every_version()
    with closing(store.connect()) as con:
        assert audits.drawn(con) == [audits.Key(0, 1, 5, key.min_confidence), key]
        for label, name in enumerate(("cat", "dog", "owl")):
            looked = audits.read(con, key, label, 100)
            assert looked == audit(store, per_class=2, class_name=name, limit=100)
            assert {row["class_name"] for row in looked.open} <= {name}
    assert looked.classes[0]["precision"] == 0
    assert len(found.open) > 1
    assert store.every_version() == version


def test_an_accept_is_of_the_class_that_was_seen(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    """Accepted as a cat in generation 0, an image is no right dog in generation 1."""
    add_review(store, ids["a"], "accept")
    uris = [f"pool/{name}.jpg" for name in "ab"]
    probs = pa.array([[0.1, 0.9, 0.0], [0.1, 0.9, 0.0]], pa.list_(pa.float32()))
    import_labels(store, write(tmp_path / "p.parquet", uri=uris, probs=probs), 1, "second")
    add_review(store, ids["b"], "accept")
    dogs = audit(store).classes[0]
    assert (dogs["class_name"], dogs["decided"], dogs["right"]) == ("dog", 2, 1)
    assert audit(store, generation=0, class_name="cat").classes[0]["right"] == 1  # a; b was accepted as a dog


def test_every_image_decided_leaves_no_doubt(store: Store, ids: dict[str, int]) -> None:
    audit(store)
    for name, decision in zip("abcdh", ["accept"] * 4 + ["reject"], strict=True):
        add_review(store, ids[name], decision)
    found = audit(store, class_name="cat").classes[0]
    assert (found["precision"], found["low"], found["high"]) == (0.8, 0.8, 0.8)


# The estimate


def test_no_decision_no_estimate() -> None:
    assert estimate([]) == estimate([[Stratum(10, 0, 0)]]) == Estimate(None, None, None)


def test_by_hand() -> None:
    found = estimate([[Stratum(100, 10, 5), Stratum(300, 30, 30)]])
    assert found.precision == (100 * 0.5 + 300) / 400
    assert found.low < found.precision < found.high


def test_a_stratum_without_decisions_joins_its_neighbour() -> None:
    assert estimate([[Stratum(50, 0, 0), Stratum(50, 10, 5), Stratum(10, 0, 0), Stratum(100, 10, 9)]]) == estimate(
        [[Stratum(110, 10, 5), Stratum(100, 10, 9)]]
    )


@given(
    st.lists(
        st.integers(1, 500).flatmap(
            lambda n: st.integers(0, min(n, 40)).flatmap(
                lambda d: st.integers(0, d).map(lambda r: Stratum(n, d, r)),
            )
        ),
        min_size=1,
        max_size=5,
    )
)
def test_an_interval_holds_its_estimate(strata: list[Stratum]) -> None:
    found = estimate([strata])
    if found.precision is not None:
        assert 0 <= found.low <= found.precision + 1e-12
        assert found.precision - 1e-12 <= found.high <= 1


@pytest.mark.parametrize("decisions", [50, 150])
@pytest.mark.parametrize(
    ("shares", "rates"),
    [
        ((0.05, 0.10, 0.10, 0.15, 0.60), (0.5, 0.7, 0.8, 0.93, 0.98)),
        ((0.20, 0.20, 0.20, 0.20, 0.20), (0.4, 0.6, 0.8, 0.90, 0.97)),
        ((0.30, 0.30, 0.20, 0.10, 0.10), (0.3, 0.5, 0.6, 0.70, 0.90)),
        ((0.02, 0.03, 0.05, 0.20, 0.70), (0.6, 0.8, 0.9, 0.97, 0.995)),
    ],
)
@pytest.mark.parametrize("images", [400, 20_000])
def test_coverage(shares: tuple[float, ...], rates: tuple[float, ...], decisions: int, images: int) -> None:
    """Of 1,000 audits of a class whose truth is known, 95 in 100 intervals hold it, give or take."""
    rng = np.random.default_rng(0)
    sizes = [int(share * images) for share in shares]
    rights = [round(rate * size) for rate, size in zip(rates, sizes, strict=True)]
    truth = sum(rights) / sum(sizes)
    drawn = [min(size, max(2, round(decisions * size / sum(sizes)))) for size in sizes]
    found = []
    for _ in range(1000):
        got = [rng.hypergeometric(r, n - r, d) for r, n, d in zip(rights, sizes, drawn, strict=True)]
        found.append(estimate([[Stratum(n, d, int(g)) for n, d, g in zip(sizes, drawn, got, strict=True)]]))
    inside = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.925 <= inside <= 0.985
    assert np.mean([each.precision for each in found]) == pytest.approx(truth, abs=0.006)


def test_a_naive_count_of_reviews_would_be_wrong(pool: Store, tmp_path: Path) -> None:
    """People look at doubtful images first. Half of the images up to 0.5 are wrong here, and all others right."""
    labels = pool.rows("select image_id, confidence from labels where label = 0 order by confidence, image_id")
    truth = {row["image_id"]: row["confidence"] > 0.5 or row["image_id"] % 2 == 0 for row in labels}
    found = audit(pool, seed=3, per_class=100, class_name="cat", limit=1000)
    looked = [row["image_id"] for row in labels[:300]] + [row["image_id"] for row in found.open]
    lines = [f"{i},{'accept' if truth[i] else 'reject'}\n" for i in dict.fromkeys(looked)]
    (tmp_path / "d.csv").write_text("image_id,decision\n" + "".join(lines))
    add_reviews(pool, str(tmp_path / "d.csv"))
    got = audit(pool, seed=3, per_class=100, class_name="cat").classes[0]
    share = sum(truth.values()) / len(truth)
    naive = sum(truth[i] for i in dict.fromkeys(looked)) / len({*looked})
    assert got["low"] <= share <= got["high"]
    assert naive < got["low"]


def test_two_draw_at_once(pool: Store) -> None:
    program = [Path(sys.executable).with_name("curator"), "quality", "audit", "--seed", "9", "--json"]
    runs = [
        subprocess.Popen([*program, "--store", pool.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], answers
    rows = pool.rows("select count(*) as n, count(distinct image_id) as images from audits where seed = 9")[0]
    assert rows["n"] == rows["images"] > 0


def test_command(store: Store, ids: dict[str, int], tmp_path: Path, curator: Callable[..., Answer]) -> None:
    sheet = tmp_path / "sheet.csv"
    answer = curator("quality", "audit", "--class", "cat", "--sheet", sheet, "--store", store.path)
    assert answer.code == 0, answer.err
    lines = sheet.read_text().splitlines()
    assert lines[0] == "image_id,uri,generation,class_name,confidence,decision,new_label,reviewer,reason"
    assert len(lines) == 6
    assert [line.split(",")[2] for line in lines[1:]] == ["0"] * 5  # whose labels were drawn from
    # a person fills it in
    sheet.write_text("\n".join([lines[0], *(line.replace(",,,,", ",accept,,,", 1) for line in lines[1:4]), *lines[4:]]))
    taken = curator("review", "--from", sheet, "--json", "--store", store.path).json
    assert (taken["recorded"], taken["undecided"]) == (3, 2)
    found = curator("quality", "audit", "--class", "cat", "--json", "--store", store.path).json
    assert (found["classes"][0]["decided"], found["classes"][0]["precision"]) == (3, 1)
    assert len(found["open"]) == 2
    assert curator("quality", "audit", "--class", "cat", "--sheet", sheet, "--store", store.path).code == 2  # exists


def test_nothing_to_draw_from(store: Store) -> None:
    with pytest.raises(InputError, match="no image of generation 0 has a confidence above"):
        audit(store, min_confidence=0.95)
    assert audits.audit(store).key.per_class == 50


@pytest.mark.parametrize("per_class", [2, 7, 30])
def test_every_range_of_confidence_has_its_say(pool: Store, per_class: int) -> None:
    """However small the sample: what has no image in it would be missing from the estimate."""
    rows = sample(pool, seed=5, per_class=per_class)
    sizes = {(row["label"], row["stratum"]): row["stratum_images"] for row in rows}
    assert sum(sizes.values()) == pool.rows("select count(*) as n from labels where confidence > 0.3")[0]["n"]
    assert len(rows) <= 2 * (per_class + 8)
