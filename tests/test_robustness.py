"""`evaluate` with its tests: what is answered, what is kept, and what is refused."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer
from pictures import teach, world, write
from PIL import Image

from curator.commands import evaluation as command
from curator.errors import InputError
from curator.measures import contact_sheet, evaluations, robustness
from curator.measures.robustness import Wanted
from curator.measures.trial import Trial
from curator.noise import corruptions, perturbations
from curator.storage.store import Store


@pytest.fixture(scope="module")
def tested_once(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A world with 36 holdout images and two models, "teacher" tested by everything, "other" by nothing."""
    store = world(tmp_path_factory.mktemp("tested"), labeled=8, pool=0, holdout=12)
    teach(store, "schedule.steps=12")  # it makes faults of every kind
    teach(store, "schedule.steps=8", "seed=5", name="other")
    for i in range(9):
        write(store.root / "strange" / f"{i}.png", np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8))
    (store.root / "strange" / "broken.png").write_bytes(b"no picture")
    everything = Wanted(("fgsm", "pgd"), (1, 8), 3, True, True, str(store.root / "strange"))
    assert not (store.path / "evaluations").exists()
    assert store.rows("select * from evaluations") == []  # a store that is older than the table
    document = robustness.evaluate(store, "teacher", everything).document()
    (store.root / "document.json").write_text(json.dumps(document))
    return store


@pytest.fixture
def document(tested_once: Store) -> dict:
    return json.loads((tested_once.root / "document.json").read_text())


@pytest.fixture
def store(tested_once: Store, tmp_path: Path) -> Store:
    shutil.copytree(tested_once.root, tmp_path / "copy")
    return Store(tmp_path / "copy" / "store")


@pytest.mark.long
def test_the_document(document: dict) -> None:
    assert document["images"] == sum(row["images"] for row in document["classes"]) == 36
    assert document["intervals"]["top1"][0] <= document["top1"] <= document["intervals"]["top1"][1]
    assert document["top1"] > 0.6
    assert sum(row["images"] for row in document["bins"]) == 36
    assert {name: [row["eps"] for row in rows] for name, rows in document["attacks"].items()} == {
        "fgsm": [1, 8],
        "pgd": [1, 8],
    }
    for rows in document["attacks"].values():
        assert document["top1"] >= rows[0]["top1"] > rows[1]["top1"]
        assert rows[0].keys() >= {"top1", "top1_low", "top1_high", "top5", "ece", "confidence"}
    kinds = document["corruptions"]["kinds"]
    assert tuple(kinds) == corruptions.KINDS
    assert document["corruptions"]["parameters"] == "CIFAR-10-C"
    errors = [1 - row["top1"] for rows in kinds.values() for row in rows]
    assert len(errors) == 75
    assert document["corruptions"]["mean_error"] == pytest.approx(np.mean(errors))
    films = document["perturbations"]["kinds"]
    assert tuple(films) == perturbations.KINDS
    flips = [row["flip_probability"] for row in films.values()]
    assert document["perturbations"]["mean_flip_probability"] == pytest.approx(np.mean(flips))
    assert 0 < max(flips) < 1
    outside = document["outside"]
    assert (outside["images"], outside["failed"]) == (9, 1)
    assert 1 / 3 <= outside["confidence"] <= 1
    assert outside["above_0.3"] >= outside["above_0.5"] >= outside["above_0.9"]


