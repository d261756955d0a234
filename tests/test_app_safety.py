"""What comes from outside - class names, file names, models, reasons - is text on every page, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from browser import Tab, browser, serve  # noqa: F401 - a fixture

from curator.curation import building
from curator.decisions.reviews import add_review
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.storage.store import Store

NAVIGATION = Path(__file__).resolve().parent.parent / "app" / "navigation.py"
PAGES = re.findall(r'url_path="(\w+)"', NAVIGATION.read_text())
# What each would do where it meant something.
HOSTILE = {
    "runs a script": "<script>alert(1)</script>",
    "runs one by its error": "<img src=x onerror=alert(2)>",
    "runs one as it loads": '"><svg onload=alert(3)>',
    "is bold": "**bold**",
    "links to a script": "[link](javascript:alert(4))",
    "loads a picture from afar": "![picture](http://127.0.0.1:9/x.png)",
    "is a formula": "$x^2$ $$y$$",
    "is coloured": ":red[x] :blue-background[y]",
    "is a symbol": ":material/home: :material_home: :smile: :streamlit:",
    "is typography": "a -- b -> c <- d <-> e >= f <= g ~= h",
    "is an address without a scheme": "www.example.com me@example.com",
    "is code": "`code` ```block```",
    "quotes": "\"double\" 'single' \\back",
    "is a heading and a list": "# heading - item > quote",
    "breaks the line": "one\ntwo\r\n\n- three",
    "turns the text around": "abc\u202egpj.exe",
    "is an entity": "&lt;b&gt; &amp; &#60;",
    "is an address": "https://example.com/?a=1&b=2",
    "is Vega's": "datum['x'] + {\"signal\": 1}",
    "is long": "long" * 200,
    "is a template": "{{7*7}} ${7*7} %s {0}",
}
# Elements that a page of the app never has by itself, and that a text would make.
FOREIGN = (
    "script:not([src]):not([type]), svg[onload], img[onerror], iframe, object, embed, .katex, "
    'a[href^="javascript:"], a[href^="https://example.com"], a[href^="http://www"], a[href^="mailto:"], '
    'img[src*="127.0.0.1:9"]'
)


def _picture(file: Path, seed: int) -> None:
    pixels = np.full((24, 24, 3), seed * 12 % 256, np.uint8)
    cv2.circle(pixels, (12, 12), 3 + seed % 8, (255, 255 - seed, seed), -1)
    file.write_bytes(simplejpeg.encode_jpeg(pixels))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which every text that can come from outside is hostile; one picture is missing, one is no picture."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = list(HOSTILE.values())
    store = Store.create(folder / "store", [text[:300] for text in texts])
    (folder / "pool").mkdir()
    uris = []
    for number, text in enumerate(texts):
        name = text.replace("/", "_")[:180] + f" {number}.jpg"
        _picture(folder / "pool" / name, number)
        uris.append(f"pool/{name}")
    (folder / uris[0]).unlink()
    (folder / uris[1]).write_bytes(b"no picture")
    pq.write_table(pa.table({"uri": uris}), folder / "pool.parquet")
    add_images(store, str(folder / "pool.parquet"), "unlabeled", scan=False)
    names = [text[:300] for text in texts]
    listing = pa.table({"uri": [f"held/{uri[5:]}" for uri in uris], "label": names})
    (folder / "held").symlink_to(folder / "pool")
    pq.write_table(listing, folder / "held.parquet")
    add_images(store, str(folder / "held.parquet"), "holdout", labels=str(folder / "held.parquet"), scan=False)
    for generation, model in enumerate(("outside", "outside-2")):
        probs = np.full((len(uris), len(uris)), 0.2 / (len(uris) - 1))
        np.fill_diagonal(probs, 0.8)
        probs = np.roll(probs, generation, axis=1)
        both = uris + listing["uri"].to_pylist()
        table = pa.table({"uri": both, "probs": pa.array([*probs.tolist(), *probs.tolist()], pa.list_(pa.float32()))})
        pq.write_table(table, folder / "probs.parquet")
        import_labels(store, str(folder / "probs.parquet"), generation, model)
    ids = [row["image_id"] for row in store.rows("select image_id from images where split = 'unlabeled' order by uri")]
    for image, text in zip(ids, texts, strict=True):
        add_review(store, image, "accept", reviewer=text[:50], reason=text)
    building.build(store, "first", {"per_class": 1, "generation": 0})
    building.build(store, "second", {"per_class": 2, "generation": 1})
    return store


@pytest.fixture(scope="module")
def url(hostile: Store) -> Iterator[str]:
    with serve(hostile.path) as address:
        yield address


def watch(tab: Tab) -> list[str]:
    """What no page may do: open a dialog, or ask another server."""
    seen: list[str] = []

    def dialog(opened: Any) -> None:
        seen.append(f"dialog {opened.message}")
        opened.dismiss()

    tab.page.on("dialog", dialog)
    tab.page.on("request", lambda asked: seen.append(asked.url) if not _own(asked.url, tab.url) else None)
    return seen


def _own(asked: str, url: str) -> bool:
    return asked.startswith((url, url.replace("http", "ws"), "data:", "blob:"))


def ready(tab: Tab, path: str) -> None:
    """Opens a page and waits until each part of it is drawn."""
    tab.open(path)
    tab.page.wait_for_function("!document.querySelector('[data-testid=\"stSkeleton\"]')")
    tab.page.wait_for_timeout(100)


def links(hostile: Store) -> Iterator[tuple[str, dict[str, str]]]:
    """Every page, and the views of some in which more texts stand."""
    for page in PAGES:
        yield page, {}
    images = hostile.rows("select image_id from images where split = 'unlabeled' order by uri")
    for row in images[:: len(images) // 4]:
        yield "image", {"image_id": str(row["image_id"])}
    for view in ("Contents", "Compare", "Build"):
        yield "manifests", {"view": view, "since": "first"}
    for name, text in HOSTILE.items():
        if name in {"runs one by its error", "links to a script"}:
            yield "gallery", {"class": text, "generation": text, "sort": text}
            yield "sql", {"query": text, "as": text}
            yield "manifests", {"view": "Build", "where": text, "name": text, "manifest": text}


@pytest.mark.long
def test_no_page_takes_a_text_for_more(hostile: Store, url: str, browser: Any) -> None:  # noqa: F811
    tab = Tab(browser, url)
    seen = watch(tab)
    for page, shown in links(hostile):
        ready(tab, f"{page}?{urlencode(shown)}")
        where = f"{page} {shown}"
        assert not tab.errors, where
        assert not seen, where
        main = tab.page.locator('[data-testid="stMain"]')
        assert main.locator(FOREIGN).count() == 0, (
            f"{where}: {main.locator(FOREIGN).first.evaluate('e => e.outerHTML')}"
        )
        assert "Traceback" not in tab.text, where
        assert "error has occurred" not in tab.text, where
        for strong in main.locator("strong").all_inner_texts():
            assert strong != "bold", where


@pytest.mark.long
def test_the_texts_can_be_read(hostile: Store, url: str, browser: Any) -> None:  # noqa: F811
    """As they are, with what cannot be seen made visible."""
    tab = Tab(browser, url)
    ids = {row["uri"]: row["image_id"] for row in hostile.rows("select * from images where split = 'unlabeled'")}
    for text in HOSTILE.values():
        name = text.replace("/", "_")[:180]
        image = next(number for uri, number in ids.items() if uri.startswith(f"pool/{name}"))
        ready(tab, f"image?image_id={image}")
        want = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
        assert " ".join(want[:60].split()) in " ".join(tab.text.replace("\u2060", "").split()), text


@pytest.mark.long
def test_an_answer_in_sql_stays_text(hostile: Store, url: str, browser: Any) -> None:  # noqa: F811
    """As pictures with captions, as a plot with axes, a legend and a tooltip."""
    tab = Tab(browser, url)
    seen = watch(tab)
    query = (
        'select image_id, class_name, confidence as "<img src=x onerror=alert(5)>", class_name as "**b** $x$"'
        " from labels where generation = 0"
    )
    for view in ("Table", "Pictures", "Plot"):
        shown = {"query": query, "as": view, "x": "class_name", "colour": "**b** $x$"}
        tab.open("sql?" + urlencode(shown))
        tab.page.get_by_role("button", name="Run").click()
        tab.page.wait_for_selector("text=/rows in/")
        tab.settle()
        tab.page.wait_for_timeout(500)
        if view == "Plot":
            chart = tab.page.locator('[data-testid="stVegaLiteChart"]')
            box = chart.bounding_box()
            for step in range(5, 95, 10):
                tab.page.mouse.move(box["x"] + box["width"] * step / 100, box["y"] + box["height"] * 0.5)
                tab.page.wait_for_timeout(50)
        assert tab.page.locator('[data-testid="stMain"]').locator(FOREIGN).count() == 0, view
        assert not seen
        assert not tab.errors
