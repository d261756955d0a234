"""The pages of figures - Classes, Disagreement, Calibration, Training - over two generations with a holdout."""

import datetime as dt
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import streamlit
from browser import Tab, browser, serve  # noqa: F401 - a fixture
from curator.app.live import live
from pictures import folders
from streamlit.testing.v1 import AppTest

from curator import queries
from curator.curation import building
from curator.decisions.reviews import add_review
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality import audit, calibration, disagreement
from curator.runs.journal import Journal
from curator.schema import METRICS
from curator.storage import additions
from curator.storage.store import Store

# The second name would be markup, end a text in an expression, or run off, were it not shown as text.
NAMES = ("bar", "a '\\' <b>*disc*</b> $x$", "square")
POOL, HELD = 5, 3  # pictures of each class
# Images that a generation takes for another class, by picture and class: the class it gives, and how sure it is.
FIRST = {("pool", 0, 0): (1, 0.8), ("pool", 1, 0): (1, 0.85), ("holdout", 0, 0): (1, 0.7)}
SECOND = {("pool", 1, 0): (1, 0.6), ("pool", 0, 1): (2, 0.65), ("holdout", 0, 2): (1, 0.55)}
PAGES = ("classes", "disagreement", "calibration", "training")


def pictures() -> list[tuple[str, int, int, str]]:
    """Split, number, class and uri of each."""
    pool = [("pool", i, c, f"pool/{3 * i + c:04d}.png") for i in range(POOL) for c in range(3)]
    held = [("holdout", i, c, f"holdout/{('bar', 'disc', 'square')[c]}/{i}.png") for i in range(HELD) for c in range(3)]
    return pool + held


