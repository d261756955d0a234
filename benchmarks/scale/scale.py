"""One generation over 10M, 300M and 5B images: bytes, requests, time, cost, and 256 ranks that die now and then.

    benchmarks/results/*.md, scale.json (measured) + assumptions.toml --steps.py, failures.py--> tables, a picture

    python benchmarks/scale/scale.py [--measure] [--rows 10000000] [--runs 10] [--work DIR] [--write]

--measure asks questions.py first, and with --write keeps its figures in benchmarks/results/scale.json. --write puts the
tables between the marks of docs/scale.md and of benchmarks/results/scale.md, and draws docs/pictures/scale.png.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import curves  # noqa: E402
import failures  # noqa: E402
import questions  # noqa: E402
import steps  # noqa: E402
from failures import Job, Outcome  # noqa: E402
from manifest import memory_gib  # noqa: E402
from steps import CLASSES, Assumed, Rates  # noqa: E402

FIGURES = HERE.parent / "results" / "scale.json"
RESULT = HERE.parent / "results" / "scale.md"
DOCS = HERE.parents[1] / "docs" / "scale.md"
PICTURE = HERE.parents[1] / "docs" / "pictures" / "scale.png"
DAYS = (1.0, 3.0, 10.0, 30.0, 100.0)
MIDDLE = DAYS[2]
LENGTHS = (10.0, 30.0, 100.0, 300.0, 1000.0)
RANKS = 256
DAY = 86_400
Key = tuple[float, float, float, str]  # images, days between deaths of a rank, seconds of a part, rule


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--measure", action="store_true")
    options.add_argument("--rows", type=int, default=10_000_000, help="of the largest synthetic store")
    options.add_argument("--pictures", type=int, default=12_000, help="that are labeled")
    options.add_argument("--parts", type=int, default=2_000, help="that are published at once")
    options.add_argument("--runs", type=int, default=20, help="of each simulated labeling")
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    if chosen.measure:
        with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
            own = questions.everything(Path(folder), chosen.rows, chosen.pictures, chosen.parts)
        own |= {"machine": machine()}
        if chosen.write:
            FIGURES.write_text(json.dumps(own, indent=1) + "\n")
    else:
        own = json.loads(FIGURES.read_text())
    found, known = steps.rates(own), steps.assumed(HERE / "assumptions.toml")
    runs = simulated(found, known, chosen.runs)
    made = tables(found, known, runs)
    for name, lines in made.items():
        print(f"\n{name}\n", *lines, sep="\n")
    if chosen.write:
        for file in (RESULT, DOCS):
            file.write_text(filled(file.read_text("utf-8"), made), "utf-8")
        curves.labeling(runs, PICTURE)


def machine() -> str:
    """What measured, and when."""
    load = os.getloadavg()[2]
    return (
        f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, load {load:.1f}, "
        f"Python {platform.python_version()}"
    )


def filled(document: str, made: Mapping[str, list[str]]) -> str:
    """A document with its tables between their marks, `<!-- NAME -->` and `<!-- end -->`.

    Other comments, what the test of the documents is told, have a colon and stay.

    Raises:
        ValueError: A mark has no end, or names no table.
    """
    done, rest = [], document
    while "<!-- " in rest:
        before, rest = rest.split("<!-- ", 1)
        name, rest = rest.split(" -->", 1)
        if ":" in name:
            done.append(f"{before}<!-- {name} -->")
            continue
        if name not in made or "<!-- end -->" not in rest:
            raise ValueError(f"the mark '{name}' has no table or no end")
        rest = rest.split("<!-- end -->", 1)[1]
        done.append(f"{before}<!-- {name} -->\n" + "\n".join(made[name]) + "\n<!-- end -->")
    return "".join(done) + rest


def tables(found: Rates, known: Assumed, runs: Mapping[Key, list[Outcome]]) -> dict[str, list[str]]:
    """All tables, by the names of their marks."""
    pools = list(known.pools)
    return {
        "measured": measured(found),
        "sizes": size_table(found, pools),
        "requests": by_pool(
            pools, lambda n: {k: v for k, (v, _) in steps.requests(found, known, n, 1000).items()}, many
        ),
        "times": time_table(found, known, pools),
        "bottlenecks": bottlenecks(found, known, pools),
        "costs": cost_table(found, known, pools),
        "assumed": assumptions(known),
        "deaths": deaths(runs),
        "lengths": lengths(runs),
    }


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    titles = list(titles)
    return ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *("| " + " | ".join(r) + " |" for r in rows)]


def by_pool(pools: list[int], ask: Callable[[int], dict[str, float]], show: Callable[[float], str]) -> list[str]:
    """A row for each name that `ask` gives figures of, a column for each pool."""
    columns = [ask(images) for images in pools]
    rows = [[name, *(show(column[name]) for column in columns)] for name in columns[0]]
    return table(["", *map(many, pools)], rows)


def size_table(found: Rates, pools: list[int]) -> list[str]:
    rows = []
    both = [steps.sizes(found, classes) for classes in CLASSES]
    for name in both[0]:
        for classes, size in zip(CLASSES, both, strict=True):
            each, share = size[name]
            if classes == CLASSES[0] or size[name] != both[0][name]:
                title = name if both[0][name] == both[1][name] else f"{name}, {classes:,} classes"
                of = "image" if share == 1 else f"its image, {share:.1%} of the pool"
                rows.append([title, f"{each:,.0f}", of, *(size_of(each * share * images) for images in pools)])
    return table(["", "bytes", "of each", *map(many, pools)], rows)


def time_table(found: Rates, known: Assumed, pools: list[int]) -> list[str]:
    columns = [(images, classes) for images in pools for classes in CLASSES]
    took = [steps.seconds(found, known, *column) for column in columns]
    rows = [[name, *(duration(column[name]) for column in took)] for name in took[0]]
    hosts = ["hosts, GPUs", *(f"{known.pools[n]}, {known.pools[n] * known.hosts['gpus']}" for n, _ in columns)]
    return table(["", *(f"{many(n)}, {classes:,} classes" for n, classes in columns)], [hosts, *rows])


def bottlenecks(found: Rates, known: Assumed, pools: list[int]) -> list[str]:
    """Of each pool the three longest steps but those that the number of GPUs sets."""
    rows = []
    for images in pools:
        took = steps.seconds(found, known, images, CLASSES[0])
        gpus = sum(took[name] for name in steps.GPU_WORK)
        rest = sorted((name for name in took if name not in steps.GPU_WORK), key=lambda name: -took[name])
        for place, name in enumerate(rest[:3]):
            first = [many(images), duration(gpus)] if not place else ["", ""]
            rows.append([*first, name, duration(took[name]), steps.MENDS[name]])
    return table(["images", "label and train", "longest of the rest", "takes", "what to do then"], rows)


def cost_table(found: Rates, known: Assumed, pools: list[int]) -> list[str]:
    return by_pool(pools, lambda n: steps.costs(found, known, n, CLASSES[0]), lambda usd: f"{usd:,.0f}")


def assumptions(known: Assumed) -> list[str]:
    rows = [
        [group, name, f"{value:g}"]
        for group in ("prices", "gpu", "hosts", "work")
        for name, value in getattr(known, group).items()
    ]
    return table(["", "name", "assumed"], rows)


def measured(found: Rates) -> list[str]:
    own, few = found.own, found.own["few"]
    listing, again, commit = own["listing"], own["listing_going_on"], own["commit"]
    wide = [own[f"wide_{classes}"] for classes in CLASSES]
    built = [own[f"manifest_{classes}"] for classes in CLASSES]
    rates = own["parts"]["rates"]
    shown = [
        ["`label` where nothing is left, one process", f"{own['start']['alone']:.1f} s"],
        ["the same in two processes of torchrun", f"{own['start']['torchrun']:.1f} s"],
        [
            f"first batch of {own['rows']:,} images, each rank",
            f"{listing['first']:.1f} s, peak {listing['peak_mb']:,.0f} MB",
        ],
        [
            f"the same with {1 - again['left'] / own['rows']:.0%} of them written by a run that was stopped",
            f"{again['first']:.1f} s, peak {again['peak_mb']:,.0f} MB",
        ],
        [f"first batch of {few:,} images", f"{own['listing_few']['first']:.1f} s"],
        ["going through the list in batches of 64", f"{listing['rows_per_second']:,.0f} images/s"],
        [
            f"a part in the commit, of {own['count']:,}",
            f"{commit['commit_ms']:.2f} ms, {commit['log_bytes']:.0f} bytes of the log",
        ],
        ["a part when a stopped run goes on, each rank", f"{commit['resume_ms']:.2f} ms"],
        ["a part when the table is opened", f"{commit['open_ms']:.2f} ms"],
        [
            f"rates of {len(rates)} parts of {questions.PART:g} s, as multiples of their mean",
            f"{min(rates) / statistics.mean(rates):.2f} to {max(rates) / statistics.mean(rates):.2f}, "
            f"standard deviation {statistics.stdev(rates) / statistics.mean(rates):.2f}",
        ],
        [
            "softmax in batches of 64, 1,000 and 21,000 classes",
            " and ".join(f"{w['softmax_rows']:,.0f} rows/s" for w in wide),
        ],
        ["what is stored of it worked out", " and ".join(f"{w['summary_rows']:,.0f} rows/s" for w in wide)],
        ["its row in a part of 60,000", " and ".join(f"{w['bytes']:.0f} bytes" for w in wide)],
        [
            f"whole manifest of {few:,} images, 1,000 and 21,000 classes",
            " and ".join(f"{b['seconds']:.1f} s" for b in built),
        ],
        [
            f"{own['rows']:,} labels sorted for the app",
            f"{own['publication']['seconds']:.0f} s, peak {own['publication']['peak_mb']:,.0f} MB",
        ],
    ]
    return [own["machine"] + ". `make bench-scale`", "", *table(["what", "measured"], shown)]


def job(found: Rates, known: Assumed, images: float, days: float, part: float) -> Job:
    """A labeling by RANKS ranks at 1,000 classes."""
    return Job(
        images,
        RANKS,
        known.hosts["gpus"],
        steps.rank_rate(found, known, CLASSES[0]),
        part,
        steps.start(found, images),
        found.own["commit"]["resume_ms"] / 1e3,
        known.work["stop_seconds"],
        days * DAY,
    )


def simulated(found: Rates, known: Assumed, runs: int) -> dict[Key, list[Outcome]]:
    """Outcomes by images, days between deaths of a rank, seconds of a part, and rule."""
    measured = np.array(found.own["parts"]["rates"]), questions.PART
    done: dict[Key, list[Outcome]] = {}
    for images in list(known.pools)[1:]:
        for days in DAYS:
            given = job(found, known, images, days, steps.PART_SECONDS)
            for rule in failures.RULES:
                done[images, days, steps.PART_SECONDS, rule] = failures.simulate(given, rule, *measured, runs)
            listed = given._replace(start=found.own["start"]["torchrun"])
            done[images, days, steps.PART_SECONDS, "listed"] = failures.simulate(listed, "together", *measured, runs)
        for part in LENGTHS:
            given = job(found, known, images, MIDDLE, part)
            done[images, MIDDLE, part, "together"] = failures.simulate(given, "together", *measured, runs)
    return done


NAMES = {
    "together": "all start again (`torchrun --max-restarts`)",
    "later": "the host stands still, the rest by a second command",
    "alone": "the rank alone starts again (not built)",
    "listed": "all start again, the list made once (not built)",
}


def deaths(runs: Mapping[Key, list[Outcome]]) -> list[str]:
    """What the mean time between deaths does, by rule."""
    rows = [
        [many(images), f"{days:g}", NAMES[rule], *figures(outcomes)]
        for (images, days, part, rule), outcomes in runs.items()
        if part == steps.PART_SECONDS and days in DAYS[::2]
    ]
    return table(["images", "days between deaths of a rank", "who starts again", *HEADS], rows)


def lengths(runs: Mapping[Key, list[Outcome]]) -> list[str]:
    """What the length of a part does, where all start again."""
    rows = [
        [many(images), f"{part:g}", *figures(outcomes), f"{statistics.mean(o.parts for o in outcomes):,.0f}"]
        for (images, days, part, rule), outcomes in sorted(runs.items())
        if rule == "together" and days == MIDDLE
    ]
    return table(["images", "seconds of a part", *HEADS, "parts"], rows)


HEADS = ("done after (10th, 90th percentile)", "x of the work alone", "deaths", "computed twice", "ranks waited")


def figures(outcomes: list[Outcome]) -> list[str]:
    took = [outcome.seconds for outcome in outcomes]
    middle = statistics.median(took)
    if not math.isfinite(middle):
        return ["never", f"more than {failures.PATIENCE}", "-", "-", "-"]
    low, high = np.quantile(took, [0.1, 0.9])
    return [
        f"{duration(middle)} ({duration(low)}, {duration(high)})",
        f"{statistics.median(o.slower for o in outcomes):.2f}",
        f"{statistics.mean(o.deaths for o in outcomes):.1f}",
        f"{statistics.mean(o.twice for o in outcomes):.3%}",
        f"{statistics.mean(o.waited for o in outcomes):.1%}",
    ]


def many(count: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def size_of(count: float) -> str:
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "never"
    for unit, name in ((365 * DAY, "years"), (DAY, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.3g} {name}" if seconds < 1e3 * unit else f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
