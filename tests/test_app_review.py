"""The Review page: keys in a real browser, and the decisions that they leave in the store."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from browser import Tab, browser, serve  # noqa: F401 - a fixture
from streamlit.testing.v1 import AppTest
from test_labels import write

from curator.curation import building
from curator.decisions.reviews import add_review, login
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality.audit import audit
from curator.quality.worklist import worklist
from curator.schema import DUPLICATES
from curator.storage import additions
from curator.storage.store import Store

HOSTILE = "<b>x<i> **bold** `code`\u202e"
CLASSES = ["cat", "<img src=x onerror=alert(1)> *dog*", "owl"]
TABS: list[Tab] = []
NAMES = [*(f"{number:02d}.png" for number in range(28)), f"{HOSTILE}.png", "gone.png"]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 30 pool pictures, all of them cats, more or less, and one of the holdout."""
    folder = tmp_path_factory.mktemp("review")
    store = Store.create(folder / "store", CLASSES)
    rng = np.random.default_rng(0)
    for name in [*NAMES, "held.png"]:
        (folder / "pool").mkdir(exist_ok=True)
        assert cv2.imwrite(str(folder / "pool" / name), rng.integers(0, 255, (20, 30, 3)).astype(np.uint8))
    uris = [f"pool/{name}" for name in NAMES]
    add_images(store, write(folder / "pool.parquet", uri=uris), "unlabeled")
    add_images(store, write(folder / "held.parquet", uri=["pool/held.png"], label=["cat"]), "holdout")
    (folder / "pool" / "gone.png").unlink()
    cat = 0.50 + 0.01 * np.arange(len(uris), dtype=np.float32)  # the first are the most doubtful
    probs = np.stack([cat, (1 - cat) * 0.75, (1 - cat) * 0.25], 1)
    rows = pa.array(probs.tolist(), pa.list_(pa.float32()))
    import_labels(store, write(folder / "probs.parquet", uri=uris, probs=rows), 0, "outside")
    building.build(store, "m", {"per_class": 30})
    audit(store)
    return folder


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Closes the tabs of a test: what one has before it, another is not shown."""
    yield
    while TABS:
        TABS.pop().page.close()


@pytest.fixture
def fresh(pictured: Path, tmp_path: Path) -> Store:
    shutil.copytree(pictured, tmp_path / "copy")
    return Store(tmp_path / "copy" / "store")


@pytest.fixture(scope="module")
def app(pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, str]]:
    """A store that is served, and its address; each test goes on with what the ones before it left to decide on."""
    folder = tmp_path_factory.mktemp("served") / "copy"
    shutil.copytree(pictured, folder)
    with serve(folder / "store") as url:
        yield Store(folder / "store"), url


def queue(store: Store) -> list[int]:
    return [row["image_id"] for row in worklist(store).images]


def shown(tab: Tab) -> int:
    """The image that the address names."""
    return int(tab.path.split("at=")[1].split("&")[0])


def opened(browser: Any, url: str, path: str, reviewer: str = "") -> Tab:  # noqa: F811
    tab = Tab(browser, url).open(path)
    TABS.append(tab)
    tab.page.get_by_text("in this session").wait_for()  # the first run has come as far as the keys
    if reviewer:
        box = tab.page.get_by_role("textbox", name="Reviewer")
        box.fill(reviewer)
        box.blur()  # for else it would keep the keys to itself
        tab.settle()
    return tab.settle()


def press(tab: Tab, key: str) -> None:
    """Presses a key, and waits until that is seen."""
    before = tab.text
    tab.page.keyboard.press(key)
    tab.page.wait_for_function(
        "before => document.querySelector('[data-testid=stMain]').innerText !== before", arg=before
    )
    tab.settle()


def made(store: Store, *columns: str, since: int = 0) -> list[tuple[Any, ...]]:
    """The reviews in their order; by default image, decision, new class, generation."""
    rows = store.rows("select * from reviews order by decided_at")
    wanted = columns or ("image_id", "decision", "new_label", "generation")
    return [tuple(row[column] for column in wanted) for row in rows[since:]]


def test_keys(app: tuple[Store, str], browser) -> None:  # noqa: F811
    store, url = app
    order, since = queue(store), len(made(store))
    tab = opened(browser, url, "review", "ann")
    assert shown(tab) == order[0]
    assert "Teacher: cat 0.500" in tab.text
    assert "Here for: doubt" in tab.text
    press(tab, "a")
    press(tab, "x")
    press(tab, "2")  # the second of the teacher's classes
    assert shown(tab) == order[3]
    press(tab, "s")
    done = [(order[0], "accept", None, 0), (order[1], "reject", None, 0), (order[2], "relabel", 1, 0)]
    done += [(order[3], "skip", None, 0)]
    assert made(store, since=since) == done
    assert "1 accept, 1 reject, 1 relabel, 1 skip" in tab.text
    press(tab, "ArrowLeft")
    press(tab, "ArrowLeft")
    assert shown(tab) == order[2]
    assert "by ann" in tab.text
    press(tab, "ArrowRight")
    assert shown(tab) == order[3]
    assert made(store, since=since) == done
    press(tab, "z")  # takes the skip back
    press(tab, "z")  # and the relabel
    assert shown(tab) == order[2]
    assert made(store, since=since + 4) == [(order[3], "skip", None, None), (order[2], "skip", None, None)]
    assert {*made(store, "reviewer", since=since)} == {("ann",)}
    assert queue(store) == order[2:]
    assert not tab.errors


def test_another_class_and_a_reason(app: tuple[Store, str], browser) -> None:  # noqa: F811
    store, url = app
    order, since = queue(store), len(made(store))
    tab = opened(browser, url, "review")
    tab.page.get_by_placeholder("reason, if you like").fill("blurred")
    tab.page.keyboard.press("Tab")
    tab.page.get_by_role("button", name="Reject").click()
    tab.settle()
    other = tab.page.get_by_test_id("stSelectbox").last
    other.locator("input").click()
    tab.page.get_by_role("option", name="owl").click()
    tab.settle()
    tab.page.wait_for_function("document.body.innerText.includes('1 reject, 1 relabel')")
    found = made(store, "image_id", "decision", "new_label", "reason", since=since)
    assert found == [(order[0], "reject", None, "blurred"), (order[1], "relabel", 2, None)]
    press(tab, "s")  # the keys work on
    assert made(store, since=since + 2) == [(order[2], "skip", None, 0)]
    press(tab, "z")
    assert queue(store) == order[2:]
    assert not tab.errors


@pytest.mark.long
def test_two_who_decide_at_once(app: tuple[Store, str], browser) -> None:  # noqa: F811
    store, url = app
    order, since = queue(store), len(made(store))
    one = opened(browser, url, "review", "ann")
    two = opened(browser, url, "review", "bob")
    assert (shown(one), shown(two)) == (order[0], order[1])  # what ann has before her is not bob's
    press(one, "a")
    assert shown(one) == order[2]
    press(two, "x")
    assert shown(two) == order[3]
    press(one, "ArrowLeft")  # to what bob decided on
    press(one, "ArrowLeft")
    press(one, "a")  # once more on the first
    assert shown(one) == order[2]
    press(one, "ArrowRight")  # both look at the same
    press(one, "a")
    press(two, "a")
    wanted = [
        ("ann", 0, "accept"),
        ("bob", 1, "reject"),
        ("ann", 0, "accept"),
        ("ann", 3, "accept"),
        ("bob", 3, "accept"),
    ]
    found = made(store, "reviewer", "image_id", "decision", since=since)
    assert found == [(who, order[number], decision) for who, number, decision in wanted]
    two.page.close()
    press(one, "s")  # what bob had before him is free again
    press(one, "z")


@pytest.mark.long
def test_a_choice_lets_the_keys_go(app: tuple[Store, str], browser) -> None:  # noqa: F811
    """Whoever has chosen a class or a reason can press keys at once; the choice stands in the address."""
    store, url = app
    since = len(made(store))
    tab = opened(browser, url, "review")
    for box, option in (("Class", "cat"), ("Reason", "doubt")):
        tab.page.get_by_role("combobox", name=box, exact=True).click()
        tab.page.get_by_role("option", name=option).click()
        tab.settle()
        press(tab, "s")
        press(tab, "z")
    assert [row[1] for row in made(store, since=since)] == ["skip"] * 4
    assert "class=cat" in tab.path
    assert "reason=doubt" in tab.path
    assert not tab.errors


def test_what_comes_from_outside_is_text(app: tuple[Store, str], browser) -> None:  # noqa: F811
    store, url = app
    since = len(made(store))
    known = {row["uri"]: row["image_id"] for row in store.rows("select uri, image_id from images")}
    tab = opened(browser, url, f"review?at={known[f'pool/{HOSTILE}.png']}", "<i>me</i>")
    assert "<b>x<i> **bold** `code`\\u202e.png" in tab.text
    assert CLASSES[1] in tab.text
    assert tab.page.locator('[data-testid="stMain"] img[src="x"]').count() == 0
    press(tab, "a")
    assert made(store, "reviewer", since=since) == [("<i>me</i>",)]
    tab.open(f"review?at={known['pool/gone.png']}")
    assert "pool/gone.png: No such file or directory" in tab.text
    for nonsense in ("class=none&reason=5&mode=x&at=abc", f"at={2**70}", "mode=Audit&sample=none&class="):
        assert "Teacher: cat" in tab.open(f"review?{nonsense}").text
    assert not tab.errors


def test_an_audit_says_what_it_knows(app: tuple[Store, str], browser) -> None:  # noqa: F811
    store, url = app
    before, since = audit(store), len(made(store))
    order = [row["image_id"] for row in before.open]
    right, decided = before.classes[0]["right"], before.classes[0]["decided"]
    tab = opened(browser, url, "review?mode=Audit&class=cat")
    assert shown(tab) == order[0]
    for step, (key, is_right) in enumerate((("a", True), ("x", False), ("3", False), ("a", True)), start=1):
        press(tab, key)
        right += is_right
        tab.page.wait_for_function(
            "said => document.body.innerText.includes(said)", arg=f"; {right} of {decided + step} right"
        )
    found = made(store, "image_id", "decision", "new_label", since=since)
    said = [("accept", None), ("reject", None), ("relabel", 2), ("accept", None)]
    assert found == [(image, *each) for image, each in zip(order, said, strict=False)]
    known = audit(store).classes[0]
    assert f"{known['precision']:.1%}\n" in tab.text
    assert f"95 % from {known['low']:.1%} to {known['high']:.1%}" in tab.text


# Without a browser


def page(store: Store, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    def script() -> None:
        from curator.app import review

        review.show()

    monkeypatch.setenv("CURATOR_STORE", str(store.path))
    test = AppTest.from_function(script, default_timeout=30)
    test.query_params.update(query)
    return test.run()


def said(test: AppTest) -> str:
    assert not test.exception
    parts = [*test.info, *test.success, *test.warning, *test.code, *test.markdown, *test.caption, *test.text]
    return "\n".join(str(part.value) for part in parts)


def test_a_fresh_store_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for classes in (None, CLASSES):
        store = Store.create(tmp_path / f"store{len(classes or [])}", classes)
        assert "curator label --model NAME" in said(page(store, monkeypatch))


def test_no_sample_no_audit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "curator quality audit" in said(page(store, monkeypatch, mode="Audit"))
    assert store.versions() == Store(store.path).versions()
    assert not (store.path / "audits").exists()


@pytest.mark.long
def test_nothing_left(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    *others, last = queue(fresh)
    for image in others:
        add_review(fresh, image, "accept")
    test = page(fresh, monkeypatch)
    test.button(f"accept-{last}").click().run()
    assert "curator build-manifest" in said(test)
    assert "curator diff" in said(test)
    test.button("undo").click().run()
    assert queue(fresh) == [last]
    assert "curator diff" not in said(test)


def test_the_list_goes_on_where_it_was_cut(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from curator.app import turns

    monkeypatch.setattr(turns, "LIMIT", 3)
    order = queue(fresh)
    test = page(fresh, monkeypatch)
    for image in order[:7]:
        test.button(f"reject-{image}").click().run()
    assert [row[0] for row in made(fresh)] == order[:7]
    for _ in range(4):  # also what is on no list any more
        test.button("undo").click().run()
    assert {*queue(fresh)} == {*order[3:]}
    assert int(page(fresh, monkeypatch).query_params["at"]) in queue(fresh)


def test_a_key_that_was_pressed_twice_decides_once(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from curator.app import review

    order = queue(fresh)
    test = page(fresh, monkeypatch)
    monkeypatch.setattr(review.st, "session_state", {"review": test.session_state["review"], "why": ""})
    review._decide(order[0], "accept")
    review._decide(order[0], "accept")
    assert [row[:2] for row in made(fresh)] == [(order[0], "accept")]


def test_a_link_does_not_say_who_decides(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order = queue(fresh)
    test = page(fresh, monkeypatch, reviewer="ann")
    test.button(f"accept-{order[0]}").click().run()
    test.text_input("reviewer").set_value("bob").run()
    test.button(f"accept-{order[1]}").click().run()
    assert made(fresh, "reviewer") == [(login(),), ("bob",)]
    assert "bob" not in str(test.query_params)


def test_the_name_is_kept_while_other_pages_are_looked_at(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def script() -> None:
        import streamlit as st
        from curator.app import review

        if not st.session_state.get("elsewhere"):
            review.show()

    monkeypatch.setenv("CURATOR_STORE", str(fresh.path))
    test = AppTest.from_function(script, default_timeout=30).run()
    test.text_input("reviewer").set_value("bob").run()
    for elsewhere in (True, False):
        test.session_state["elsewhere"] = elsewhere
        test.run()
    assert test.text_input("reviewer").value == "bob"


def test_a_decision_that_came_in_meanwhile_is_told(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order = queue(fresh)
    test = page(fresh, monkeypatch)
    add_review(fresh, order[0], "accept", reviewer="ann")
    test.button(f"reject-{order[0]}").click().run()
    assert "ann had accepted it a moment ago; yours counts now" in said(test).replace("\\", "")
    assert made(fresh, "image_id", "decision") == [(order[0], "accept"), (order[0], "reject")]
    test.button(f"reject-{order[1]}").click().run()
    assert "a moment ago" not in said(test)


def test_undo_says_what_it_was_of_when_that_is_on_no_list(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from curator.app import turns

    monkeypatch.setattr(turns, "LIMIT", 2)
    uris = {row["image_id"]: row["uri"] for row in fresh.rows("select uri, image_id from images")}
    one, two = queue(fresh)[:2]
    test = page(fresh, monkeypatch)
    test.button(f"accept-{one}").click().run()
    add_review(fresh, two, "accept", reviewer="ann")
    test.button(f"reject-{two}").click().run()  # the last of the list
    for image, holds in ((two, "now it is accepted"), (one, "now no decision on it")):
        test.button("undo").click().run()
        told = test.warning[0].value.replace("\\", "")
        assert uris[image] in told
        assert holds in told


def test_what_went_wrong_is_told_on_one_line(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = queue(fresh)[0]
    test = page(fresh, monkeypatch)
    test.button(f"accept-{image}").click().run()
    add_review(fresh, image, "reject", reviewer="ann")
    test.button("undo").click().run()
    told = test.warning[0].value.replace("\\", "")
    assert told.startswith(
        f"Nothing was undone: ann has decided on image {image} since (reject); that stays. What helps:"
    )
    assert "mend" not in told


def test_only_one_reason_or_class(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "curator build-manifest" in said(page(fresh, monkeypatch, reason="leak"))
    assert "curator build-manifest" in said(page(fresh, monkeypatch, **{"class": "owl"}))


def test_a_leak_is_shown_beside_what_it_leaks(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = fresh.rows("select image_id from images where split = 'holdout'")[0]["image_id"]
    image = queue(fresh)[4]
    twin = {"image_id": image, "group_id": image, "nearest": held, "kind": "phash", "distance": 4.0, "leak": True}
    additions.append(fresh, "duplicates", pa.Table.from_pylist([twin | {"holdout_twin": held}], DUPLICATES.schema))
    test = page(fresh, monkeypatch)
    assert test.query_params["at"] == str(image)
    assert "Of the holdout: pool\\/held\\.png, phash, distance 4" in said(test)
