"""Sessions of reviewers: what is open, taking back, several at once, and a table that is put together meanwhile."""

import subprocess
import sys
import threading

import pytest
from test_reviews import decided

from curator.curation import building
from curator.decisions import session as sessions
from curator.decisions.reviews import add_review, record
from curator.decisions.session import Session
from curator.errors import InputError
from curator.storage import additions
from curator.storage.delta import paths_of
from curator.storage.store import Store


def reviews(store: Store) -> list[tuple[object, ...]]:
    rows = store.rows("select * from reviews order by decided_at")
    return [(row["image_id"], row["decision"], row["new_label"], row["generation"], row["reviewer"]) for row in rows]


def test_a_decision_is_there_at_once(store: Store, ids: dict[str, int]) -> None:
    session = Session(store, ids.values(), 0)
    written, before, unseen = session.decide(ids["b"], "relabel", 2, 0, "ann", "an owl")
    assert (before, unseen) == (None, False)
    assert store.rows("select * from reviews") == [written]
    assert (written["new_label"], written["reviewer"], written["reason"]) == (2, "ann", "an owl")
    assert session.counts() == {"accept": 0, "reject": 0, "relabel": 1, "skip": 0}
    with pytest.raises(InputError, match="only a relabel"):
        session.decide(ids["a"], "accept", 2)
    assert len(store.rows("select * from reviews")) == len(session.made) == 1


def test_what_is_open(store: Store, ids: dict[str, int]) -> None:
    images = [ids[name] for name in "abcdef"]
    record(store, ids["a"], 0, "reject")
    record(store, ids["b"], 0, "skip")  # an earlier generation's
    record(store, ids["c"], 1, "skip")
    record(store, ids["d"], None, "skip")  # something that was taken back
    session = Session(store, images, 1)
    assert [session.is_open(image) for image in images] == [False, True, False, True, True, True]
    assert session.next_open() == 1
    assert session.next_open(3) == 4
    session.decide(ids["f"], "accept", None, 1)
    assert session.next_open(4) == 1  # around the end
    audited = Session(store, images)
    assert [audited.is_open(image) for image in images] == [False, True, True, True, True, False]
    for name in "bcde":
        audited.decide(ids[name], "skip", None, 1)
    assert audited.next_open() is None
    assert Session(store, images).next_open() == 1  # whoever comes later is asked again
    assert Session(store, []).next_open() is None


def test_taking_back(store: Store, ids: dict[str, int]) -> None:
    """Each step leaves one more row, and what is in force is what was before."""
    a, b = ids["a"], ids["b"]
    record(store, b, 0, "relabel", 2, "bob", "owl")
    session = Session(store, [a, b], 1)
    session.decide(a, "reject", None, 1, "ann")
    session.decide(b, "accept", None, 1, "ann")
    assert decided(store) == {a: ("reject", None), b: ("accept", None)}
    assert session.undo("ann") == b
    assert decided(store) == {a: ("reject", None), b: ("relabel", 2)}
    assert session.undo("ann") == a
    assert decided(store) == {b: ("relabel", 2)}
    assert session.is_open(a)
    assert session.undo("ann") is None
    assert reviews(store)[3:] == [(b, "relabel", 2, 0, "ann"), (a, "skip", None, None, "ann")]
    reasons = store.rows("select reason from reviews order by decided_at")
    assert [row["reason"] for row in reasons[3:]] == ["bob's decision again: owl", None]


def test_taking_back_under_another_name(store: Store, ids: dict[str, int]) -> None:
    """Whoever undoes is who decides then, also where the session goes back further."""
    session = Session(store, [ids["a"]], 0)
    session.decide(ids["a"], "accept", None, 0, "ann")
    session.decide(ids["a"], "reject", None, 0, "ann")
    for expected in ({ids["a"]: ("accept", None)}, {}):
        assert session.undo("bob") == ids["a"]
        assert decided(store) == expected
    assert [row[-1] for row in reviews(store)] == ["ann", "ann", "bob", "bob"]


def test_a_decision_that_was_not_seen(store: Store, ids: dict[str, int]) -> None:
    mine = Session(store, [ids["a"], ids["b"]], 0)
    add_review(store, ids["a"], "accept", reviewer="bob")
    made = mine.decide(ids["a"], "reject", None, 0, "ann")
    assert made.unseen
    assert made.before is not None
    assert made.before["reviewer"] == "bob"
    assert not mine.decide(ids["a"], "accept", None, 0, "ann").unseen  # one's own
    add_review(store, ids["b"], "accept", reviewer="bob")
    mine.follow()
    assert not mine.decide(ids["b"], "reject", None, 0, "ann").unseen  # it was on show
    assert len(reviews(store)) == 5


