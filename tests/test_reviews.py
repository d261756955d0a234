"""Decisions of people: appended, the latest of an image wins."""

import datetime as dt
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer

from curator import queries
from curator.curation import building
from curator.decisions import reviews
from curator.decisions.reviews import add_review, class_index
from curator.errors import InputError
from curator.generations.labels import import_labels
from curator.schema import REVIEWS
from curator.storage import additions
from curator.storage.store import Store


def decided(store: Store) -> dict[int, tuple[str, int | None]]:
    """What sql/decisions.sql says of each reviewed image."""
    rows = store.rows(queries.compose(queries.steps(*queries.DECISIONS), "from decisions"))
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
        additions.append(store, "reviews", pa.Table.from_pylist([row], REVIEWS.schema))
    assert decided(store) == {ids["a"]: ("reject", None)}


def test_of_decisions_of_one_moment_one_wins_as_a_whole(store: Store, ids: dict[str, int]) -> None:
    """Decision and class must come from the same row, whatever the order in which they lie in the files."""
    now = dt.datetime.now(dt.UTC)
    choices = [("accept", None), ("relabel", 2), ("relabel", 1)]
    for name, order in zip("abcdef", itertools.permutations(choices), strict=True):
        for decision, new_label in order:
            row = {"image_id": ids[name], "decision": decision, "new_label": new_label, "decided_at": now}
            additions.append(store, "reviews", pa.Table.from_pylist([row], REVIEWS.schema))
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
    built = building.build(store, "m", {"per_class": 3})
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


# Files of decisions


