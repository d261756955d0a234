"""The Gallery and Image pages: in a browser with pictures, and by AppTest for choices, states and hostile names."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Tab, browser, serve  # noqa: F401 - a fixture
from streamlit.testing.v1 import AppTest

from curator.curation import building
from curator.decisions.reviews import add_review
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.storage.store import Store

HOSTILE = "<b>bold</b> [a](http://x) **c** `d` $e$ :red[f] | g\nh \u202ei"
NAMES = ["cat", "dog", HOSTILE]
COUNT = 60


def digest(store: Store) -> dict[str, int]:
    """The versions of all tables."""
    return store.every_version()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """60 images of three classes, the more confident the later; the first has no file, the second is no picture."""
    folder = tmp_path_factory.mktemp("pool")
    store = Store.create(folder / "store", NAMES)
    uris = [f"pool/{n:02}-{'<i>x' if n == 5 else 'y'}.png" for n in range(COUNT)]
    (folder / "pool" / "05-<i>x.png").parent.mkdir()
    rng = np.random.default_rng(0)
    for n, uri in enumerate(uris[1:], start=1):
        pixels = cv2.resize(rng.integers(0, 255, (4, 4, 3)).astype(np.uint8), (40, 30))
        (folder / uri).write_bytes(b"no picture" if n == 1 else cv2.imencode(".png", pixels)[1].tobytes())
    pq.write_table(pa.table({"uri": uris}), folder / "pool.parquet")
    add_images(store, str(folder / "pool.parquet"), "unlabeled", scan=False)
    for generation in (0, 1):
        first = [0.5 + n / 200 + generation / 10 for n in range(COUNT)]
        probs = [list(np.roll([p, 1 - p, 0.0], n % 3)) for n, p in enumerate(first)]
        table = {"uri": uris, "probs": pa.array(probs, pa.list_(pa.float32()))}
        pq.write_table(pa.table(table), folder / "probs.parquet")
        import_labels(store, str(folder / "probs.parquet"), generation, f"model{generation}")
    building.build(store, "m", {"generation": 1, "per_class": 5, "min_confidence": 0.3})
    ids = number(store)
    add_review(store, ids[3], "accept", None, "anna", None)
    add_review(store, ids[4], "relabel", HOSTILE, "<b>anna</b>", "a **reason**")
    return store


def number(store: Store) -> dict[int, int]:
    """The image ids by the number in the file's name."""
    return {int(row["uri"][5:7]): row["image_id"] for row in store.rows("select image_id, uri from images")}


@pytest.fixture(scope="module")
def url(pool: Store) -> Iterator[str]:
    with serve(pool.path) as address:
        yield address


@pytest.fixture
def tab(browser: Any, url: str) -> Iterator[Tab]:  # noqa: F811
    opened = Tab(browser, url)
    yield opened
    assert not opened.errors
    opened.page.close()


def captions(tab: Tab, count: int) -> list[str]:
    """What stands under the pictures, once there are so many."""
    found = tab.page.locator('[data-testid="stImageCaption"]')
    tab.page.wait_for_function(
        f"document.querySelectorAll('[data-testid=\"stImageCaption\"]').length === {count}", timeout=20_000
    )
    return found.all_inner_texts()


def choose(tab: Tab, label: str, option: str) -> None:
    tab.page.get_by_label(label, exact=False).first.click()
    tab.page.get_by_role("option", name=option, exact=True).click()
    tab.settle()


def confidences(texts: list[str]) -> list[float]:
    return [float(re.findall(r"[01]\.\d{3}", text)[0]) for text in texts]


def test_filter_and_page(tab: Tab) -> None:
    tab.open("gallery")
    captions(tab, 24)
    assert "60 images" in tab.text
    assert tab.page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    choose(tab, "Class", "dog")
    shown = confidences(captions(tab, 20))
    assert shown == sorted(shown)
    assert "20 images" in tab.text
    assert "class=dog" in tab.path
    choose(tab, "Class", "all classes")
    captions(tab, 24)
    tab.page.get_by_role("button", name="Page 3").click()
    captions(tab, 12)
    assert "page=3" in tab.path
    choose(tab, "Class", "cat")  # another filter begins at its first page
    captions(tab, 20)
    assert "page=" not in tab.path


def test_deep_link_in(tab: Tab) -> None:
    tab.open("gallery?class=dog&order=highest+confidence&confidence=0.6&confidence=0.7&generation=0")
    shown = confidences(captions(tab, 7))
    assert shown == sorted(shown, reverse=True)
    assert shown[0] <= 0.7
    assert shown[-1] >= 0.6
    tab.open("gallery?page=3")
    captions(tab, 12)
    tab.open("gallery?size=48&page=2")
    captions(tab, 12)


def test_nonsense_in_the_url(tab: Tab) -> None:
    tab.open("gallery?class=nobody&order=7&confidence=x&generation=99&size=5&decision=%00&split=q&source=z&page=x")
    captions(tab, 24)
    assert "60 images" in tab.text
    tab.open("gallery?page=999")  # the last one
    captions(tab, 12)
    for given in ("x", "-1", "99999999999999999999999", "%F0%9F%98%80", "1%00"):
        tab.open(f"image?image_id={given}")
        tab.page.get_by_text("There is no image").wait_for()


def test_pictures_that_cannot_be_shown(tab: Tab) -> None:
    tab.open("gallery?generation=0")
    first, second = captions(tab, 24)[:2]
    assert "pool/00-y.png: No such file or directory" in first
    assert "pool/01-y.png: not an image" in second


