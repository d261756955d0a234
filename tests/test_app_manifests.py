"""The Manifests page: what it says of a manifest, two compared, and options tried without writing anything."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import Tab, browser, serve  # noqa: F401 - a fixture
from conftest import Answer
from streamlit.testing.v1 import AppTest
from traces import prints

from curator.curation import building, comparison, manifests
from curator.decisions.reviews import add_review
from curator.storage.store import Store


@pytest.fixture(scope="module")
def built(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The fixture store with two manifests: one image is rejected, another has a new class, between them."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(made_once, folder, dirs_exist_ok=True)
    store = Store(folder / "store")
    building.build(store, "before", {"per_class": 4})
    ids = {row["uri"][5]: row["image_id"] for row in store.rows("select image_id, uri from images")}
    add_review(store, ids["a"], "reject")
    add_review(store, ids["e"], "relabel", "owl")
    building.build(store, "after", {"per_class": 4})
    return store


def page() -> None:
    from curator.app import manifests

    manifests.show()


def look(store: Store, monkeypatch: pytest.MonkeyPatch, **shown: object) -> AppTest:
    """The page as a link shows it."""
    monkeypatch.setenv("CURATOR_STORE", str(store.path))
    at = AppTest.from_function(page, default_timeout=60)
    for name, value in shown.items():
        at.query_params[name] = str(value)
    at.run()
    assert not at.exception
    return at


def figures(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def test_a_manifest_in_figures(built: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    at = look(built, monkeypatch, manifest="before")
    assert at.dataframe[0].value["name"].tolist() == ["after", "before"]
    assert figures(at) == {"Rows, with copies": "12", "Images": "8", "Quota": "4", "Generation": "0"}
    assert any("fewer images to choose from than the quota of 4" in warning.value for warning in at.warning)
    short = at.dataframe[1].value
    assert dict(zip(short["class"], short["images to choose from"], strict=True)) == {"owl": 1, "dog": 3}
    lineage = at.dataframe[2].value.set_index("what")["value"]
    assert (lineage["teacher"], lineage["per-class"], lineage["seed"]) == ("outside", "4", "0")
    assert manifests.find(built, "before").lineage["sql"] in [code.value for code in at.code]
    assert look(built, monkeypatch, manifest="nonsense", view="nonsense").metric


def test_two_compared(built: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    at = look(built, monkeypatch, view="Compare", manifest="after", since="before")
    want = comparison.diff(built, "before", "after").totals
    assert want["removed"] == want["relabeled"] == 1
    assert figures(at) == {name.replace("_", " "): str(number) for name, number in want.items()}
    assert at.dataframe[1].value["class name"].tolist()
    assert look(built, monkeypatch, view="Compare", since="after").info
    assert not look(built, monkeypatch, view="Compare", since="nonsense", change="nonsense").metric


def test_the_images_that_differ(built: Store) -> None:
    """The rule again: what is in one and not in the other, or in both with another class or other copies."""
    rows = {}
    for name in ("before", "after"):
        found = built.rows(f"select * from read_parquet('{built.path}/manifests/{name}/*.parquet')")
        rows[name] = {row["image_id"]: row for row in found}
    was, now = rows["before"], rows["after"]
    both = was.keys() & now.keys()
    want = {
        "added": now.keys() - was.keys(),
        "removed": was.keys() - now.keys(),
        "relabeled": {image for image in both if was[image]["label"] != now[image]["label"]},
    }
    want["copies_changed"] = {i for i in both - want["relabeled"] if was[i]["copies"] != now[i]["copies"]}
    assert set(want) == set(comparison.CHANGES)
    for change, images in want.items():
        found = comparison.images(built, "before", "after", change, 100)
        assert {row["image_id"] for row in found} == images, change
        for row in found:
            kept = now.get(row["image_id"]) or was[row["image_id"]]
            assert row["uri"] == kept["uri"]
    assert len(comparison.images(built, "before", "after", "copies_changed", 1)) == 1


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "quota and threshold": {"per_class": 2, "min_confidence": 0.55},
    "a policy with a parameter": {"policy": "stratified", "stratified.bins": 3, "seed": 7},
    "a policy with a threshold": {"policy": "threshold", "threshold.threshold": 0.65},
    "an earlier manifest": {"policy": "images-of", "images-of.manifest": "before", "min_confidence": 0.0},
    "the newest of them": {"policy": "images-of", "min_confidence": 0.0},
    "no copies": {"fill": "none", "max_copies": 2, "near_leaks": "keep"},
    "reviews and repeats": {"accepted": "true", "dedup": "true"},
    "targets": {"targets": "auto", "hard_from": 0.7, "temperature": 1.5, "name": "my-own"},
}


@pytest.mark.long
@pytest.mark.parametrize("case", OPTIONS)
def test_what_is_tried_is_what_the_command_would_build(
    built: Store, monkeypatch: pytest.MonkeyPatch, curator: Callable[..., Answer], case: str
) -> None:
    before = prints(built.path)
    at = look(built, monkeypatch, view="Build", **OPTIONS[case])
    at.button[0].click().run()
    assert not at.exception
    assert not at.error, at.error[0].value
    command = shlex.split(next(code.value for code in at.code if code.value.startswith("curator build-manifest")))
    said = curator(*command[1:], "--dry-run", "--json", "--explain").json
    assert figures(at)["Rows, with copies"] == str(said["rows"])
    assert figures(at)["Images"] == str(said["unique_images"])
    tried = {name: value for name, value in OPTIONS[case].items() if name != "name"}
    for option, value in tried.items():
        held = said["lineage"]["parameters"]
        kept = held["settings"][option.split(".")[1]] if "." in option else held[option]
        assert str(kept).lower() == str(value), option
    assert prints(built.path) == before, "a dry run left something"


def test_no_sql_of_a_visitor_is_run_here(built: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The condition goes into the command, quoted, and nowhere else."""
    where = "uri = 'it''s' and exists (select * from read_csv('/etc/passwd')) -- $(touch x) `y`"
    at = look(built, monkeypatch, view="Build", where=where, policy="/etc/passwd.sql")
    at.button[0].click().run()
    assert not at.exception
    command = shlex.split(next(code.value for code in at.code if code.value.startswith("curator build-manifest")))
    assert command[command.index("--where") + 1] == where
    assert "--policy" not in command
    assert "only the command line runs" in at.info[0].value
    assert figures(at)["Images"] == "8"


