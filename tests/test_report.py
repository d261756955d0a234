"""The page about a manifest: its figures, its warnings, its pictures, and that it stands alone."""

import base64
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer

from curator.curation import building, manifests
from curator.errors import InputError
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.reports import figures, report
from curator.storage.store import Store

VOID = {"meta", "img", "br", "path", "use"}


class Page(HTMLParser):
    """A page taken apart; a tag that is not closed, or closed twice, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.said: list[tuple[str, str]] = []  # innermost tag, text
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(data for tag, data in self.said if tag not in ("style", "script")))

    def every(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def inside(self, tag: str) -> list[str]:
        return [data for name, data in self.said if name == tag]


def written(store: Store, name: str, place: Path) -> Page:
    report.write(store, name, place, force=True)
    return Page(place.read_text("utf-8"))


def labeled(folder: Path, classes: list[str], probs: np.ndarray, uris: list[str], scan: bool = False) -> Store:
    """A store with one soft label for each image."""
    store = Store.create(folder / "store", classes)
    pq.write_table(pa.table({"uri": uris}), folder / "pool.parquet")
    add_images(store, str(folder / "pool.parquet"), "unlabeled", scan=scan)
    pq.write_table(pa.table({"uri": uris, "probs": list(probs.astype(np.float32))}), folder / "probs.parquet")
    import_labels(store, str(folder / "probs.parquet"), 0, "outside")
    return store


def draw(place: Path, side: int = 120) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(side).integers(0, 255, (side, side // 2, 3), np.uint8)
    assert cv2.imwrite(str(place), noise)


@pytest.fixture(scope="module")
def built_once(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(made_once, folder, dirs_exist_ok=True)
    building.build(Store(folder / "store"), "m", {"per_class": 3})
    return folder


@pytest.fixture
def three(built_once: Path, tmp_path: Path) -> Store:
    """The fixture store with a manifest `m`: owl has one candidate of three, and pictures are missing."""
    shutil.copytree(built_once, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "store")


def test_figures_of_the_lineage(three: Store, tmp_path: Path) -> None:
    page = written(three, "m", tmp_path / "m.html")
    manifest = manifests.find(three, "m")
    shown = page.text
    for part in (manifest.sha256, "outside", "9 rows", "per-class 3", "labeled by the teacher", "curator 0.1.0"):
        assert str(part) in shown
    cells = page.inside("td")
    columns = ["label", "class_name", *[c for c in manifest.classes[0] if c not in ("label", "class_name")]]
    for row in manifest.classes:
        values = ["-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in map(row.get, columns)]
        assert any(cells[at : at + len(values)] == values for at in range(0, len(cells), len(columns))), values
    # the class with the most candidates first: cat 5 (h is just above .3), dog 3, owl 1
    assert [cells[at + 1] for at in range(0, len(cells), len(columns))] == ["cat", "dog", "owl"]
    assert json.loads(page.inside("pre")[1])["tables"] == manifest.lineage["tables"]


def test_stands_alone(three: Store, tmp_path: Path) -> None:
    draw(tmp_path / "pool" / "a.jpg")
    page = written(three, "m", tmp_path / "m.html")
    assert {"link", "iframe", "base", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert len(page.every("script")) == 1
    assert not page.every("script")[0]
    sources = [value for _, a in page.tags for name, value in a.items() if name in ("src", "href", "xlink:href")]
    assert sources
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in sources)
    raw = (tmp_path / "m.html").read_text("utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'<]*", raw))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, addresses
    assert "@import" not in raw
    assert not re.search(r"url\((?!#)", raw)
    ids = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert ids
    assert max(ids.values()) == 1
    data = base64.b64decode(page.every("img")[0]["src"].split(",")[1])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (96, 48, 3)
    plotted = page.every("svg")
    assert len(plotted) >= 5
    assert all(a["role"] == "img" and a["aria-label"] for a in plotted)


def test_warns_when_it_should(three: Store, tmp_path: Path) -> None:
    shown = " ".join(figures.gather(three, "m").warnings)
    assert "1 class has fewer images to choose from than the quota of 3, and copies fill them up: owl." in shown
    assert "9 pool images were never scanned" in shown
    for absent in ("no image to choose from", "repeats an image", "have no label"):
        assert absent not in shown
    building.build(three, "many", {"per_class": 12, "min_confidence": 0.65, "max_copies": 11})
    pq.write_table(pa.table({"uri": ["pool/new.jpg"]}), tmp_path / "more.parquet")
    add_images(three, str(tmp_path / "more.parquet"), "unlabeled", scan=False)
    building.build(three, "later", {"per_class": 12, "min_confidence": 0.65})
    capped = " ".join(figures.gather(three, "many").warnings)
    assert "but no image counts more than 11 times: dog, cat." in capped
    assert "1 class has no image to choose from, so no row: owl." in capped
    assert "1 class repeats an image more than 10 times: dog (11)." in capped
    assert "have no label" not in capped  # at the versions that it was built from
    assert "1 readable pool image has no label" in written(three, "later", tmp_path / "m.html").text


def test_no_warning_where_all_is_well(tmp_path: Path) -> None:
    uris = [f"pool/{i}.png" for i in range(4)]
    for i, uri in enumerate(uris):
        draw(tmp_path / uri, 20 + i)
    store = labeled(tmp_path, ["x", "y"], np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]]), uris, scan=True)
    building.build(store, "m", {"per_class": 2})
    page = written(store, "m", tmp_path / "m.html")
    assert "No warnings." in page.text
    assert "Every kept image counts once." in page.text
    assert len(page.every("img")) == 4
    data = base64.b64decode(page.every("img")[0]["src"].split(",")[1])  # the least confident, and not made larger
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape[:2] == (22, 11)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x$ & \u732b\u202e\n</svg>"]
    uris = ["pool/<script>alert(2)</script>.jpg", "pool/\"'><b>.jpg", "pool/]]>&amp;.jpg"]
    store = labeled(tmp_path, names, np.eye(3) * 0.85 + 0.05, uris)
    building.build(store, "m", {"per_class": 2, "where": "uri <> '</pre><script>alert(3)</script>'"})
    page = written(store, "m", tmp_path / "m.html")
    assert len(page.every("script")) == 1
    assert not page.every("img")
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    for name in names[:2]:
        assert name in page.inside("td")
        assert name in page.inside("b")
        assert name in page.inside("text")
    assert "$x$ & \u732b\\u202e\\n</svg>" in page.inside("td")
    assert "$x$ & \u732b\\u202e\\n</svg>" in page.inside("text")
    assert all(any(uri in data for data in page.inside("figcaption")) for uri in uris)


def test_broken_pictures_say_why(three: Store, tmp_path: Path) -> None:
    draw(tmp_path / "pool" / "a.jpg")
    draw(tmp_path / "pool" / "b.jpg")
    whole = (tmp_path / "pool" / "b.jpg").read_bytes()
    (tmp_path / "pool" / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pool" / "c.jpg").write_text("<html>not found</html>")
    found = report.write(three, "m", tmp_path / "m.html")
    page = Page((tmp_path / "m.html").read_text("utf-8"))
    boxes = [a for a in page.every("div") if a.get("class") == "broken"]
    assert (found.pictures, found.unreadable) == (1, len(boxes)) == (1, 7)
    for reason in ("truncated JPEG", "not an image", "No such file or directory"):
        assert reason in page.inside("div")


def test_same_bytes(three: Store, tmp_path: Path) -> None:
    import matplotlib

    first = report.write(three, "m", tmp_path / "1.html")
    pq.write_table(pa.table({"uri": ["pool/z.jpg"]}), tmp_path / "more.parquet")
    add_images(three, str(tmp_path / "more.parquet"), "unlabeled", scan=False)
    pq.write_table(pa.table({"uri": ["pool/z.jpg"], "probs": [[0.1, 0.2, 0.7]]}), tmp_path / "probs.parquet")
    import_labels(three, str(tmp_path / "probs.parquet"), 0, "outside")
    with matplotlib.rc_context({"font.size": 30, "axes.linewidth": 5, "svg.fonttype": "path"}):
        report.write(three, "m", tmp_path / "2.html")
        assert matplotlib.rcParams["font.size"] == 30
    data = (tmp_path / "1.html").read_bytes()
    assert data == (tmp_path / "2.html").read_bytes()
    assert len(data) == first.bytes
    assert str(tmp_path).encode() not in data


def test_command(three: Store, tmp_path: Path, curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = curator("report", "m", "--store", three.path, "--json")
    place = tmp_path / "m.html"
    assert answer.json == {
        "name": "m", "path": "m.html", "bytes": place.stat().st_size, "pictures": 0, "unreadable": 8,
    }  # fmt: skip
    found = place.read_bytes()
    place.write_text("mine")
    refused = curator("report", "m", "--store", three.path)
    assert (refused.code, place.read_text()) == (2, "mine")
    assert "'m.html' exists" in refused.err
    assert "--force" in refused.err
    assert curator("report", "m", "--store", three.path, "--force").out.startswith("m.html: 0.")
    assert place.stat().st_size == len(found)
    assert curator("report", "m", "--store", three.path, "--output", "new/n.html").code == 0
    folder = curator("report", "m", "--store", three.path, "--output", "new", "--force")
    assert folder.code == 2
    assert "new/m.html" in folder.err
    unknown = curator("report", "n", "--store", three.path)
    assert unknown.code == 2
    assert "there is no manifest 'n'" in unknown.err
    assert sorted(p.name for p in tmp_path.rglob("*.html")) == ["m.html", "n.html"]
    assert not list(tmp_path.rglob(".report-*"))


def test_damaged_manifest_writes_nothing(three: Store, tmp_path: Path) -> None:
    part = three.path / "manifests" / "m" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(InputError, match="cannot be read"):
        report.write(three, "m", tmp_path / "m.html")
    part.unlink()
    with pytest.raises(InputError, match="hold 0 of the 7 rows"):
        report.write(three, "m", tmp_path / "m.html")
    assert not (tmp_path / "m.html").exists()


def test_holdout_and_eligible(three: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifests.find(three, "m")
    told = {"cat": (2, 10, 8), "dog": (3, 4, 4), "owl": (0, 0, 0)}  # eligible, seen, right
    rows = [c | dict(zip(("eligible", "holdout_seen", "holdout_right"), told[c["class_name"]], strict=True))
            for c in manifest.classes]  # fmt: skip
    lineage = manifest.lineage | {"classes": rows, "funnel": manifest.lineage["funnel"] | {"eligible": 5}}
    monkeypatch.setattr(manifests, "find", lambda *_: manifest._replace(lineage=lineage))
    page = written(three, "m", tmp_path / "m.html")
    assert "5 let through by the policy" in page.text
    assert "1 class has fewer images to choose from than the quota of 3, and copies fill them up: cat." in page.text
    assert "1 class has no image to choose from, so no row: owl." in page.text
    assert "Of 14 holdout images" in page.text
    assert "12 (85.7%, 95 % interval 60.1% to 96%)" in page.text
    cells = page.inside("td")
    cat = cells.index("cat")
    # 8 of 10: 0.490 to 0.943, as printed in textbooks
    assert cells[cat : cat + len(page.every("th")) - 1][-3:] == ["0.800", "0.490", "0.943"]
    assert "1 of 3 classes have no such image" in page.text


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_weights(three: Store, tmp_path: Path, weight: float) -> None:
    part = three.path / "manifests" / "m" / "part-00000.parquet"
    rows = pq.read_table(part)
    rows = rows.drop_columns([name for name in ("weight",) if name in rows.column_names])
    if weight is not None:
        rows = rows.append_column("weight", pa.array([1.0] * 6 + [weight], pa.float32()))
    pq.write_table(rows, part)
    shown = written(three, "m", tmp_path / "m.html").text
    # owl's only image counts three times, so six rows of 1 and three of a quarter
    assert ("between 0.250 and 1.000, on average 0.750" in shown) == (weight == 0.25)
    assert ("weight 0.250" in shown) == (weight == 0.25)
    assert ("The weight of a row" in shown) == (weight == 0.25)


def test_many_classes_stay_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    top = np.minimum(rng.geometric(0.01, 3000) - 1, 999)
    probs = np.full((3000, 1000), 0.0002)
    probs[np.arange(3000), top] = 0.8002
    store = labeled(tmp_path, [f"class {i}" for i in range(1000)], probs, [f"pool/{i}.jpg" for i in range(3000)])
    building.build(store, "m", {"per_class": 20})
    draw(tmp_path / "big.png", 1500)
    for row in store.rows("select uri from images"):
        (tmp_path / row["uri"]).parent.mkdir(exist_ok=True)
        (tmp_path / row["uri"]).hardlink_to(tmp_path / "big.png")
    found = report.write(store, "m", tmp_path / "m.html")
    assert (found.pictures, found.unreadable) == (48, 0)
    assert found.bytes < 1_000_000
    page = Page((tmp_path / "m.html").read_text("utf-8"))
    listed = len(page.every("tr")) - 1
    assert 50 < listed < 200
    assert f"The {listed} most noticeable of 1,000 classes" in page.text
    empty = np.setdiff1d(np.arange(1000), top)
    assert f"{len(empty):,} classes have no image to choose from" in page.text
    # the most copied come from different classes
    names = page.inside("b")[-24:]
    assert len(set(names)) > 12


def test_histograms_count_every_image(three: Store) -> None:
    found = figures.gather(three, "m")
    assert (found.pool.sum(), found.images.sum(), found.rows.sum()) == (9, 7, 9)
    assert sum(r["images"] * r["copies"] for r in found.copies) == 9
    assert [p.row["confidence"] for p in found.least_confident] == sorted(
        p.row["confidence"] for p in found.least_confident
    )
    assert [p.row["copies"] for p in found.most_copied] == [3]