def test_decisions_and_hostile_names(tab: Tab) -> None:
    tab.open("gallery?decision=reviewed&generation=0")
    accepted, relabeled = captions(tab, 2)
    assert "accept" in accepted
    assert "relabel: <b>bold</b> [" in relabeled
    tab.open("gallery?text=%3CI%3EX&generation=0")
    assert "<b>bold</b> [" in captions(tab, 1)[0]
    assert "1 image" in tab.text
    assert not tab.page.locator('[data-testid="stMain"] b').count()


def test_a_picture_leads_to_its_page_and_back(tab: Tab, pool: Store) -> None:
    tab.open("gallery?decision=accept")
    captions(tab, 1)
    with tab.page.context.expect_page() as opened:
        tab.page.get_by_test_id("stImageLink").first.click()
    other = opened.value
    other.get_by_text("pool/03-y.png").wait_for()
    assert other.url == f"{tab.url}/image?image_id={number(pool)[3]}"
    other.get_by_role("link", name="All images labeled cat").click()
    other.get_by_text("20 images").wait_for()
    assert "/gallery?class=cat" in other.url
    other.close()


def test_why_it_is_in_or_out(tab: Tab, pool: Store) -> None:
    ids = number(pool)
    tab.open(f"image?image_id={ids[59]}")
    tab.page.get_by_role("button", name="Why is it in or out?").click()
    tab.page.get_by_text("the first 5 are kept").wait_for()
    tab.open(f"image?image_id={ids[9]}")
    tab.page.get_by_role("button", name="Why is it in or out?").click()
    tab.page.get_by_text("It is not in").wait_for()


@pytest.mark.long
def test_a_generation_appears(browser: Any, store: Store, tmp_path: Path) -> None:  # noqa: F811
    uris = [row["uri"] for row in store.rows("select uri from images order by uri")]
    with serve(store.path) as url:
        tab = Tab(browser, url).open("gallery")
        captions(tab, 9)
        probs = pa.array([[0.0, 0.0, 1.0]] * len(uris), pa.list_(pa.float32()))
        pq.write_table(pa.table({"uri": uris, "probs": probs}), tmp_path / "probs.parquet")
        import_labels(store, str(tmp_path / "probs.parquet"), 1, "second")
        tab.page.wait_for_timeout(1100)
        tab.page.reload()
        assert all(text.startswith("owl 1.000") for text in captions(tab, 9))
        assert not tab.errors
        tab.page.close()


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Runs a page by itself."""

    def run(name: str, store: Store, /, **shown: str | list[str]) -> AppTest:
        monkeypatch.setenv("CURATOR_STORE", str(store.path))
        test = AppTest.from_string(f"from curator.app import {name}\n{name}.show()", default_timeout=30)
        for key, value in shown.items():
            test.query_params[key] = value
        test.run()
        assert not test.exception
        return test

    return run


@pytest.mark.parametrize("name", ["gallery", "image"])
def test_a_fresh_store_says_what_to_do(
    name: str, page: Callable[..., AppTest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = page(name, Store.create(tmp_path / "store", ["a", "b"]))
    assert test.info
    assert test.code[0].value.startswith("curator ")
    assert test.code[0].value.endswith(f" --store {tmp_path / 'store'}")  # as it is not the current folder's
    monkeypatch.chdir(tmp_path)
    assert "--store" not in page(name, Store(tmp_path / "store")).code[0].value


def test_an_image_without_labels(page: Callable[..., AppTest], store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["pool/new.jpg"]}), tmp_path / "new.parquet")
    add_images(store, str(tmp_path / "new.parquet"), "unlabeled", scan=False)
    image_id = store.rows("select image_id from images where uri = 'pool/new.jpg'")[0]["image_id"]
    test = page("image", store, image_id=str(image_id))
    assert "No generation has labeled this image" in test.info[0].value.replace("\\", "")


def test_a_store_that_is_not_sorted_says_so(page: Callable[..., AppTest], store: Store) -> None:
    for name in ("browse", "histograms"):
        shutil.rmtree(store.path / name)
    before = digest(store)
    test = page("gallery", store)
    assert any("curator index" in caption.value for caption in test.caption)
    assert any("9 images" in text.value for text in test.text)
    assert digest(store) == before


def test_pages_write_nothing(page: Callable[..., AppTest], pool: Store) -> None:
    before = digest(pool)
    page("gallery", pool, manifest="m", source="not in the manifest")
    page("image", pool, image_id=str(number(pool)[4]))
    assert digest(pool) == before


def test_a_range_the_wrong_way_round(page: Callable[..., AppTest], pool: Store) -> None:
    both = [page("gallery", pool, confidence=ends).text[0].value for ends in (["0.30", "0.90"], ["0.90", "0.30"])]
    assert both[0] == both[1] != "0 images"


@pytest.mark.parametrize(
    ("shown", "count"),
    [
        ({"manifest": "m"}, 15),
        ({"manifest": "m", "source": "pseudo"}, 15),
        ({"manifest": "m", "source": "not in the manifest"}, 45),
        ({"source": "pseudo"}, 60),  # of no manifest
        ({"decision": "not reviewed"}, 58),
        ({"split": "holdout"}, 0),
        ({"split": "all"}, 60),
        ({"order": "newest decision"}, 2),
        ({"text": "-Y.PNG"}, 59),
    ],
)
def test_filters(page: Callable[..., AppTest], pool: Store, shown: dict[str, str], count: int) -> None:
    test = page("gallery", pool, **shown)
    said = f"{count} image" + "s" * (count != 1)
    assert said in [text.value for text in test.text]
