"""The same manifests by Spark and by DuckDB: the same bytes with every policy and option; refusals by name.

One Spark session for the module, on two cores of this machine. Without Java or pyspark these tests are skipped.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from conftest import Answer

from curator.curation import building, manifests, translation
from curator.errors import InputError
from curator.generations import softlabels
from curator.schema import CALIBRATIONS, DUPLICATES, IMAGES, REVIEWS
from curator.storage import additions
from curator.storage.store import Store

pytest.importorskip("pyspark", reason="pyspark is an extra: pip install 'curator[spark]'")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java: apt install openjdk-17-jre-headless", allow_module_level=True)

from curator.curation import spark  # after the skips, beside what it is about

CLASSES = ["ant", "bee", "cow", "dog", "eel"]
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MASTER = "local[2]"
# Short builds: Java would spend more on compiling itself than it would save.
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The session in which all builds of this module get one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", JAVA)
        with spark.session(MASTER, tmp_path_factory.mktemp("spark")):
            yield


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """600 pool and 200 holdout images with many ties, reviews, a scan for duplicates, two generations, temperatures."""
    # Spark takes such a path for a pattern, unless it is told otherwise
    store = Store.create(tmp_path_factory.mktemp("spark") / "a {b,c}" / "store", CLASSES)
    rng = np.random.default_rng(5)
    ids = rng.permutation(np.unique(rng.integers(0, 2**63 - 1, 800))).tolist()
    splits = ["unlabeled"] * 600 + ["holdout"] * 200
    truth = rng.choice(4, 800, p=[0.55, 0.25, 0.15, 0.05])
    images = [
        {"image_id": i, "uri": f"pool/{n}.jpg", "split": split, "status": "ok", "added_at": START}
        | {"content_hash": f"{rng.integers(6000)}", "label": int(label) if split == "holdout" else None}
        for n, (i, split, label) in enumerate(zip(ids, splits, truth, strict=True))
    ]
    additions.append(store, "images", pa.Table.from_pylist(images, IMAGES.schema))
    for generation in (0, 1):
        logits = rng.normal(size=(800, 5)) + 3 * (truth[:, None] == np.arange(5)) - 9 * (np.arange(5) == 4)
        logits[:, 4] = np.sort(logits, axis=1)[:, -2] - 0.1
        probs = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2).astype(np.float32)
        probs[:, 4] = 1 - probs[:, :4].sum(1)
        summary = softlabels.summarize(np.maximum(probs, 0), 3)
        additions.append(store, "labels", softlabels.table(summary, ids, generation, f"m{generation}", splits))
        fit = {
            "model": f"m{generation}",
            "generation": generation,
            "temperature": 1.7,
            "images": 200,
            "fitted_at": START,
        }
        additions.append(store, "calibrations", pa.Table.from_pylist([fit], CALIBRATIONS.schema))
    said = [("reject", None), ("accept", None), ("relabel", 4), ("relabel", 0), ("skip", None)]
    reviews = [
        {"image_id": ids[int(rng.integers(120))], "decision": said[n % 5][0], "new_label": said[n % 5][1]}
        | {"reviewer": "x", "decided_at": START + dt.timedelta(hours=n)}
        for n in range(80)
    ]
    additions.append(store, "reviews", pa.Table.from_pylist(reviews, REVIEWS.schema))
    twins = [
        {"image_id": ids[n], "group_id": min(ids[n - n % 3 : n - n % 3 + 3]), "nearest": ids[n - 1], "kind": "phash"}
        | {"distance": 2.0, "leak": n % 10 == 0, "holdout_twin": ids[700] if n % 10 == 0 else None}
        | {"labeled_twin": n % 14 == 0, "scan": "s", "found_at": START}
        for n in range(60, 300)
    ]
    additions.append(store, "duplicates", pa.Table.from_pylist(twins, DUPLICATES.schema))
    return store


def both(store: Store, name: str, options: dict[str, Any]) -> manifests.Manifest:
    """Builds by both engines; makes sure that rows, hash, lineage and bytes are the same."""
    one = building.build(store, f"{name}-duckdb", options)
    other = building.build(store, f"{name}-spark", options, master=MASTER)
    assert other.sha256 == one.sha256
    assert other.lineage == one.lineage | {"engine": other.lineage["engine"]}
    assert other.lineage["engine"].startswith("spark 4")
    assert [file.name for file in manifests.files(other)] == [file.name for file in manifests.files(one)]
    for a, b in zip(manifests.files(one), manifests.files(other), strict=True):
        assert a.read_bytes() == b.read_bytes(), name
    return other


WHERE = (
    # 0.66 as FLOAT is not 0.66, and confidences are of two digits
    "(confidence > 0.66 or margin <= 0.25) and entropy between 0.05 and 1.5 and (uri like '%1.jpg' or "
    "class_name = 'bee' or image_id in (select image_id from labels where generation = 0 and confidence >= 0.8)) "
    "and len(top_probs) = 3 and (top_probs[2] > 0.1 or top_probs[9] is null) and list_contains(top_classes, 4) "
    "and confidence / 3 < 0.31 and (confidence * 10)::INT <> 9 and image_id % 7 < 6 and (label * 5) // 2 < 9"
)
# Each option with some policy. A Spark build takes seconds, most of them for planning: `make bench-spark` compares
# every policy, on a million rows.
BUILDS: dict[str, dict[str, Any]] = {
    "top": {"where": WHERE, "max_copies": 7},
    "class-adaptive": {"accepted": True, "dedup": True, "near_leaks": "keep", "generation": 0},
    "soft-weight": {"targets": "auto", "hard_from": 0.66, "calibrated": True},
    "released-code": {"per_class": 25, "where": "margin > 0.02", "targets": "hard"},
}


@pytest.mark.parametrize("name", ["top", *(pytest.param(name, marks=pytest.mark.long) for name in [*BUILDS][1:])])
def test_policies_and_options_give_the_same_bytes(pool: Store, name: str) -> None:
    built = both(pool, name, {"policy": name, "per_class": 90, "seed": 3, "min_confidence": 0.32} | BUILDS[name])
    assert built.unique_images > 20


@pytest.mark.long
def test_a_policy_of_ones_own_whose_steps_have_the_names_of_ours(pool: Store, tmp_path: Path) -> None:
    (tmp_path / "own.sql").write_text(
        """-- Parameter: $least = 0.1    lowest margin
        with
        pool as (select *, (confidence * 1000)::BIGINT as mille from candidates),
        counted as (select label, sum(mille) as mille, count(*) as images from pool group by label)
        select c.image_id, c.label, c.confidence, c.margin * 0.3 + 0.1 as score, least(1, c.confidence / 0.7) as weight
        from pool as c
        join counted as n on n.label = c.label
        where c.margin >= $least and c.mille > n.mille / n.images / 2;
        """,
        "utf-8",
    )
    both(pool, "own", {"per_class": 60, "policy": str(tmp_path / "own.sql"), "settings": {"least": 0.05}})
    (tmp_path / "twice.sql").write_text(
        "select * , 0.5 as score from candidates union all select *, 0.5 from candidates"
    )
    with pytest.raises(InputError, match="images are returned more than once"):
        building.build(pool, "twice", {"per_class": 5, "policy": str(tmp_path / "twice.sql")}, master=MASTER)
    assert not (pool.path / "manifests" / "twice").exists()


@pytest.mark.long
def test_the_engine_stands_beside_the_rows_not_in_them(pool: Store, curator: Callable[..., Answer]) -> None:
    """It is no option of a selection: the other engine finds the manifest there."""
    both(pool, "named", {"per_class": 9})
    assert curator("check", "named-spark", "--store", pool.path).code == 0
    assert "spark 4" in curator("show", "named-spark", "--store", pool.path).out
    again = curator("build-manifest", "named-spark", "--per-class", 9, "--store", pool.path)
    assert "is there already, with the same content" in again.out + again.err, again.err


WRONG = {
    "list_sum(top_probs) > 0.9": "LIST_SUM(top_probs)",
    "regexp_matches(uri, 'a')": "REGEXP",
    "uri ilike 'A%'": "ILIKE",
    "label::VARCHAR = '1'": "CAST(label AS TEXT)",
    "top_probs[-1] > 0": "top_probs[-1]",
    "uri like 'a\\%'": "LIKE",
}


@pytest.mark.long
def test_what_spark_is_not_known_to_answer_alike_is_named(pool: Store, curator: Callable[..., Answer]) -> None:
    command = ("build-manifest", "w", "--per-class", 2, "--store", pool.path, "--engine", "spark", "--master", MASTER)
    for where, named in WRONG.items():
        answer = curator(*command, "--where", where)
        assert answer.code == 2, where
        assert named in answer.err, answer.err
        assert "of which Spark is not known to give the same" in answer.err
        assert "mend: --engine duckdb" in answer.err
    answer = curator(*command, "--where", "confidense > 0.5")  # what is wrong on DuckDB is told as ever
    assert "unknown column 'confidense'; did you mean 'confidence'?" in answer.err
    assert not (pool.path / "manifests" / "w").exists()


def test_engine_and_master_must_fit(pool: Store, curator: Callable[..., Answer]) -> None:
    command = ("build-manifest", "w", "--per-class", 2, "--store", pool.path)
    for options, message in (
        (("--engine", "sparc"), "--engine sparc is not one of duckdb, spark"),
        (("--master", MASTER), "--master says where Spark runs, and the engine is duckdb"),
    ):
        answer = curator(*command, *options)
        assert (answer.code, message in answer.err, "mend: " in answer.err) == (2, True, True), answer.err


def test_what_is_missing_is_named_with_its_mend(
    pool: Store, curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("build-manifest", "w", "--per-class", 2, "--store", pool.path, "--engine", "spark")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    answer = curator(*command)
    assert answer.code == 2
    assert "needs Java, and there is none in /nowhere" in answer.err
    assert "apt install openjdk-17-jre-headless" in answer.err
    monkeypatch.setitem(__import__("sys").modules, "sqlglot", None)
    answer = curator(*command)
    assert answer.code == 2
    assert "needs sqlglot, which is not installed" in answer.err
    assert "pip install 'curator[spark]'" in answer.err


def test_a_master_that_is_none(store: Store, process: Callable[..., Answer]) -> None:
    command = ("build-manifest", "m", "--per-class", 3, "--store", store.path, "--engine", "spark")
    answer = process(*command, "--master", "nonsense", env={"JDK_JAVA_OPTIONS": JAVA})
    assert answer.code == 2, answer.err
    assert "Spark does not start with --master nonsense (" in answer.err
    assert "Master must either be yarn or start with spark, k8s, or local" in answer.err
    assert "mend: give it a master that is there" in answer.err


@pytest.mark.long
def test_a_session_of_its_own_is_silent_and_leaves_nothing(
    store: Store, tmp_path: Path, process: Callable[..., Answer]
) -> None:
    """A process as a user starts it: Java's messages go nowhere, and its files are gone."""
    (tmp_path / "tmp").mkdir()
    answer = process(
        *("build-manifest", "m", "--per-class", 3, "--store", store.path, "--json"),
        *("--engine", "spark", "--master", MASTER),
        env={"TMPDIR": str(tmp_path / "tmp"), "JDK_JAVA_OPTIONS": JAVA},
    )
    assert answer.code == 0, answer.err
    assert answer.json["unique_images"] == 7
    assert answer.err.splitlines() == ["selecting from generation 0", f"starting Spark ({MASTER})"]
    assert not [path for path in (tmp_path / "tmp").iterdir() if not path.name.startswith(("hsperf", "curator-0"))]


