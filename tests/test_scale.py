"""The arithmetic of scale: figures come from where they stand, times follow the rules, ranks' time is accounted for."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[1] / "benchmarks" / "scale"
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

import failures  # noqa: E402
import questions  # noqa: E402
import rates  # noqa: E402
import scale  # noqa: E402
import steps  # noqa: E402
from failures import Job  # noqa: E402

JOB = Job(images=1000, ranks=2, host=1, rate=10.0, part=3.0, start=2.0, known=0.5, stop=1.0, between=np.inf)
ONE = np.ones(1)


class Scripted:
    """Random numbers that a test has written down: deaths, and who dies."""

    def __init__(self, *deaths: float, dead: int = 0) -> None:
        self.deaths, self.dead = list(deaths), dead

    def exponential(self, mean: float, size: int | None = None) -> Any:
        return self.deaths.pop(0) if size is None else np.array([self.deaths.pop(0) for _ in range(size)])

    def integers(self, high: int) -> int:
        return self.dead

    def choice(self, speeds: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.ones(size)


@pytest.fixture(scope="module")
def found() -> steps.Rates:
    return steps.rates(json.loads(scale.FIGURES.read_text()))


@pytest.fixture(scope="module")
def known() -> steps.Assumed:
    return steps.assumed(FOLDER / "assumptions.toml")


def test_figures_are_found_where_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "RESULTS", tmp_path)
    lines = [
        "mean 1,234.5 KB",
        "| a | b | c |",
        "|---|---|---|",
        "| x | y | 1,500 (1, 2) |",
        "",
        "| a | c |",
        "|---|---|",
    ]
    (tmp_path / "some.md").write_text("\n".join([*lines, "| x | 7 |"]))
    assert rates.cell("some", "x | y", "c") == 1500
    assert rates.text("some", r"mean ([\d.,]+) KB") == 1234.5
    for row, column in (("x", "c"), ("z", "c"), ("x | y", "d")):
        with pytest.raises(LookupError):
            rates.cell("some", row, column)


def test_steps_grow_as_they_should(found: steps.Rates, known: steps.Assumed) -> None:
    wider = known._replace(pools={1_000_000: 1, 2_000_000: 1, 4_000_000: 2})
    one, two, four = (steps.seconds(found, wider, images, 1000) for images in wider.pools)
    assert two["label"] == pytest.approx(2 * one["label"])
    assert four["label"] == pytest.approx(two["label"])  # twice the images on twice the hosts
    assert four["build-manifest"] == pytest.approx(2 * two["build-manifest"])
    assert two["near-duplicates"] == pytest.approx(4 * one["near-duplicates"])
    rows = known.work["passes"] * 1e6 * found.rows
    assert one["train"] == pytest.approx(rows / 8 / known.gpu["train_images_per_second"])
    kept = sum(size * share for size, share in steps.sizes(found, 1000).values()) * 1e6 / 1e9
    paid = steps.costs(found, wider, 1_000_000, 1000)
    month = known.prices["storage_gb_month"]
    assert paid["pictures kept a month"] + paid["all the rest kept a month"] == pytest.approx(kept * month)
    assert (
        steps.rank_rate(found, known, 21_000)
        < steps.rank_rate(found, known, 1000)
        < known.gpu["label_images_per_second"]
    )


@pytest.mark.parametrize("rule", failures.RULES)
def test_where_nobody_dies_it_is_start_and_work(rule: str) -> None:
    (outcome,) = failures.simulate(JOB, rule, ONE, 3.0, 1)
    assert outcome.seconds == pytest.approx(2 + 50)
    assert (outcome.deaths, outcome.twice, outcome.parts) == (0, 0, 2 * 17)
    assert outcome.waited == pytest.approx(2 / 52)


def test_a_death_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ranks with 500 images each the first dies after 11 s: 9 of them at work, 8 of these in whole parts."""
    monkeypatch.setattr(failures, "_IN_FLIGHT", 5)
    job = JOB._replace(part=4.0)
    outcome = failures.together(job, ONE, Scripted(11.0, np.inf))
    # 80 of the first are kept, and 85 of the second, which writes what it has but for 5 images; 5 parts of 0.5 s each.
    left = 1000 - 80 - 85
    assert outcome.seconds == pytest.approx(11 + 1 + 2 + 5 * 0.5 + left / 2 / 10)
    assert (outcome.deaths, outcome.twice) == (1, pytest.approx(15 / 1000))

    outcome = failures.later(job, ONE, Scripted(11.0, np.inf, np.inf, np.inf))
    # the second goes on to its end, 52 s; 80 and 500 are kept, in 2 and 13 parts
    assert outcome.seconds == pytest.approx(52 + 1 + 2 + 15 * 0.5 + 420 / 2 / 10)
    assert (outcome.deaths, outcome.twice) == (1, pytest.approx(10 / 1000))

    outcome = failures.alone(job, ONE, Scripted(11.0, np.inf, np.inf))
    assert outcome.seconds == pytest.approx(11 + 1 + 2 + 2 * 0.5 + 42)
    assert (outcome.deaths, outcome.twice) == (1, pytest.approx(10 / 1000))


