"""The app on a store that lies in a bucket: pages, decisions, and what is shown while the bucket cannot be reached."""

import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Tab, browser, serve  # noqa: F401 - a fixture
from bucket import SECRET, Server, upload
from test_app_review import pictured, press  # noqa: F401 - a fixture

from curator.decisions.session import Session
from curator.schema import TABLES
from curator.storage.store import Store

METHODS = ("GET", "PUT", "HEAD")
DECIDED = "select uri, decision from reviews join images using (image_id) order by decided_at"


@pytest.fixture
def there(pictured: Path, bucket: str) -> Store:  # noqa: F811
    """The store of 30 pool pictures, in a bucket with them."""
    return Store(f"{upload(pictured, bucket)}/store")


@pytest.fixture
def opened(there: Store, tmp_path: Path, browser: Any) -> Iterator[Tab]:  # noqa: F811
    with serve(str(there.place), tmp_path) as url:
        tab = Tab(browser, url)
        yield tab
        tab.page.close()
    log = next(tmp_path.glob("app-*.log")).read_text()
    assert "Traceback" not in log
    assert SECRET not in log
    for file in tmp_path.rglob("*"):  # the working folder and what is kept of the bucket among them
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


@pytest.mark.long
def test_pages_and_decisions(opened: Tab, there: Store, server: Server, process) -> None:
    tab = opened
    tab.open("gallery").see("30 images")
    assert f"Store: {there.place}" in tab.page.locator('[data-testid="stSidebar"]').inner_text()
    assert tab.page.locator('[data-testid="stMain"] img').count() == 24
    tab.open("gallery?page=2&manifest=m&source=pseudo").see("30 images")
    assert tab.page.locator('[data-testid="stMain"] img').count() == 6
    began, before = time.monotonic(), len(server.requests())
    for _ in range(3):
        tab.open("classes")
    looks = [each for each in server.requests(before) if "_delta_log" in each.path + each.query]
    # two requests a table, each 5 seconds; and the page that is opened last may have begun to look again
    assert len(looks) <= 2 * len(TABLES) * ((time.monotonic() - began) // 5 + 1)

    tab.open("review").see("Image 1 of")
    press(tab, "a")
    tab.see("1 done")
    (first,) = there.rows(DECIDED)
    assert first["decision"] == "accept"
    tab.open("gallery?decision=accept").see("1 image")  # at once
    image = there.rows("select image_id from images where uri = 'pool/07.png'")[0]["image_id"]
    assert not process("review", "--image-id", image, "--decision", "reject", "--store", there.place).code
    time.sleep(there.place.looked_s)
    tab.open("gallery?decision=reject").see("1 image")

    tab.open("sql?query=select+count(*)+as+found+from+images")
    tab.page.get_by_role("button", name="Run").click()
    tab.settle().see("1 row")
    assert not tab.errors


@pytest.mark.long
def test_a_bucket_that_refuses_for_a_while(opened: Tab, there: Store, server: Server) -> None:
    """What was known goes on being shown, a decision that was not recorded is told, and all goes on by itself."""
    tab = opened
    tab.open("review").see("Image 1 of")
    server.breaks(*({"method": method, "match": "", "kind": "400", "times": 10**6} for method in METHODS))
    press(tab, "a")
    tab.see("Nothing was recorded")
    assert f"{there.place} cannot be used (ExpiredToken)" in tab.text.replace("\u2060", "")
    tab.open("gallery?decision=accept").see("What is shown is as of")
    server.breaks()
    tab.page.wait_for_function("!document.body.innerText.includes('What is shown is as of')")
    assert not there.rows(DECIDED)
    tab.open("review").see("Image 1 of")
    press(tab, "x")
    tab.see("1 done")
    assert [row["decision"] for row in there.rows(DECIDED)] == ["reject"]


def test_a_decision_takes_few_requests(there: Store, server: Server) -> None:
    """Whoever decides waits for them: its file, its commit, and two looks at what others had decided."""
    images = [row["image_id"] for row in there.rows("select image_id from images order by uri")]
    session, other = (Session(there, images, 0) for _ in range(2))
    session.decide(images[0], "accept", generation=0)
    before = len(server.requests())
    session.decide(images[1], "accept", generation=0)
    assert len(server.requests(before)) <= 10
    made = other.decide(images[1], "reject", generation=0)
    assert made.unseen
    assert made.before["decision"] == "accept"
    other.undo()
    session.follow()
    assert session.latest[images[1]]["decision"] == "accept"


def test_a_place_can_be_handed_to_another_process(there: Store) -> None:
    again = pickle.loads(pickle.dumps(there.place))
    assert str(again) == str(there.place)
    assert again.read("store.json") == there.place.read("store.json")
