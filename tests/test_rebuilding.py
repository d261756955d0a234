"""A manifest built again: names, options and table versions taken from an earlier one."""

from collections.abc import Callable

from conftest import Answer

from curator.curation import manifests
from curator.decisions.reviews import add_review
from curator.storage.store import Store


def test_names_that_sql_cannot_tell_apart(store: Store, curator: Callable[..., Answer]) -> None:
    assert curator("build-manifest", "Mine", "--per-class", 2, "--store", store.path).code == 0
    answer = curator("build-manifest", "mine", "--per-class", 2, "--store", store.path)
    assert answer.code == 2
    assert "'Mine'" in answer.err


def test_as_of_takes_the_options_that_are_not_given(
    store: Store, ids: dict[str, int], curator: Callable[..., Answer]
) -> None:
    first = ("build-manifest", "first", "--per-class", 3, "--min-confidence", 0.4, "--targets", "hard", "--store")
    made = curator(*first, store.path, "--json").json
    add_review(store, ids["a"], "reject")
    again = curator("build-manifest", "again", "--as-of", "first", "--store", store.path, "--json").json
    assert again["sha256"] == made["sha256"]
    changed = ("build-manifest", "other", "--as-of", "first", "--per-class", 2, "--store")
    other = curator(*changed, store.path, "--json").json
    assert other["sha256"] != made["sha256"]
    assert manifests.find(store, "other").lineage["parameters"]["targets"] == "hard"
    # what the message proposes works
    answer = curator("build-manifest", "first", "--per-class", 4, "--store", store.path)
    assert answer.code == 2
    assert "curator build-manifest NEW --as-of first" in answer.err


def test_as_of_with_a_rule_that_is_taken_back(
    store: Store, ids: dict[str, int], curator: Callable[..., Answer]
) -> None:
    add_review(store, ids["h"], "accept")
    common = ("--per-class", 3, "--min-confidence", 0.55, "--store", store.path, "--json")
    plain = curator("build-manifest", "plain", *common).json
    trusting = curator("build-manifest", "trusting", "--accepted", "--dedup", *common).json
    assert trusting["sha256"] != plain["sha256"]
    call = ("build-manifest", "again", "--as-of", "trusting", "--no-accepted", "--no-dedup", "--store", store.path)
    assert curator(*call, "--json").json["sha256"] == plain["sha256"]


def test_the_quota_has_no_default(store: Store, curator: Callable[..., Answer]) -> None:
    answer = curator("build-manifest", "--store", store.path)
    assert answer.code == 2
    assert "--per-class 130000" in answer.err


def test_versions_are_read_against_the_route(store: Store) -> None:
    order = list(store.versions())
    assert order.index("manifests") < order.index("labels") < order.index("images") < order.index("classes")