def test_who_never_gets_through_the_start_is_given_up() -> None:
    (outcome,) = failures.simulate(JOB._replace(between=0.5), "together", ONE, 3.0, 1)
    assert outcome.seconds == float("inf")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(failures.RULES)), st.integers(0, 10**6), st.floats(30, 3000), st.floats(0.5, 40))
def test_the_time_of_all_ranks_is_work_or_waiting(rule: str, seed: int, between: float, part: float) -> None:
    job = JOB._replace(ranks=8, host=4, images=8000, between=between, part=part, known=0.01)
    (outcome,) = failures.simulate(job, rule, ONE, 3.0, 1, seed)
    if np.isfinite(outcome.seconds):
        work = job.images * (1 + outcome.twice) / job.rate
        assert job.ranks * outcome.seconds * (1 - outcome.waited) == pytest.approx(work)
        assert outcome.slower == pytest.approx(outcome.seconds / 100)
        assert (outcome.twice > 0) <= (outcome.deaths > 0)


def test_the_program_fills_the_documents(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scale.py", "--runs", "1"])
    scale.main()
    said = capsys.readouterr().out
    for name in ("measured", "sizes", "requests", "times", "bottlenecks", "costs", "assumed", "deaths", "lengths"):
        assert f"\n{name}\n\n" in said
        assert f"<!-- {name} -->\n" in scale.DOCS.read_text("utf-8")
    made = {name: ["| 1 |"] for name in re.findall("^<!-- ([a-z]+) -->", scale.DOCS.read_text("utf-8"), re.MULTILINE)}
    for page in (scale.RESULT, scale.DOCS):
        text = page.read_text("utf-8")
        assert scale.filled(text, made).count("<!-- ") == text.count("<!-- ")
    made = {"a": ["| 1 |"], "b": ["| 2 |"]}
    assert scale.filled("x\n<!-- a -->\nold\n<!-- end -->\ny", made) == "x\n<!-- a -->\n| 1 |\n<!-- end -->\ny"
    for wrong in ("<!-- c --><!-- end -->", "<!-- a -->"):
        with pytest.raises(ValueError, match="mark"):
            scale.filled(wrong, made)


def test_the_questions_are_answered_at_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "PART", 0.05)
    answer = questions.parts(tmp_path / "small", 200)
    assert answer["rates"]
    assert min(answer["rates"]) > 0
    questions.make(tmp_path / "large", 2000, 1000)
    assert questions.listing(tmp_path / "large", 0)["left"] == 2000
    assert questions.listing(tmp_path / "large", 1)["left"] == 1000
    assert questions.publication(tmp_path / "large")["images"] == 2000
    assert 0 < questions.manifest(tmp_path / "large", 2)["images"] <= 2000
    assert questions.commit(tmp_path / "many", 5)["log_bytes"] > 0
    assert questions.wide(tmp_path, 21_000, 64, 128)["bytes"] > 0
