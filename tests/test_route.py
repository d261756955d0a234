"""The whole route through the command line, on real pictures: teacher, soft labels, manifest, student, and back."""

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Answer
from pictures import CLASSES, folders


class Route:
    """Runs commands with --json in the folder of the pictures and returns their documents."""

    def __init__(self, curator: Callable[..., Answer]) -> None:
        self._curator = curator

    def __call__(self, line: str) -> Any:
        answer = self._curator(*shlex.split(line), "--json")
        assert answer.code == 0, answer.err
        return answer.json


@pytest.fixture
def route(tmp_path: Path, curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> Route:
    folders(tmp_path, labeled=6, pool=20, holdout=8)
    monkeypatch.chdir(tmp_path)
    return Route(curator)


def test_the_route(route: Route, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    assert route("init")["store"] == "store"
    counts = {"added": 18, "already_present": 0, "unreadable": 0, "total": 18}
    assert route("add-images labeled --split labeled --labels folder").items() >= counts.items()
    assert route("add-images pool --split unlabeled")["added"] == 60
    assert route("add-images holdout --split holdout --labels folder")["added"] == 24
    assert route("sql 'select label, class_name from classes order by 1'") == [
        {"label": i, "class_name": name} for i, name in enumerate(CLASSES)
    ]

    teacher = route("train --recipe recipe.toml --set schedule.steps=40")
    assert (teacher["model"], teacher["generation"], teacher["steps"]) == ("g0-recipe", 0, 40)
    assert teacher["top1"] > 0.6
    labeled = route("label --model g0-recipe")
    assert (labeled["generation"], labeled["images"]) == (0, 102)
    assert labeled["images_per_second"] > 0

    preview = route("build-manifest --per-class 25 --dry-run")
    assert not (tmp_path / "store" / "manifests").exists()
    manifest = route("build-manifest --per-class 25")
    assert manifest["name"] == "g0-25"
    assert {k: manifest[k] for k in ("rows", "unique_images")} == {k: preview[k] for k in ("rows", "unique_images")}
    assert manifest["classes"] + len(manifest["empty_classes"]) == 3
    assert manifest["rows"] == 25 * manifest["classes"]
    assert manifest["unique_images"] <= 60

    student = route(
        "train --recipe recipe.toml --manifest g0-25 --name student --set noise.dropout=0.2 "
        "--set noise.randaugment_ops=2 --set noise.randaugment_magnitude=5"
    )
    assert (student["model"], student["generation"]) == ("student", 1)
    evaluation = route("evaluate --model student")
    assert evaluation["top1"] == student["top1"]
    assert {"top1", "top5", "ece"} <= evaluation.keys()

    check_files(tmp_path / "store", manifest)
    check_lineage(route, tmp_path / "store", manifest)
    check_text(curator)

    # the student is the teacher of the next round
    assert route("label --model student --split unlabeled")["generation"] == 1
    second = route("build-manifest --per-class 25")
    assert (second["name"], second["generation"]) == ("g1-25", 1)
    third = route("train --recipe recipe.toml --manifest g1-25 --set schedule.steps=2")
    assert (third["model"], third["generation"]) == ("g2-recipe", 2)
    models = route("sql 'select model, generation, parents, manifest from models order by generation'")
    assert models == [
        {"model": "g0-recipe", "generation": 0, "parents": [], "manifest": None},
        {"model": "student", "generation": 1, "parents": ["g0-recipe"], "manifest": "g0-25"},
        {"model": "g2-recipe", "generation": 2, "parents": ["student"], "manifest": "g1-25"},
    ]


def check_files(store: Path, manifest: dict[str, Any]) -> None:
    """What lies on the disk is what the answers said."""
    assert sorted(path.name for path in (store / "models").iterdir()) == ["g0-recipe", "student"]
    for model in ("g0-recipe", "student"):
        assert [path.name for path in (store / "models" / model).iterdir()] == ["weights.safetensors"]
    rows = pq.read_table(store / "manifests" / "g0-25").to_pylist()
    assert len(rows) == manifest["unique_images"]
    assert sum(row["copies"] for row in rows) == manifest["rows"]
    assert all(row["uri"].startswith("pool/") and row["source"] == "pseudo" for row in rows)
    assert all(Path(row["uri"]).is_file() for row in rows)
    assert [row["label"] for row in rows] == sorted(row["label"] for row in rows)
    assert not [path for path in store.rglob("*") if path.name.endswith(".unfinished")]


def check_lineage(route: Route, store: Path, manifest: dict[str, Any]) -> None:
    """From the student back to the weights that labeled its manifest."""
    shown = route("show g0-25")
    assert shown["sha256"] == manifest["sha256"]
    lineage = shown["lineage"]
    assert lineage == json.loads((store / "manifests" / "g0-25" / "_lineage.json").read_text("utf-8"))
    model = route("sql \"select * from models where model = 'g0-recipe'\"")[0]
    digest = hashlib.sha256((store / model["weights"]).read_bytes()).hexdigest()
    assert lineage["model"]["model"] == "g0-recipe"
    assert lineage["model"]["weights_hash"] == model["weights_hash"] == digest
    student = route("sql \"select * from models where model = 'student'\"")[0]
    assert student["parents"] == ["g0-recipe"]
    assert student["manifest"] == "g0-25"
    assert json.loads(student["recipe"])["noise"]["randaugment_ops"] == 2
    labels = route("sql 'select count(*) as n, count(distinct image_id) as d, min(generation) as g from labels'")
    assert labels == [{"n": 102, "d": 102, "g": 0}]
    # the manifest's labels are the table's, and no image of it is trusted or held out
    wrong = route(
        'sql \'select count(*) as n from "g0-25" as m join labels as l using (image_id) join images as i'
        " using (image_id) where m.label <> l.label or m.confidence <> l.confidence or m.top_probs <> l.top_probs"
        " or i.split <> $$unlabeled$$'"
    )
    assert wrong == [{"n": 0}]


def check_text(curator: Callable[..., Answer]) -> None:
    """The same answers for people."""
    for command, words in {
        "show g0-25": "g0-25: ",
        "manifests": "g0-25",
        "evaluate --model student": "student: top-1 ",
        "label --model g0-recipe": "generation 0: 0 images labeled by 'g0-recipe'",
        "build-manifest --per-class 25": "g0-25: ",
        "sql 'select count(*) from images'": "102",
    }.items():
        answer = curator(*shlex.split(command), "--quiet")
        assert answer.code == 0, answer.err
        assert words in answer.out
        assert answer.err == ""


def test_a_step_that_comes_too_early_says_what_is_missing(route: Route, curator: Callable[..., Answer]) -> None:
    def refused(line: str) -> str:
        answer = curator(*shlex.split(line))
        assert answer.code == 2
        assert answer.out == ""
        assert "Traceback" not in answer.err
        assert "mend: " in answer.err
        return answer.err

    assert "there is no store at 'store'" in refused("train --recipe recipe.toml")
    assert "there is no store at 'store'" in refused("label --model x")
    route("init")
    assert "the store has no classes yet" in refused("train --recipe recipe.toml")
    assert "there is no model 'x'" in refused("label --model x")
    assert "there is no model 'x'" in refused("evaluate --model x")
    refused("build-manifest --per-class 3")
    route("add-images labeled --split labeled")
    assert "there is no manifest 'g0-3'" in refused("train --recipe recipe.toml --manifest g0-3")
    assert "there is no recipe 'tiny'" in refused("train --recipe tiny")