@pytest.mark.long
def test_every_figure_is_kept(tested_once: Store, document: dict) -> None:
    rows = tested_once.rows("select * from evaluations where model = 'teacher'")
    found = {(row["suite"], row["kind"], row["level"], row["measure"]): row for row in rows}
    assert len(found) == len(rows)

    def kept(suite: str, kind: str | None, level: float | None, measure: str) -> float:
        return found[suite, kind, level, measure]["value"]

    assert kept("clean", None, None, "top1") == document["top1"]
    assert kept("attack", "pgd", 8, "ece") == document["attacks"]["pgd"][1]["ece"]
    assert kept("corruption", "fog", 5, "top1") == document["corruptions"]["kinds"]["fog"][4]["top1"]
    assert kept("corruption", None, None, "mean_error") == document["corruptions"]["mean_error"]
    assert (
        kept("perturbation", "tilt", None, "flip_probability")
        == (document["perturbations"]["kinds"]["tilt"]["flip_probability"])
    )
    folder = str(tested_once.root / "strange")
    assert kept("outside", folder, None, "auroc_energy") == document["outside"]["auroc_energy"]
    assert found["outside", folder, None, "auroc_energy"]["images"] == 9
    for row in document["classes"]:
        assert kept("class", row["class_name"], row["label"], "top1") == row["top1"]
    assert {row["basis"] for row in rows} == {document["basis"]}
    assert json.loads(found["attack", "pgd", 1, "top1"]["options"]) == {"limit": None, "resolution": 16, "steps": 3}


def test_a_corruption_by_hand(tested_once: Store, document: dict) -> None:
    wrong = []

    def work(given: object) -> None:
        changed = corruptions.corrupt(given.pixels, given.ids, "fog", 4, 0)
        wrong.extend(trial.engine(changed).argmax(axis=1) != given.labels)

    with closing(Trial(tested_once, "teacher", None, 0)) as trial:
        trial.holdout("by hand", work, 7)
    assert len(wrong) == 36
    assert 1 - np.mean(wrong) == pytest.approx(document["corruptions"]["kinds"]["fog"][3]["top1"])