KINDS = {"t": {"f": "FLOAT", "d": "DOUBLE", "i": "INTEGER", "b": "BIGINT", "s": "VARCHAR", "l": "FLOAT[]"}}


def test_values_are_bound_and_types_are_those_of_duckdb() -> None:
    """What both engines would read and understand differently."""
    text, bound = translation.translate("select f > 0.3 as a from t where s = $name", KINDS, {"name": "'; x", "n": 1})
    assert bound == {"name": "'; x"}
    assert "'; x" not in text
    (third,) = duckdb.sql("select 0.3::FLOAT").fetchall()[0]
    assert f"CAST('{third!r}' AS FLOAT)" in text
    for query, part in {
        "select (d * 3)::INT from t": "RINT",
        "select f / i from t": "AS FLOAT",
        "select b / i from t": "CAST(t.b AS DOUBLE) / CAST(t.i AS DOUBLE)",
        "select sum(b) from t": "DECIMAL(38, 0)",
        "select l[2] from t": "GET(t.l, 1)",
        "select len(l) from t": "SIZE(t.l)",
    }.items():
        assert part in translation.translate(query, KINDS, {})[0], query
    with pytest.raises(InputError, match="cannot tell the type of 'x'"):
        translation.translate("select x > 0.3 from other", KINDS, {})