@pytest.mark.parametrize("step", ["follow", "record"])
def test_what_could_not_be_taken_back_still_can(
    store: Store, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    mine = Session(store, [ids["a"]], 0)
    mine.decide(ids["a"], "accept", None, 0, "ann")

    def full(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(*((mine, "follow") if step == "follow" else (sessions, "record")), full)
        with pytest.raises(OSError, match="full"):
            mine.undo("ann")
    assert decided(store) == {ids["a"]: ("accept", None)}
    assert mine.undo("ann") == ids["a"]
    assert decided(store) == {}


def test_taking_back_twice_on_one_image(store: Store, ids: dict[str, int]) -> None:
    session = Session(store, [ids["a"]], 0)
    for decision in ("accept", "skip", "reject"):
        session.decide(ids["a"], decision, None, 0)
    expected = [{}, {ids["a"]: ("accept", None)}, {}]
    while session.made:
        session.undo()
        assert decided(store) == expected.pop()
    assert session.is_open(ids["a"])


def test_a_later_decision_of_somebody_else_stays(store: Store, ids: dict[str, int]) -> None:
    mine = Session(store, [ids["a"]], 0)
    mine.decide(ids["a"], "accept", None, 0, "ann")
    add_review(store, ids["a"], "reject", reviewer="bob")
    with pytest.raises(InputError, match="bob has decided"):
        mine.undo()
    assert decided(store) == {ids["a"]: ("reject", None)}
    assert mine.undo() is None


def test_what_others_decide_leaves_the_list(store: Store, ids: dict[str, int]) -> None:
    images = [ids[name] for name in "abc"]
    one, two = Session(store, images, 0), Session(store, images, 0)
    one.decide(ids["a"], "accept", None, 0)
    two.decide(ids["b"], "reject", None, 0)
    assert two.next_open() == 2
    one.follow()
    assert one.next_open() == 2
    assert one.made[0].row["image_id"] == ids["a"]


def test_decisions_of_an_earlier_list_can_be_taken_back(store: Store, ids: dict[str, int]) -> None:
    first = Session(store, [ids["a"]], 0)
    first.decide(ids["a"], "accept", None, 0)
    second = Session(store, [ids["b"]], 0, first.made)
    assert second.undo() == ids["a"]
    assert decided(store) == {}


def test_a_queue_shows_what_was_taken_back_again(store: Store, ids: dict[str, int]) -> None:
    from test_worklist import listed

    building.build(store, "m", {"per_class": 4})
    session = Session(store, [ids["a"]], 0)
    for decision in ("reject", "skip"):
        session.decide(ids["a"], decision, None, 0)
        assert "a" not in listed(store)
        session.undo()
        assert "a" in listed(store)


# Files that are put together


@pytest.mark.long
def test_many_decisions_are_put_together_and_none_is_lost(
    store: Store, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 decisions by two sessions and two processes at once: the table's files become few again several times."""
    monkeypatch.setattr(additions, "_MOST_SMALL", 30)
    images = list(ids.values())
    record(store, images[0], 0, "reject", None, "first")
    named = building.build(store, "m", {"per_class": 3})
    errors: list[Exception] = []

    def decide(who: str) -> None:
        try:
            session = Session(store, images, 0)
            for turn in range(90):
                session.decide(images[turn % len(images)], "accept", None, turn, who)
        except Exception as error:  # told in the main thread
            errors.append(error)

    program = (
        "import sys\nfrom curator.storage import additions\nfrom curator.decisions.reviews import record\n"
        "from curator.storage.store import Store\n"
        "additions._MOST_SMALL = 30\n"
        f"for turn in range(60): record(Store(sys.argv[1]), {images[0]}, turn, 'reject', None, sys.argv[2])"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, store.path, who]) for who in ("dan", "eve")]
    threads = [threading.Thread(target=decide, args=(who,)) for who in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.wait() for run in runs] == [0, 0]
    assert not errors
    rows = store.rows("select reviewer, count(*) as n, count(distinct generation) as turns from reviews group by all")
    counted = {row["reviewer"]: (row["n"], row["turns"]) for row in rows}
    assert counted == {"first": (1, 1), "ann": (90, 90), "bob": (90, 90), "dan": (60, 60), "eve": (60, 60)}
    assert len(store.files("reviews")) <= 40
    assert store.versions()["reviews"] > 301 + 3  # commits beside those of the decisions
    # what a manifest's lineage names can still be read
    version = named.lineage["tables"]["reviews"]
    assert len(paths_of(store.delta("reviews", version))) == 1
    assert [row["reviewer"] for row in store.rows("select reviewer from reviews", {"reviews": version})] == ["first"]
    assert building.build(store, "again", {}, as_of="m").sha256 == named.sha256


def test_a_session_reads_on_over_files_that_were_put_together(
    store: Store, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(additions, "_MOST_SMALL", 3)
    session = Session(store, ids.values(), 0)
    for name in "abcdefg":
        add_review(store, ids[name], "reject", reviewer=name)
    assert len(store.files("reviews")) <= 4
    session.follow()
    assert {row["reviewer"] for row in session.latest.values()} == set("abcdefg")
    session.decide(ids["a"], "accept", None, 0)
    assert session.latest[ids["a"]]["decision"] == "accept"