def test_threads_and_batches_change_nothing(store: Store, document: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curator.measures.trial._BATCH", 5)
    monkeypatch.setattr(corruptions, "KINDS", ("gaussian_noise", "glass_blur"))
    wanted = Wanted(("pgd",), (1, 8), 3, corruptions=True)
    found = robustness.evaluate(store, "teacher", wanted, threads=3).document()
    assert found["basis"] == document["basis"]
    assert [row["top1"] for row in found["attacks"]["pgd"]] == [row["top1"] for row in document["attacks"]["pgd"]]
    for kind, rows in found["corruptions"]["kinds"].items():
        assert [row["top1"] for row in rows] == [row["top1"] for row in document["corruptions"]["kinds"][kind]]


def test_relative_to_a_baseline(store: Store, document: dict) -> None:
    findings = robustness.evaluate(store, "other", Wanted(corruptions=True, perturbations=True, baseline="teacher"))
    answer = findings.document()
    found, before = answer["corruptions"], document["corruptions"]["kinds"]
    errors = {k: sum(1 - row["top1"] for row in rows) for k, rows in found["kinds"].items()}
    theirs = {k: sum(1 - row["top1"] for row in rows) for k, rows in before.items()}
    assert found["mce"] == pytest.approx(100 * np.mean([errors[k] / theirs[k] for k in errors]))
    assert found["mce_low"] < found["mce"] < found["mce_high"]
    clean, their_clean = 5 * (1 - answer["top1"]), 5 * (1 - document["top1"])
    gained = [(errors[k] - clean) / (theirs[k] - their_clean) for k in errors]
    assert found["relative_mce"] == pytest.approx(100 * np.mean(gained))
    kinds, their_kinds = answer["perturbations"]["kinds"], document["perturbations"]["kinds"]
    rates, their_rates = ({k: row["flip_probability"] for k, row in each.items()} for each in (kinds, their_kinds))
    mean = answer["perturbations"]["mean_flip_rate"]
    if all(their_rates.values()):
        assert mean == pytest.approx(100 * np.mean([rates[k] / their_rates[k] for k in rates]))
    else:
        assert mean is None
    told = command._text(findings, classes=True)
    assert f"mean corruption error {found['mce']:.1f} % of 'teacher' ({found['mce_low']:.1f} to" in told
    assert "mean flip rate" in told
    kept = store.rows("select value from evaluations where model = 'other' and measure = 'mce'")
    assert kept == [{"value": found["mce"]}]


def test_a_baseline_without_figures(store: Store, curator: Callable[..., Answer]) -> None:
    given = ["evaluate", "--model", "teacher", "--store", store.path, "--corruptions"]
    answer = curator(*given, "--baseline", "other")
    assert answer.code == 2
    assert "error: the baseline 'other' was not tested by every corruption on these images" in answer.err
    assert "mend: curator evaluate --model other --corruptions" in answer.err
    sampled = curator(*given, "--baseline", "teacher", "--limit", 12, "--seed", 3)  # other images
    assert "mend: curator evaluate --model teacher --corruptions --limit 12 --seed 3" in sampled.err
    assert "there is no model 'othr'; did you mean 'other'?" in curator(*given, "--baseline", "othr").err


def test_a_baseline_without_a_fault() -> None:
    some = {"fog": np.array([0.1, 0.2]), "snow": np.array([0.3, 0.3])}
    assert evaluations.ratio(some, {"fog": 0.2, "snow": 0.6}) == pytest.approx([50, 75])
    assert evaluations.ratio(some, {"fog": 0.2, "snow": 0.0}) is None


def test_a_sample_has_each_class_by_its_share(store: Store) -> None:
    for i in range(12):
        write(store.root / "more" / "bar" / f"{i}.png", np.full((20, 20, 3), i, np.uint8))
    from curator.pictures.images import add_images

    add_images(store, str(store.root / "more"), "holdout")  # 24 of bar, 12 of each other class
    sizes = {}
    for seed in (0, 1):
        found = robustness.evaluate(store, "teacher", Wanted(limit=16, seed=seed)).document()
        sizes[found["basis"]] = [row["images"] for row in found["classes"]]
        assert (found["images"], found["limit"], found["seed"]) == (16, 16, seed)
    assert list(sizes.values()) == [[8, 4, 4]] * 2  # and two bases: other images
    assert len(sizes) == 2
    assert robustness.evaluate(store, "teacher", Wanted(limit=16)).basis.digest in sizes
    assert robustness.evaluate(store, "teacher", Wanted(limit=1000)).clean.images == 48
    assert robustness.evaluate(store, "teacher", Wanted(limit=1)).clean.images == 1


def test_the_newest_counts(store: Store) -> None:
    before = store.rows("select value, images from evaluations where suite = 'clean' and measure = 'top1'")
    assert before[0]["images"] == 36
    robustness.evaluate(store, "teacher", Wanted(limit=12))
    after = store.rows("select value, images from evaluations where suite = 'clean' and measure = 'top1'")
    assert [row["images"] for row in after] == [12]
    assert len(store.rows("select * from evaluations where suite = 'corruption'")) == 75 * 4 + 1


def test_what_is_finished_is_kept(
    store: Store, curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = corruptions.corrupt

    def stopped(pixels: np.ndarray, ids: np.ndarray, kind: str, severity: int, seed: int = 0) -> np.ndarray:
        if kind == "impulse_noise":
            raise KeyboardInterrupt
        return real(pixels, ids, kind, severity, seed)

    monkeypatch.setattr(corruptions, "corrupt", stopped)
    given = ["evaluate", "--model", "other", "--store", store.path, "--attack", "fgsm", "--eps", 2, "--corruptions"]
    assert curator(*given).code == 130
    rows = store.rows("select distinct suite, kind from evaluations where model = 'other' and suite <> 'class'")
    kept = {(row["suite"], row["kind"]) for row in rows}
    assert kept >= {("clean", None), ("attack", "fgsm"), ("corruption", "gaussian_noise"), ("corruption", "shot_noise")}
    assert not kept & {("corruption", "impulse_noise"), ("corruption", None)}
    # half of a baseline is none
    monkeypatch.undo()
    answer = curator("evaluate", "--model", "teacher", "--store", store.path, "--corruptions", "--baseline", "other")
    assert "was not tested by every corruption" in answer.err


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "message", "mend"),
    [
        (["--eps", "4"], "an eps or steps are given and no attack", "add --attack fgsm or --attack pgd"),
        (["--steps", "4"], "an eps or steps are given and no attack", "add --attack"),
        (["--attack", "fgms"], "the attack 'fgms' is unknown; did you mean 'fgsm'?", "--attack fgsm|pgd"),
        (["--attack", "fgsm", "--eps", "-1"], "an eps of -1 is no distance", "above 0"),
        (["--attack", "fgsm", "--eps", "0"], "an eps of 0 is no distance", "above 0"),
        (["--attack", "fgsm", "--eps", "nan"], "an eps of nan is no distance", "above 0"),
        (["--attack", "pgd", "--steps", "0"], "PGD cannot take 0 steps", "--steps 10"),
        (["--limit", "0"], "a sample of 0 images is empty", "--limit 1000"),
        (["--baseline", "other"], "neither is asked for", "--corruptions or --perturbations"),
        (["--outside", "nowhere"], "there is no folder or file 'nowhere'", "check the path"),
        (["--show", "x.png"], "they are not asked for", "add --corruptions"),
        (["--corruptions", "--show", "x.jpg"], "does not end in .png", "--show corruptions.png"),
    ],
)
def test_refused(
    tested_once: Store, curator: Callable[..., Answer], options: list[str], message: str, mend: str
) -> None:
    count = len(tested_once.files("evaluations"))
    answer = curator("evaluate", "--model", "teacher", "--store", tested_once.path, *options)
    assert answer.code == 2
    assert answer.out == ""
    assert message in answer.err
    assert mend in answer.err
    assert len(tested_once.files("evaluations")) == count