def listed(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_of_decisions_is_one_commit(
    store: Store, ids: dict[str, int], tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    version = store.versions()["reviews"]
    file = listed(
        tmp_path / "d.csv",
        "uri,decision,new_label,reviewer,reason,class_name\n"
        'pool/a.jpg,reject,,ann,"blurred, and small",cat\n'
        "pool/b.jpg,relabel,owl,,,cat\n"
        "pool/c.jpg,,,,,cat\n",
    )
    answer = curator("review", "--from", file, "--reviewer", "bob", "--json", "--store", store.path)
    assert answer.code == 0, answer.err
    counts = {"accept": 0, "reject": 1, "relabel": 1, "skip": 0}
    assert answer.json == {"recorded": 2, "undecided": 1, "decisions": counts}
    assert store.versions()["reviews"] == version + 1
    assert decided(store) == {ids["a"]: ("reject", None), ids["b"]: ("relabel", 2)}
    rows = {row["image_id"]: row for row in store.rows("select * from reviews")}
    assert (rows[ids["a"]]["reviewer"], rows[ids["a"]]["reason"]) == ("ann", "blurred, and small")
    assert (rows[ids["b"]]["reviewer"], rows[ids["b"]]["reason"], rows[ids["b"]]["generation"]) == ("bob", None, 0)


def test_a_file_with_numbers_and_a_mark_of_order(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    """As Excel writes it: a byte order mark, and line ends of two characters."""
    text = f"\ufeffimage_id,uri,decision\r\n{ids['a']},pool/a.jpg,accept\r\n,pool/c.jpg,skip\r\n"
    # and a long number as its cells show it
    text += "9.99985E+17,pool/b.jpg,reject\r\n"
    (tmp_path / "d.csv").write_bytes(text.encode())
    assert reviews.add_reviews(store, str(tmp_path / "d.csv")).recorded == 3
    assert {row["image_id"] for row in store.rows("select * from reviews")} == {ids["a"], ids["b"], ids["c"]}


def two_generations(store: Store, tmp_path: Path) -> None:
    """pool/b.jpg is a cat in generation 0 and, by a later teacher, an owl."""
    table = pa.table({"uri": ["pool/b.jpg"], "probs": pa.array([[0.1, 0.1, 0.8]], pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "g1.parquet")
    import_labels(store, str(tmp_path / "g1.parquet"), 1, "later")


def test_a_decision_is_on_the_label_that_was_seen(
    store: Store, ids: dict[str, int], tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    """A later teacher's labels came while a person looked at those of generation 0."""
    two_generations(store, tmp_path)
    file = listed(tmp_path / "d.csv", "uri,generation,decision\npool/b.jpg,0,accept\npool/a.jpg,,accept\n")
    assert reviews.add_reviews(store, file).recorded == 2
    rows = {row["image_id"]: row["generation"] for row in store.rows("select * from reviews")}
    assert rows == {ids["b"]: 0, ids["a"]: 0}
    accepted = store.rows(queries.compose(queries.steps(*queries.DECISIONS, "accepted"), "from accepted"))
    assert {"image_id": ids["b"], "label": 0} in accepted  # and not class 2, which generation 1 gives it
    call = ("review", "--image-id", ids["b"], "--decision", "accept", "--json", "--store", store.path)
    assert curator(*call, "--generation", 0).json["generation"] == 0
    assert curator(*call).json["generation"] == 1
    for wrong in (2, -1, 2**70):
        refused = curator(*call, "--generation", wrong)
        assert refused.code == 2
        assert f"has no label of generation {wrong}" in refused.err
    file = listed(tmp_path / "e.csv", "uri,generation,decision\npool/b.jpg,7,accept\npool/a.jpg,new,accept\n")
    with pytest.raises(InputError, match="has no label of generation 7, line 3: the generation 'new' is no number"):
        reviews.add_reviews(store, file)


def test_wrong_lines_are_named_and_nothing_is_written(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    file = listed(
        tmp_path / "d.csv",
        "image_id,decision,new_label,reason\n"
        f"{ids['a']},accept,,\n"
        f'{ids["b"]},rejct,,"two\nlines"\n'
        "12,reject,,\n"
        f"{ids['c']},relabel,,\n"
        f"{ids['d']},relabel,caat,\n"
        f"{ids['a']},reject,,\n"
        "x1,reject,,\n",
    )
    with pytest.raises(InputError) as caught:
        reviews.add_reviews(store, file)
    for said in (
        "6 of 7 decisions",
        "line 3: the decision 'rejct' is unknown",
        "line 5: there is no image 12",
        "line 6: a relabel needs a class",
        "line 7: there is no class 'caat'",
        "line 8: the image of line 2 again",
        "line 9: the image_id 'x1' is no number",
    ):
        assert said in caught.value.what
    assert store.rows("select * from reviews") == []


def test_a_line_whose_number_and_uri_are_two_images(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    file = listed(tmp_path / "d.csv", f"image_id,uri,decision\n{ids['a']},pool/b.jpg,reject\n")
    with pytest.raises(InputError, match=rf"line 2: image {ids['a']} is 'pool/a.jpg', not 'pool/b.jpg'"):
        reviews.add_reviews(store, file)
    assert store.rows("select * from reviews") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("image_id,verdict\n1,reject\n", "no decisions on images"),
        ("decision\nreject\n", "no decisions on images"),
        ("uri,decision,new_lable\npool/a.jpg,relabel,cat\n", "did you mean 'new_label'"),
        ("uri,decision,decision\npool/a.jpg,reject,reject\n", "'decision' twice"),
        ("uri,decision\npool/a.jpg,reject,too,many\n", "line 2 .* has 4 cells"),
        ('uri,decision\n"pool/a.jpg,reject\n', "cannot be read"),
    ],
)
def test_files_that_hold_no_decisions(store: Store, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reviews.add_reviews(store, listed(tmp_path / "d.csv", text))
    assert store.rows("select * from reviews") == []


@pytest.mark.parametrize(
    "arguments",
    [(), ("--image-id", 5), ("--from", "d.csv", "--image-id", 5), ("--from", "missing.csv")],
)
def test_half_a_question(store: Store, arguments: tuple[object, ...], curator: Callable[..., Answer]) -> None:
    answer = curator("review", *arguments, "--store", store.path)
    assert answer.code == 2
    assert "mend:" in answer.err


def test_people_who_decide_at_once_lose_nothing(store: Store, tmp_path: Path) -> None:
    """Processes of their own: one with a file, one image by image, and another file."""
    letters = "abcdefghi"
    files = [
        listed(
            tmp_path / f"{who}.csv",
            "uri,decision,reviewer\n" + "".join(f"pool/{letter}.jpg,accept,{who}\n" for letter in letters),
        )
        for who in ("ann", "bob", "eve")
    ]
    program = [Path(sys.executable).with_name("curator"), "review", "--store", store.path, "--from"]
    runs = [subprocess.Popen([*program, file], stderr=subprocess.PIPE, text=True) for file in files]
    for name in letters[:2]:
        add_review(store, store.rows("select image_id from images where uri = $u", u=f"pool/{name}.jpg")[0]["image_id"],
                   "reject", reviewer="dan")  # fmt: skip
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], errors
    rows = store.rows("select reviewer, count(*) as n from reviews group by 1 order by 1")
    assert [(row["reviewer"], row["n"]) for row in rows] == [("ann", 9), ("bob", 9), ("dan", 2), ("eve", 9)]


def test_the_lineage_names_the_reviews_and_diff_shows_what_they_did(
    store: Store, ids: dict[str, int], tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    before = building.build(store, "before", {"per_class": 3})
    file = listed(
        tmp_path / "d.csv", "uri,decision,new_label\npool/a.jpg,reject,\npool/b.jpg,relabel,owl\npool/e.jpg,accept,\n"
    )
    reviews.add_reviews(store, file)
    after = building.build(store, "after", {"per_class": 3})
    versions = [manifest.lineage["tables"]["reviews"] for manifest in (before, after)]
    assert versions[1] == versions[0] + 1 == store.versions()["reviews"]
    found = curator("diff", "before", "after", "--json", "--store", store.path).json
    assert (found["removed"], found["relabeled"]) == (1, 1)
    assert found["added"] == 2  # d and h move up among the cats
    add_review(store, ids["a"], "skip")
    add_review(store, ids["b"], "skip")
    building.build(store, "undone", {"per_class": 3})
    assert curator("diff", "before", "undone", "--exit-code", "--store", store.path).code == 0
    again = building.build(store, "again", {}, as_of="after")
    assert again.sha256 == after.sha256
