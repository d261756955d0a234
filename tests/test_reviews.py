"""Decisions of people: appended, the latest of an image wins."""

import datetime as dt
import itertools
from collections.abc import Callable

import pyarrow as pa
import pytest
from conftest import Answer

from curator import manifests, queries, reviews
from curator.errors import InputError
from curator.reviews import add_review, class_index
from curator.schema import REVIEWS
from curator.store import Store


def decided(store: Store) -> dict[int, tuple[str, int | None]]:
    """What sql/decisions.sql says of each reviewed image."""
    rows = store.rows(queries.text("decisions"))
    return {row["image_id"]: (row["decision"], row["new_label"]) for row in rows}


def test_a_review_is_one_row(store: Store, ids: dict[str, int]) -> None:
    written = add_review(store, ids["a"], "relabel", "owl", "ann", "looks like one")
    assert store.rows("select * from reviews") == [written]
    assert written["new_label"] == 2
    assert written["generation"] == 0
    assert (written["reviewer"], written["reason"]) == ("ann", "looks like one")
    assert abs(dt.datetime.now(dt.UTC) - written["decided_at"]) < dt.timedelta(minutes=1)


def test_the_latest_decision_wins_and_all_are_kept(store: Store, ids: dict[str, int]) -> None:
    add_review(store, ids["a"], "reject")
    add_review(store, ids["b"], "reject")
    add_review(store, ids["a"], "relabel", "owl")
    assert decided(store) == {ids["a"]: ("relabel", 2), ids["b"]: ("reject", None)}
    add_review(store, ids["a"], "accept")
    assert decided(store) == {ids["a"]: ("accept", None), ids["b"]: ("reject", None)}
    assert len(store.rows("select * from reviews")) == 4


def test_skip_takes_earlier_decisions_back(store: Store, ids: dict[str, int]) -> None:
    add_review(store, ids["a"], "reject")
    add_review(store, ids["a"], "skip")
    assert decided(store) == {}
    add_review(store, ids["a"], "reject")
    assert decided(store) == {ids["a"]: ("reject", None)}


def test_the_time_counts_and_not_the_order_of_writing(store: Store, ids: dict[str, int]) -> None:
    now = dt.datetime.now(dt.UTC)
    for hours, decision in ((2, "reject"), (1, "accept"), (0, "skip")):
        row = {"image_id": ids["a"], "decision": decision, "decided_at": now + dt.timedelta(hours=hours)}
        store.append("reviews", pa.Table.from_pylist([row], REVIEWS.schema))
    assert decided(store) == {ids["a"]: ("reject", None)}


def test_of_decisions_of_one_moment_one_wins_as_a_whole(store: Store, ids: dict[str, int]) -> None:
    """Decision and class must come from the same row, whatever the order in which they lie in the files."""
    now = dt.datetime.now(dt.UTC)
    choices = [("accept", None), ("relabel", 2), ("relabel", 1)]
    for name, order in zip("abcdef", itertools.permutations(choices), strict=True):
        for decision, new_label in order:
            row = {"image_id": ids[name], "decision": decision, "new_label": new_label, "decided_at": now}
            store.append("reviews", pa.Table.from_pylist([row], REVIEWS.schema))
    assert decided(store) == {ids[name]: ("relabel", 1) for name in "abcdef"}


def test_decisions_count_in_the_next_manifest(
    store: Store, ids: dict[str, int], curator: Callable[..., Answer]
) -> None:
    for image, *decision in (
        ("a", "--decision", "reject"),
        ("b", "--decision", "relabel", "--new-label", "owl"),
        ("e", "--decision", "relabel", "--new-label", "2"),
        ("c", "--decision", "accept"),
    ):
        answer = curator("review", "--image-id", ids[image], *decision, "--store", store.path, "--json")
        assert answer.code == 0
        assert answer.json["image_id"] == ids[image]
    built = manifests.build(store, "m", {"per_class": 3})
    counted = {row["class_name"]: row["candidates"] for row in built.classes}
    assert counted == {"cat": 3, "dog": 2, "owl": 3}  # c, d, h; f, i; b, e, g


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rejct",), "the decision 'rejct' is unknown; did you mean 'reject'"),
        (("relabel",), "a relabel needs a class"),
        (("accept", "cat"), "a relabel needs a class, and only a relabel"),
        (("relabel", "caat"), "there is no class 'caat'; did you mean 'cat'"),
        (("relabel", "3"), "there is no class '3'"),
        (("relabel", "-1"), "there is no class '-1'"),
        (("relabel", ""), "there is no class ''"),
    ],
)
def test_what_is_not_a_decision(store: Store, ids: dict[str, int], arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_review(store, ids["a"], *arguments)
    assert store.rows("select * from reviews") == []


@pytest.mark.parametrize("image_id", [1, -5, 2**63, -(2**200)])
def test_an_image_that_is_not_there(store: Store, image_id: int, curator: Callable[..., Answer]) -> None:
    answer = curator("review", "--image-id", image_id, "--decision", "accept", "--store", store.path)
    assert answer.code == 2
    assert f"there is no image {image_id}" in answer.err


def test_a_class_is_known_by_name_before_number() -> None:
    assert class_index(["1", "0", "cat"], "1") == 0
    assert class_index(["1", "0", "cat"], "2") == 2
    assert class_index(["cat", "dog"], "1") == 1


def test_a_user_without_a_name_is_known_by_number(
    store: Store, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number that its user list does not have."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(reviews.getpass, "getuser", nobody)
    assert str(add_review(store, ids["a"], "accept")["reviewer"]).isdecimal()
