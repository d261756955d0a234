"""Policies that a user writes: what works, what is recorded, and what is refused with which words.

mine.sql --curator build-manifest --policy mine.sql--> a manifest, rebuilt later without the file; or exit 2
"""

import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import PROBS, Answer

from curator.curation import building, manifests, policies
from curator.curation.selection import Parameters
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.storage.store import Store

MINE = """-- Purpose: images with a clear margin, the clearest first.
-- Parameter: $margin = 0.25    lowest margin
-- Parameter: $except = 'nobody'
select image_id, label, confidence, margin as score, 0.5 as weight
from candidates
where margin >= $margin::FLOAT and label::VARCHAR <> $except;
"""
ROWS = "select image_id, label, confidence, confidence as score from candidates"


def letters(store: Store, built: manifests.Manifest) -> str:
    """The images of a manifest, in its order."""
    table = pq.read_table(store.path / built.path)
    return "".join(uri[5] for uri in table["uri"].to_pylist())


def test_a_policy_of_ones_own(
    store: Store, ids: dict[str, int], curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    Path("mine.sql").write_text(MINE)
    build = ("build-manifest", "--per-class", 2, "--policy", "./mine.sql", "--json")
    answer = curator(*build, "first")
    assert answer.code == 0, answer.err
    first = manifests.find(store, "first")
    # margins: a .85, b .70, c .65, e .50, f .30, g .40; d has .20
    assert letters(store, first) == "abefg"
    assert set(pq.read_table(first.path)["weight"].to_pylist()) == {0.5}
    assert first.lineage["parameters"]["policy"] == "mine.sql"
    assert first.lineage["parameters"]["settings"] == {"margin": 0.25, "except": "nobody"}
    assert MINE.strip().removesuffix(";") in first.lineage["sql"]
    assert str(store.path.parent) not in str(first.lineage["parameters"])

    curator(*build, "second", "--set", "margin=.35", "--set", "except=2")
    assert letters(store, manifests.find(store, "second")) == "abe"

    Path("mine.sql").unlink()
    add_review(store, ids["a"], "reject")
    for name in ("first", "second"):
        again = curator("build-manifest", f"{name}-again", "--as-of", name, "--json")
        assert again.json["sha256"] == manifests.find(store, name).sha256, again.err
    other = curator("build-manifest", "third", "--as-of", "second", "--set", "margin=0.3", "--json")
    assert other.code == 0, other.err
    assert letters(store, manifests.find(store, "third")) == "abef", "the other setting is kept"
    assert curator("check", "--json").code == 1, "a is rejected now"


RIGHT = {
    f"with best as ({ROWS}), again as (select * from best) select * from again": "abcdefghi",
    f"with candidates as ({ROWS} where label = 0) select * from candidates": "abcdh",
    "with recursive n as (select 1 as x union all select x + 1 from n where x < 2)"
    f" {ROWS} where label in (select x from n)": "efgi",
    f"{ROWS} where exists (from holdout) or image_id in (select image_id from images where uri > 'pool/h')": "hi",
    f"{ROWS} where label in (select unnest([1, 2]))": "efgi",
    f"{ROWS} order by confidence desc, image_id limit 3": "abc",
    "from candidates select Image_Id, LABEL, confidence, rank() over (order by confidence) as Score": "abcdefghi",
    "select image_id, 2 as label, confidence, -1e6 * confidence as score, label as weight from candidates": "abcdefghi",
    f"{ROWS} where confidence > $min_confidence + $seed + $generation and $per_class = 9 -- all": "abcdefghi",
}


def test_what_a_policy_may_be(store: Store) -> None:
    for number, (text, want) in enumerate(RIGHT.items()):
        file = store.path.parent / "own.sql"
        file.write_text(text)
        options = {"per_class": 9, "min_confidence": 0.1, "policy": str(file)}
        built = building.build(store, f"m{number}", options)
        assert "".join(sorted(letters(store, built))) == want, text


def where(condition: str) -> str:
    return f"{ROWS} where {condition}"


def instead(column: str, value: str) -> str:
    """The query with another value of one of its columns."""
    return f"select * replace ({value} as {column}) from ({ROWS})"


HIDDEN = 'with a as (with "x.csv" as (select 1 as image_id) select * from "x.csv")'
WRONG = {
    # no query, or more than one
    "selekt 1": "is not an SQL query: syntax error",
    f"{ROWS}; {ROWS}": "holds 2 statements",
    f"{ROWS}; drop table candidates": "is not an SQL query: Only SELECT",
    "-- nothing": "holds 0 statements",
    "set threads = 1": "is not an SQL query",
    # writing
    f"with a as (copy (select 1) to 'written.csv') {ROWS}": "would write something",
    where("exists (with a as (copy (select 1) to 'written.csv') select 1)"): "would write something",
    f"with a as (insert into candidates values (1)) {ROWS}": "would write something",
    f"with a as (delete from stored_images returning *) {ROWS}": "would write something",
    # another answer each time
    where("random() < 2"): "uses random, which",
    where("list_max([random()]) < 2"): "uses random, which",
    where("now() > '2020-01-01'"): "uses now, which",
    where("current_timestamp > '2020-01-01'"): "uses current_timestamp, which",
    where("ago(interval 1 day) > '2020-01-01'"): "uses ago, which",
    where("uuid()::VARCHAR > '0'"): "uses uuid, which",
    f"{ROWS} using sample 3": "uses a sample, which",
    f"{ROWS} limit 3": "uses limit without order by, which",
    f"{ROWS} limit 50%": "uses limit without order by, which",
    # reading
    "select * from read_csv('x.csv')": "reads 'read_csv()'",
    "select * from 'x.csv'": "reads 'x.csv'",
    "select * from manifests": "reads 'manifests'",
    "select * from stored_labels": "reads 'stored_labels'",
    "select * from metrics": "reads 'metrics'",
    "select * from query('select 1')": "reads 'query()'",
    "select * from duckdb_settings()": "reads 'duckdb_settings()'",
    "select * from (show tables)": "reads 'show'",
    "select * from (summarize 'x.csv')": "reads ",
    # a table expression that cannot be seen here makes no file known
    f'{HIDDEN} select * from "x.csv"': "reads 'x.csv'",
    'with "x.csv" as (select * from "x.csv") select * from "x.csv"': "reads 'x.csv'",
    'with recursive "x.csv" as (select * from "x.csv" union all select * from "x.csv") from "x.csv"': "reads 'x.csv'",
    # parameters
    where("confidence > $sed"): "uses the unknown parameter $sed; did you mean 'seed'?",
    where("confidence > ?"): "uses the unknown parameter",
    f"-- Parameter: $seed = 1\n{ROWS}": "states $seed, which is given by an option",
    f"-- Parameter: $fill = 'none'\n{ROWS}": "states $fill, which is given by an option",
    f"-- Parameter: $policy = 'top'\n{ROWS}": "states $policy, which is given by an option",
    f"-- Parameter: $image_id = 1\n{ROWS}": "states $image_id, which is given by an option",
    f"select *, 1e7::FLOAT as weight from ({ROWS})": "9 rows have a weight below 0 or above 1e6",
    # columns
    "select image_id, label from candidates": "does not return confidence, score; it returns image_id, label",
    "select 1": "does not return image_id",
    where("nonesuch > 1"): "cannot be computed: Binder Error",
    "select * from candidates, candidates": "cannot be computed",
    instead("label", "'cat'"): "returns label as VARCHAR, not as whole numbers",
    instead("label", "1.5"): "returns label as DECIMAL(2,1), not as whole numbers",
    instead("image_id", "confidence"): "returns image_id as FLOAT",
    instead("score", "true"): "returns score as BOOLEAN, not as numbers",
    instead("score", "'1'"): "returns score as VARCHAR",
    f"select *, 'heavy' as weight from ({ROWS})": "returns weight as VARCHAR",
    # rows
    instead("score", "null::FLOAT"): "9 rows have a null",
    instead("label", "nullif(label, 2)"): "1 row has a null",
    f"select *, null::FLOAT as weight from ({ROWS})": "9 rows have a null",
    instead(
        "score", "'nan'::DOUBLE"
    ): "9 rows have a score above 1e30 in size, or a score or weight that is not finite",
    instead("score", "2e30"): "above 1e30 in size",
    instead("score", "'-infinity'::FLOAT"): "not finite",
    instead("score", "1e300::DOUBLE"): "cannot be computed: Conversion Error",
    f"select *, 'inf'::FLOAT as weight from ({ROWS})": "not finite",
    f"select *, confidence - 0.5 as weight from ({ROWS})": "rows have a weight below 0",
    instead("label", "3"): "9 rows have a label outside 0 to 2",
    instead("label", "-1"): "9 rows have a label outside 0 to 2",
    instead("label", "4000000000"): "cannot be computed: Conversion Error",
    instead("image_id", "12345"): "9 rows are no candidates",
    instead("confidence", "0.123"): "9 rows are no candidates, or have another confidence",
    f"{ROWS} union all {ROWS} where label = 2": "1 image is returned more than once",
    "select image_id, label, confidence, confidence as score from allowed": "1 row is no candidate",
    where("label::VARCHAR::DATE > '2020-01-01'"): "cannot be computed: Conversion Error",
    where("false"): "nothing can be selected",
}


def contents(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.long
def test_a_wrong_policy_is_refused_with_its_reason(
    store: Store, curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    Path("x.csv").write_text("image_id,label,confidence,score\n1,0,0.5,0.5\n")
    before = contents(store.path.parent)
    for text, message in WRONG.items():
        Path("mine.sql").write_text(text)
        # all but h, of .34
        least = 0.35 if "from allowed" in text else 0.1
        build = ("build-manifest", "m", "--per-class", 2, "--min-confidence", least, "--policy", "mine.sql")
        answer = curator(*build)
        assert answer.code == 2, text
        assert answer.out == "", text
        assert message in answer.err, f"{text}\n{answer.err}"
        assert "mend: " in answer.err, text
        assert contents(store.path.parent) == before | {store.path.parent / "mine.sql"}, text


def test_a_file_that_cannot_be_read(store: Store, curator: Callable[..., Answer]) -> None:
    folder = store.path.parent
    (folder / "folder.sql").mkdir()
    (folder / "bytes.sql").write_bytes(b"\xff\xfe\x00")
    for name, why in {"none.sql": "No such file", "folder.sql": "Is a directory", "bytes.sql": "not UTF-8"}.items():
        answer = curator("build-manifest", "--per-class", 2, "--store", store.path, "--policy", folder / name)
        assert answer.code == 2, name
        assert name in answer.err
        assert why in answer.err
        assert "mend: " in answer.err


SETTINGS = {
    "margn=0.5": "has no parameter 'margn'; did you mean 'margin'?",
    "margin=high": "--set margin=high is not a number",
    "margin=": "is not a number",
    "margin=nan": "is not a number",
    "margin=inf": "is not a number",
    "margin=1e300": "is not a number",
    "margin=" + "9" * 400: "is not a number",
    "margin=true": "is not a number",
    "except=1": "",
    "margin": "is not NAME=VALUE",
}


def test_settings_of_a_policy(store: Store, curator: Callable[..., Answer]) -> None:
    file = store.path.parent / "mine.sql"
    file.write_text(MINE.replace("$except = 'nobody'", "$except = 7").replace("$except;", "$except::VARCHAR;"))
    build = ("build-manifest", "--per-class", 2, "--store", store.path, "--dry-run")
    for given, message in SETTINGS.items():
        answer = curator(*build, "--policy", file, "--set", given)
        assert answer.code == (2 if message else 0), given
        assert message in answer.err, answer.err
    answer = curator(*build, "--policy", "stratified", "--set", "bins=2.5")
    assert answer.code == 2
    assert "--set bins=2.5 is not a whole number" in answer.err
    answer = curator(*build, "--policy", "top", "--set", "bins=2")
    assert answer.code == 2
    assert "has no parameter 'bins'" in answer.err


def test_no_parameter_of_a_policy_can_change_the_steps_behind_it() -> None:
    """Every option that SQL binds by name is refused as the name of a parameter."""
    bound = {"generation", "per_class", "min_confidence", "seed", "fill", "max_copies", "targets", "hard_from"}
    assert bound <= Parameters(0, 1).values.keys()
    for name in bound:
        with pytest.raises(InputError, match=f"states \\${name}, which is given by an option"):
            policies.load("mine", f"-- Parameter: ${name} = 1\n{ROWS}")


@pytest.mark.parametrize("text", ["1", "-3", "0.5", ".5", "1e-3", "'a b'", "b", "007"])
def test_values_as_they_are_written(text: str) -> None:
    value = policies.load("mine", f"-- Parameter: $x = {text}   note\n{ROWS}").defaults["x"]
    assert value == {"1": 1, "-3": -3, "0.5": 0.5, ".5": 0.5, "1e-3": 0.001, "'a b'": "a b", "b": "b", "007": 7}[text]
    assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(
    ("end", "whole"),
    [
        (";", True),
        ("; -- the end\n", True),
        (";\n-- one; two\n\n-- three;", True),
        (" -- no semicolon; but in a comment", True),
        ("; select 1", False),
        (" where 'a;' = 'a;'; -- a", True),
    ],
)
def test_an_own_policy_may_end_in_comments(
    store: Store, curator: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, whole: bool
) -> None:
    monkeypatch.chdir(store.path.parent)
    own = tmp_path / "own.sql"
    own.write_text(ROWS + end, "utf-8")
    answer = curator("build-manifest", "m", "--per-class", 2, "--policy", own)
    assert answer.code == (0 if whole else 2), answer.err
    if whole:
        assert curator("check", "m").code == 0


def test_a_parameter_has_a_range(
    store: Store, curator: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    for value in ("0", "1001", "-1"):
        answer = curator("build-manifest", "m", "--per-class", 2, "--policy", "stratified", "--set", f"bins={value}")
        assert answer.code == 2
        assert f"--set bins={value}: the policy stratified takes 1 to 1000" in answer.err
    built = curator("build-manifest", "m", "--per-class", 2, "--policy", "stratified", "--set", "bins=1000")
    assert built.code == 0, built.err
    own = tmp_path / "own.sql"
    for given in ("0.5 in 0.6 .. 1", "'a' in 0 .. 1", "0.5 in a .. 1"):
        own.write_text(f"-- Parameter: $x = {given}    note\n{ROWS} where confidence > $x", "utf-8")
        answer = curator("build-manifest", "n", "--per-class", 2, "--policy", own)
        assert answer.code == 2
        assert "which is not in" in answer.err


WRONG_WHERE = {
    "image_id in (with a as (copy (select 1) to 'written.csv') select image_id from labels)": "would write something",
    "exists (select 1 from (with a as (copy images to 'written.csv') select 1))": "would write something",
    "exists (with a as (insert into images values (1)) select 1)": "would write something",
    f'image_id in ({HIDDEN} select image_id from "x.csv")': "reads 'x.csv'",
    'image_id in (with "x.csv" as (select * from "x.csv") select image_id from "x.csv")': "reads 'x.csv'",
    "added_at < ago(interval 1 day)": "uses ago, which",
}


def test_a_where_writes_nothing_and_reads_no_file(
    store: Store, curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    Path("x.csv").write_text("image_id\n1\n")
    before = contents(store.path.parent)
    for text, message in WRONG_WHERE.items():
        answer = curator("build-manifest", "m", "--per-class", 2, "--where", text)
        assert answer.code == 2, text
        assert message in answer.err, answer.err
        assert contents(store.path.parent) == before, text


@pytest.mark.parametrize("name", ["size", "query", "con"])
def test_a_parameter_may_have_any_other_name(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "own.sql").write_text(f"-- Parameter: ${name} = 0.5\n{ROWS} where confidence > ${name}", "utf-8")
    built = building.build(store, "m", {"per_class": 9, "fill": "none", "policy": str(tmp_path / "own.sql")})
    assert built.unique_images == sum(max(p) > 0.5 for p in PROBS.values())
    assert manifests.check(store, "m")[0].ok