def test_wrong_options_say_so(built: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for shown, said in (
        ({"name": "--yes"}, "cannot be the name of a manifest"),
        ({"calibrated": "true"}, "no temperature was fitted"),
        ({"min_confidence": 0.99}, "nothing can be selected"),
    ):
        at = look(built, monkeypatch, view="Build", **shown)
        if at.button:  # else it is told before anything is tried
            at.button[0].click().run()
        assert not at.exception
        assert at.error, shown
        assert said.replace(" ", "") in at.error[0].value.replace("\\", "").replace(" ", ""), shown
    nonsense = dict.fromkeys(
        ("generation", "per_class", "min_confidence", "policy", "seed", "fill", "dedup"), "nonsense"
    )
    at = look(built, monkeypatch, view="Build", **nonsense)
    assert "--per-class 4" in at.code[0].value


def test_a_store_without_manifests_and_one_without_labels(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = look(store, monkeypatch, policy="images-of")  # of which there are none
    assert at.selectbox("policy").value == "top"
    assert "images-of" not in at.selectbox("policy").options
    assert "no manifest yet" in at.info[0].value
    assert any("curator build-manifest" in code.value for code in at.code)
    at = look(Store.create(tmp_path / "fresh", ["cat"]), monkeypatch)
    assert any("curator label" in code.value for code in at.code)


def test_in_a_browser(built: Store, browser: Any) -> None:  # noqa: F811
    with serve(built.path) as url:
        tab = Tab(browser, url).open("manifests?manifest=before")
        tab.page.wait_for_selector('[data-testid="stVegaLiteChart"] svg, [data-testid="stVegaLiteChart"] canvas')
        assert "What each rule leaves" in tab.text
        tab.page.get_by_text("Compare", exact=True).click()
        tab.settle()
        assert "view=Compare" in tab.path
        tab.open("manifests?view=Compare&manifest=after&since=before&change=removed")
        assert tab.page.locator('[data-testid="stMain"] img').count() == 1
        assert "cat" in tab.text
        tab.open("manifests?view=Build&per_class=3&policy=released-code")
        tab.see("--per-class 3 --policy released-code")
        tab.page.get_by_role("button", name="Try it").click()
        tab.page.wait_for_selector("text=Rows, with copies")
        assert not tab.errors
