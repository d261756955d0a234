"""The page of evaluation figures: every suite, several models, nothing foreign that runs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer
from pictures import teach

from curator.errors import InputError
from curator.measures import evaluations
from curator.measures.evaluation_report import write
from curator.measures.evaluations import Basis, figure
from curator.storage.store import Store

FOREIGN = "<script>alert(1)</script>"


@pytest.fixture(scope="session")
def made(taught_once: Store) -> Store:
    return taught_once


@pytest.fixture
def evaluated(store: Store) -> Store:
    """Two models, "teacher" with figures of every suite, "other" with some."""
    teach(store, "schedule.steps=1", name="other")
    for model, worse in (("teacher", 0.0), ("other", 0.1)):
        basis = Basis(50, "ab" if model == "teacher" else "cd", 0, None)

        def keep(suite: str, *rows: dict, model: str = model, basis: Basis = basis) -> None:
            evaluations.record(store, model, suite, rows, basis, {})

        clean = {"top1": 0.9, "top5": 1.0, "ece": 0.05, "confidence": 0.85}
        keep("clean", *(figure(m, v - worse * 0.1, None, None, v - 0.1, v) for m, v in clean.items()))
        keep("class", *(figure("top1", 0.9 - 0.1 * i, n, i, 0.1, 1.0) for i, n in enumerate(("bar", FOREIGN))))
        keep("corruption", *(figure("top1", 0.8 - 0.1 * s - worse, "fog", s, 0.1, 0.9) for s in range(1, 6)))
        keep("corruption", figure("mean_error", 0.5), figure("mce", 123.4))
        if model == "teacher":
            keep("reliability", figure("accuracy", 0.6, None, 0.5, 0.3, 0.8), figure("confidence", 0.55, None, 0.5))
            keep("attack", *(figure("top1", 0.8 / eps, "fgsm", eps, 0.1, 0.9) for eps in (1.0, 4.0)))
            keep("perturbation", figure("flip_probability", 0.02, "tilt", None, 0.01, 0.03))
            keep("outside", figure("auroc_energy", 0.77, f"../{FOREIGN}", None, 0.7, 0.8))
    return store


def test_the_page(evaluated: Store, curator: Callable[..., Answer], tmp_path: Path) -> None:
    file = tmp_path / "page" / "e.html"
    given = ["report", "--model", "teacher", "--model", "other", "--output", file, "--store", evaluated.path]
    answer = curator(*given, "--json")
    assert answer.code == 0, answer.err
    suites = ["clean", "class", "reliability", "attack", "corruption", "perturbation", "outside"]
    assert (answer.json["models"], answer.json["suites"]) == (["teacher", "other"], suites)
    text = file.read_text()
    assert answer.json["bytes"] == len(text.encode())
    assert text.count("<svg ") == 8  # corruptions have two
    assert FOREIGN not in text
    assert "&lt;script&gt;alert(1)" in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    words = re.sub("<[^>]*>", " ", text)
    assert "teacher: top-1 90% (80% to 90%), ECE 0.050" in words
    assert "Top-1 under fgsm. teacher: 20% (10% to 90%) at eps 4." in words
    assert "Mean corruption error: teacher 123.4%, other 123.4%." in words
    assert "Not all of these figures are of the same holdout images" in words
    assert 'data-n="0.77"' in text
    assert curator(*given).code == 2  # it exists
    assert curator(*given, "--force").code == 0
    assert file.read_text() == text


def test_one_model(evaluated: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = write(evaluated, ["other", "other"])
    assert made == (["other"], "other.html", (tmp_path / "other.html").stat().st_size, ["clean", "class", "corruption"])
    assert "Not all of these figures" not in (tmp_path / "other.html").read_text()


def test_refused(evaluated: Store, made_once: Path, curator: Callable[..., Answer], tmp_path: Path) -> None:
    store = ["--store", evaluated.path, "--output", tmp_path / "x.html"]
    assert "there is no model 'techer'; did you mean 'teacher'?" in curator("report", "--model", "techer", *store).err
    assert "neither a manifest nor a model is named" in curator("report", *store).err
    assert "do not fit on one page" in curator("report", "m", "--model", "teacher", *store).err
    teach(evaluated, "schedule.steps=1", name="new")
    answer = curator("report", "--model", "teacher", "--model", "new", *store)
    assert (answer.code, "mend: curator evaluate --model new" in answer.err) == (2, True)
    assert not (tmp_path / "x.html").exists()
    with pytest.raises(InputError, match="'outside' was named by an import: without weights it cannot be eval") as told:
        evaluations.newest(Store(made_once / "store"), ["outside"])
    assert told.value.mend == "name a model that was trained here: there is none yet"
    with pytest.raises(InputError, match="is a folder"):
        write(evaluated, ["teacher"], tmp_path)