def test_a_folder_without_a_readable_picture(store: Store, curator: Callable[..., Answer]) -> None:
    given = ["evaluate", "--model", "teacher", "--store", store.path, "--outside"]
    (store.root / "empty").mkdir()
    assert "error: " in (answer := curator(*given, store.root / "empty")).err
    assert answer.code == 2
    (store.root / "empty" / "x.png").write_bytes(b"nothing")
    assert "can be read" in curator(*given, store.root / "empty").err


def test_no_holdout(store: Store) -> None:
    store.delta("images").delete("split = 'holdout'")
    with pytest.raises(InputError, match="no holdout images"):
        robustness.evaluate(store, "teacher")
    with pytest.raises(InputError, match="no holdout image that can be read"):
        contact_sheet.write(store, "teacher", store.root / "x.png")


def test_the_contact_sheet(store: Store, curator: Callable[..., Answer]) -> None:
    file = store.root / "sheet.png"
    contact_sheet.write(store, "teacher", file)
    made = Image.open(file)
    assert made.size == (130 + 6 * 100, 16 + 15 * 100)  # tiles of 96 pixels, six times 16
    first = store.rows("select uri, image_id from images where split = 'holdout' order by image_id limit 1")[0]
    with closing(Trial(store, "teacher", None, 0)) as trial:
        seen, _ = trial.holdout("", lambda given: (given.ids, given.pixels), 36)
    assert seen[0][0][0] == first["image_id"]
    picture = seen[0][1][:1]
    pixels = np.asarray(made)
    assert (pixels[16:112:6, 130:226:6] == picture[0]).all()
    fog = corruptions.KINDS.index("fog")
    tile = pixels[16 + 100 * fog :][:96:6, 130 + 500 : 130 + 596 : 6]
    assert (tile == corruptions.corrupt(picture, np.array([first["image_id"]]), "fog", 5)[0]).all()
    answer = curator("evaluate", "--model", "teacher", "--store", store.path, "--corruptions", "--show", file)
    assert f"'{file}' exists" in answer.err