def given(wrong: dict[tuple[str, int, int], tuple[int, float]]) -> list[tuple[str, int, int, float]]:
    """Split, true class, class and confidence that a generation gives to each picture."""
    return [(split, c, *wrong.get((split, i, c), (c, 0.9 + 0.01 * i))) for split, i, c, _ in pictures()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store; to be copied where something is written."""
    root = tmp_path_factory.mktemp("numbers")
    folders(root, labeled=1, pool=POOL, holdout=HELD)
    store = Store.create(root / "store", NAMES)
    for split, name in (("pool", "unlabeled"), ("holdout", "holdout")):
        chosen = [(uri, NAMES[c]) for of, _, c, uri in pictures() if of == split]
        columns = {"uri": [uri for uri, _ in chosen]}
        if split == "holdout":
            columns["label"] = [name for _, name in chosen]
        pq.write_table(pa.table(columns), root / f"{split}.parquet")
        add_images(store, str(root / f"{split}.parquet"), name)
    for generation, wrong in enumerate((FIRST, SECOND)):
        rows = []
        for _, _, label, confidence in given(wrong):
            probs = np.full(3, (1 - confidence) / 2)
            probs[label] = confidence
            rows.append(probs.tolist())
        table = pa.table({"uri": [uri for *_, uri in pictures()], "probs": pa.array(rows, pa.list_(pa.float32()))})
        pq.write_table(table, root / "labels.parquet")
        import_labels(store, str(root / "labels.parquet"), generation, f"m{generation}")
    building.build(store, "second", {"per_class": 5, "min_confidence": 0.3})
    journal = Journal(store, "student", 10.0)
    for step in range(201):
        journal.note(step, step == 200, 1 / (step + 1), 0.1)
    journal.write(201, [7], {"top1": 0.75, "images_per_second": 100.0})
    return store


@pytest.fixture
def second(measured: Store, tmp_path: Path) -> Store:
    """A copy of it that a test may write to."""
    shutil.copytree(measured.root, tmp_path / "copy")
    return Store(tmp_path / "copy" / "store")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., AppTest]]:
    """Runs a page without a browser: page("classes", store, order="most copies")."""

    def run(name: str, store: Store, /, **shown: str) -> AppTest:
        monkeypatch.setenv("CURATOR_STORE", str(store.path))
        live().refresh()  # what the test did to the store within the last second
        script = tmp_path / f"{name}.py"
        script.write_text(f"from curator.app import {name} as page\npage.show()\n")
        test = AppTest.from_file(script, default_timeout=30)
        for key, value in shown.items():
            test.query_params[key] = value
        test.run()
        assert not test.exception, test.exception
        return test

    yield run
    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()  # DuckDB complains of connections that are open at the end


def shown(test: AppTest) -> str:
    """All that can be read."""
    parts = [*test.title, *test.subheader, *test.caption, *test.markdown, *test.text, *test.info, *test.code]
    return "\n".join(str(part.value) for part in parts)


def metrics(test: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in test.metric}


def files(store: Store) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in store.path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", PAGES)
def test_a_fresh_store_says_what_to_do(name: str, page: Callable[..., AppTest], tmp_path: Path) -> None:
    test = page(name, Store.create(tmp_path / "store"))
    assert any(code.value.startswith("curator ") for code in test.code)


@pytest.mark.parametrize("name", PAGES)
def test_pages_write_nothing_and_bear_nonsense(name: str, page: Callable[..., AppTest], measured: Store) -> None:
    before = files(measured)
    nonsense = ("generation", "class", "manifest", "order", "short", "split", "teacher", "threshold", "run", "cell")
    page(name, measured)
    page(name, measured, **dict.fromkeys(nonsense, "flip-99-99"))
    assert files(measured) == before


def test_classes_are_counted(page: Callable[..., AppTest], measured: Store) -> None:
    table = page("classes", measured).dataframe[0].value
    assert len(table) == 3
    for label, row in enumerate(table.to_dict("records")):
        sure = [p for split, _, given_, p in given(SECOND) if split == "pool" and given_ == label]
        assert (row["images"], row["kept"]) == (len(sure), min(len(sure), 5))
        assert row["confidence"] == pytest.approx(100 * np.mean(sure), abs=1e-4)
        assert sum(row["histogram"]) == len(sure)
        assert row["shortfall"] == max(5 - len(sure), 0)
        assert row["cut_off"] == pytest.approx(min(sorted(sure)[-5:]))
        above = [
            (c, g) for split, c, g, p in given(SECOND) if split == "holdout" and g == label and p >= row["cut_off"]
        ]
        assert row["precision"] == pytest.approx(100 * sum(c == g for c, g in above) / len(above))


def test_classes_in_another_order_and_fewer(page: Callable[..., AppTest], measured: Store) -> None:
    first = page("classes", measured, order="fewest pool images").dataframe[0].value
    assert first["images"].is_monotonic_increasing
    assert page("classes", measured, order="fewest pool images", short="true").dataframe[0].value["shortfall"].min() > 0
    assert page("classes", measured, name="SQUA").dataframe[0].value["class_name"].tolist() == ["square"]
    assert "No class passes these filters." in [told.value for told in page("classes", measured, name="zzz").info]
    without = page("classes", measured, manifest="no manifest")
    assert "kept" not in without.dataframe[0].value
    assert "curator build-manifest" in shown(page("classes", measured, generation="0"))


def test_one_class(page: Callable[..., AppTest], measured: Store) -> None:
    test = page("classes", measured, **{"class": NAMES[1]})
    own, taken = (frame.value for frame in test.dataframe[1:])
    assert dict(zip(own["class"], own["images"], strict=True)) == {NAMES[1]: 3}
    assert dict(zip(taken["class"], taken["images"], strict=True)) == {NAMES[1]: 3, "square": 1}
    assert len(test.get("vega_lite_chart")) == 1


def test_classes_without_the_kept_histograms(page: Callable[..., AppTest], second: Store) -> None:
    before = page("classes", second).dataframe[0].value
    shutil.rmtree(second.path / "histograms")
    shutil.rmtree(second.path / "browse")
    assert page("classes", second).dataframe[0].value.equals(before)
    assert not (second.path / "histograms").exists()


def test_an_audit_counts(page: Callable[..., AppTest], second: Store) -> None:
    assert "audited" not in page("classes", second).dataframe[0].value
    found = audit.audit(second, per_class=5)
    for row in found.open:
        add_review(second, row["image_id"], "reject" if row["class_name"] == "bar" else "accept")
    table = page("classes", second).dataframe[0].value
    assert table["audited"].tolist() == [0, 100, 100]


def test_disagreement_in_numbers(page: Callable[..., AppTest], measured: Store) -> None:
    test = page("disagreement", measured)
    said = metrics(test)
    moved = sum(a[2] != b[2] for a, b in zip(given(FIRST), given(SECOND), strict=True) if a[0] == "pool")
    assert (said["Images in both"], said["Another class now"]) == ("15", str(moved))
    right = sum(c == g for split, c, g, _ in given(SECOND) if split == "holdout")
    assert said["Right on the holdout"] == f"{right / 9:.1%}"
    table = test.dataframe[0].value.set_index("class_name")
    assert table.loc["bar", "left_it"] == 0
    assert table.loc["bar", "came"] == 1
    assert len(test.get("vega_lite_chart")) == 2


def test_matrices(measured: Store) -> None:
    both = list(zip(given(FIRST), given(SECOND), strict=True))
    flips = Counter((a[2], b[2]) for a, b in both if a[0] == "pool" and a[2] != b[2])
    before = Counter(a[1:3] for a, _ in both if a[0] == "holdout" and a[1] != a[2])
    after = Counter(b[1:3] for _, b in both if b[0] == "holdout" and b[1] != b[2])
    for label in (None, 0, 2):
        values = {"generation": 1, "split": "unlabeled", "label": label, "most": 3}
        rows = measured.rows(queries.text("disagreement_matrix"), **values)
        found = {(row["label_before"], row["label_after"]): row["images"] for row in rows}
        assert found == {cell: n for cell, n in flips.items() if label is None or label in cell}
        query = queries.compose(queries.steps("mistakes"), queries.text("disagreement_mistakes"))
        rows = measured.rows(query, **values)
        assert {(row["truth"], row["label"]): (row["before"], row["after"]) for row in rows} == {
            cell: (before[cell], after[cell]) for cell in before + after if label is None or label in cell
        }
    one = measured.rows(queries.text("disagreement_matrix"), generation=1, split="unlabeled", label=None, most=2)
    assert {row["label_before"] for row in one} | {row["label_after"] for row in one} == {0, 1}


@pytest.mark.parametrize(
    ("cell", "title", "captions"),
    [
        ("flip-1-0", "before, bar now", ["0.80 -> 0.90"]),
        ("now-2-1", "by generation 1", ["0.55"]),
        ("before-0-1", "by generation 0", ["0.70"]),
    ],
)
def test_a_cell_shows_its_images(
    page: Callable[..., AppTest], measured: Store, cell: str, title: str, captions: list[str]
) -> None:
    test = page("disagreement", measured, cell=cell)
    assert title in test.subheader[0].value
    images = [image for group in test.image for image in group.proto.imgs]
    assert [image.caption for image in images] == captions
    left = test.button[0].click().run()
    assert left.subheader[0].value == "Images that changed most"


def test_generations_that_were_not_compared(page: Callable[..., AppTest], second: Store) -> None:
    for name in ("drift", "changes"):
        shutil.rmtree(second.path / name)
    assert disagreement.pair(second)[1] is False
    assert "curator quality disagreement --generation 1" in shown(page("disagreement", second))
    assert not (second.path / "drift").exists()
    assert "Generation 0 is the first one" in shown(page("disagreement", second, generation="0"))
    disagreement.between(second)
    assert disagreement.pair(second)[1] is True


def test_calibration_as_the_command_has_it(page: Callable[..., AppTest], second: Store) -> None:
    expected = calibration.calibrate(second, min_confidence=0.6, dry_run=True)
    test = page("calibration", second, threshold="0.6")
    said = metrics(test)
    assert said["ECE as given"] == f"{expected.ece_before:.4f}"
    assert said["NLL as given"] == f"{expected.nll_before:.4f}"
    assert "curator quality calibration --model m1" in shown(test)
    table = test.dataframe[0].value.set_index("class")
    for row in expected.classes:
        assert table.loc[row["class_name"], "precision"] == pytest.approx(100 * row["precision"])
        assert table.loc[row["class_name"], "low"] == pytest.approx(100 * row["precision_low"])
    above = sum(p > 0.6 for split, *_, p in given(SECOND) if split == "pool")
    assert said["Pool images selected"] == str(above)
    calibration.calibrate(second)
    found = calibration.read(second, 1)
    assert found is not None
    assert found.fit is not None
    assert found.fit["temperature"] == expected.temperature
    assert found.bins == expected.bins
    assert sum(row["images"] for row in found.bins_after) == 9
    assert f"temperature {expected.temperature:.3f}" in shown(page("calibration", second))


def test_no_holdout_no_calibration(store: Store, page: Callable[..., AppTest]) -> None:
    assert calibration.read(store, 0) is None
    assert "curator label --model NAME --split holdout" in shown(page("calibration", store))


@pytest.mark.parametrize("most", [1, 7, 100, 1000])
def test_curves_are_thinned_out(measured: Store, most: int) -> None:
    rows = measured.rows(queries.text("training_curves"), runs=["student"], most=most)
    assert not any(row["name"].startswith("unreadable:") for row in rows)
    steps = [row["step"] for row in rows if row["name"] == "loss"]
    kept = [1, 51, 101, 151, 201]
    stride = -(-len(kept) // most)
    assert steps == sorted({*kept[::stride], kept[-1]})


def test_training(page: Callable[..., AppTest], second: Store) -> None:
    test = page("training", second)
    assert "goes on" in shown(test)  # it wrote a moment ago and is no model
    assert test.dataframe[0].value["model"].tolist() == ["m0", "m1"]
    assert len(test.get("vega_lite_chart")) == 4
    assert test.multiselect[0].value == ["student"]
    assert "Choose a run" in shown(test.multiselect[0].set_value([]).run())
    second.delta("metrics").delete()
    old = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    additions.append(
        second, "metrics", pa.table([["late"], [1], [0.1], ["loss"], [float("nan")], [old]], schema=METRICS.schema)
    )
    test = page("training", second)
    assert "goes on" not in shown(test)
    assert test.multiselect[0].value == ["late"]


@pytest.fixture(scope="module")
def url(measured: Store) -> Iterator[str]:
    with serve(measured.path) as address:
        yield address


@pytest.mark.parametrize("name", PAGES)
def test_pages_in_a_browser(url: str, browser, name: str) -> None:  # noqa: F811
    tab = Tab(browser, url).open(name)
    assert tab.text.startswith(name.capitalize())
    assert "Traceback" not in tab.text
    tab.page.wait_for_selector('[data-testid="stVegaLiteChart"] svg, [data-testid="stDataFrame"]')
    assert not tab.errors
    tab.page.close()


def test_a_click_on_a_cell(url: str, browser) -> None:  # noqa: F811
    tab = Tab(browser, url, height=1400).open("disagreement")
    chart = tab.page.locator('[data-testid="stVegaLiteChart"]').first
    chart.locator('[aria-roledescription="rect mark"]').first.click(force=True)
    tab.page.wait_for_url("**cell=flip-1-0**")
    tab.settle()
    assert f"{NAMES[1]} before, bar now" in tab.text
    assert "0.80 → 0.90" in tab.text
    assert tab.page.locator("[data-testid=stMain] img").count() == 1
    assert NAMES[1] in chart.inner_text() or NAMES[1][:10] in chart.inner_text()
    again = Tab(browser, url).open(tab.path)
    again.page.get_by_text("0.80 → 0.90").wait_for()
    for each in (tab, again):
        assert not each.errors
        each.page.close()


def test_a_class_is_selected_and_followed(url: str, browser) -> None:  # noqa: F811
    tab = Tab(browser, url, height=1400).open("classes?order=lowest+mean+confidence")
    table = tab.page.locator('[data-testid="stDataFrame"] canvas').first
    table.wait_for()
    table.click(position={"x": 16, "y": 37 + 17}, force=True)  # a layer for scrolling lies above it
    tab.page.wait_for_url("**class=**")
    tab.settle()
    assert "Confusion on the holdout" in tab.text
    here = tab.path
    for name, path, there in (
        ("Changes", "disagreement", "From class to class"),
        ("Least confident images", "gallery", "Gallery"),
        ("Review", "review", "Review"),
    ):
        tab.page.locator('[data-testid="stMain"]').get_by_role("link", name=name).click()
        tab.page.wait_for_url(f"**/{path}?**class=**")
        tab.page.get_by_text(there, exact=True).first.wait_for()
        tab.open(here)
        tab.page.get_by_text("Confusion on the holdout").wait_for()
    assert not tab.errors
    tab.page.close()
