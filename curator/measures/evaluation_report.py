"""The report of evaluations: one HTML page with the figures of one or several models beside each other.

    table evaluations, the newest of each figure --> a section for each suite: a plot, what it shows in words, a table

The page stands alone, and the same figures give the same bytes. A suite that no model has is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from curator.measures import evaluation_plots, evaluations
from curator.measures.evaluation_plots import Point
from curator.reports.page import check, figure, page, save
from curator.reports.plots import NAMED, Plot, percent, short
from curator.storage.store import Store

_MEASURES = {"top1": "top-1", "top5": "top-5", "confidence": "mean confidence", "ece": "calibration error (ECE)"}
_OUTSIDE = {
    "confidence": "mean confidence",
    "above_0.3": "confidence above 0.3",
    "above_0.5": "confidence above 0.5",
    "above_0.9": "confidence above 0.9",
    "auroc_confidence": "AUROC of the confidence",
    "auroc_energy": "AUROC of the energy",
    "fpr95_confidence": "FPR at 95 %, confidence",
    "fpr95_energy": "FPR at 95 %, energy",
}

Row = Mapping[str, Any]


class Report(NamedTuple):
    """What was written: the models on the page, the file, its bytes, the suites that it shows."""

    models: list[str]
    path: str
    bytes: int
    suites: list[str]


def write(store: Store, models: Sequence[str], output: str | Path | None = None, force: bool = False) -> Report:
    """Writes the report of models that were evaluated.

    Args:
        store: The store.
        models: The models, in the order in which they are shown.
        output: The file, MODEL.html in the current folder if not given, of the first model.
        force: Whether to replace a file that is there.

    Raises:
        InputError: A model is unknown or was not evaluated, or the output is taken. Nothing was written.
    """
    models = list(dict.fromkeys(models))
    place = Path(output if output is not None else f"{models[0]}.html")
    check(place, models[0], force)
    rows = evaluations.newest(store, models)
    size = save(html(models, rows), place)
    return Report(models, str(place), size, [suite for suite in _SECTIONS if any(r["suite"] == suite for r in rows)])


def html(models: Sequence[str], rows: Sequence[Row]) -> str:
    """The whole page.

    Args:
        models: The models.
        rows: Of `evaluations.newest`.
    """
    parts = [_head(models, rows)]
    for suite, (title, section) in _SECTIONS.items():
        own = _Suite(models, [row for row in rows if row["suite"] == suite])
        if own.rows:
            parts.append(f"<h2>{title}</h2>\n{section(own)}")
    return page(f"{', '.join(models)}: evaluation", "\n".join(parts))


class _Suite:
    """The rows of one suite."""

    def __init__(self, models: Sequence[str], rows: Sequence[Row]) -> None:
        self.models, self.rows = models, rows
        self._found = {(r["model"], r["kind"], r["level"], r["measure"]): r for r in rows}
        self.kinds = sorted({r["kind"] for r in rows if r["kind"] is not None})

    def row(self, model: str, kind: str | None, level: float | None, measure: str) -> Row | None:
        return self._found.get((model, kind, level, measure))

    def point(self, model: str, kind: str | None, level: float | None, measure: str) -> Point | None:
        row = self.row(model, kind, level, measure)
        return None if row is None else (row["value"], row["low"], row["high"])

    def levels(self, kind: str | None) -> list[float]:
        return sorted({r["level"] for r in self.rows if r["kind"] == kind and r["level"] is not None})


def _head(models: Sequence[str], rows: Sequence[Row]) -> str:
    clean = {row["model"]: row for row in rows if row["suite"] == "clean" and row["measure"] == "top1"}
    key = "".join(
        f"<div><b>{percent(row['value'])}</b>"
        f"<span>top-1 of {escape(short(model, 40))}, {row['images']:,} images</span></div>"
        for model, row in ((m, clean[m]) for m in models if m in clean)
    )
    bases = {(row["model"], row["basis"]) for row in rows}
    said = ""
    if len({basis for _, basis in bases}) > 1:
        said = "Not all of these figures are of the same holdout images: see the table below."
    told = sorted({(r["model"], r["suite"], r["images"], r["seed"], r["options"], str(r["at"])[:19]) for r in rows})
    merged: dict[tuple[Any, ...], str] = {}
    for model, suite, images, seed, options, at in told:
        if suite not in ("class", "reliability"):
            merged[model, suite, images, seed, options] = at
    facts = [
        {"suite": suite, "model": model, "images": images, "seed": seed, "options": options, "at (UTC)": at}
        for (model, suite, images, seed, options), at in merged.items()
    ]
    return "\n".join(
        [
            f"<h1>{escape(', '.join(short(model, 60) for model in models))}</h1>\n"
            "<p class=quiet>An evaluation on the holdout. Intervals: 95 %, from 1,000 resamples of the images.</p>",
            f"<div class=key>{key}</div>",
            f"<div class=warn><p>{said}</p></div>" if said else "",
            f"<details><summary>What was run</summary>{_table(facts)}</details>",
        ]
    )


def _accuracy(suite: _Suite) -> str:
    series = {m: [suite.point(m, None, None, measure) for measure in _MEASURES] for m in suite.models}
    words = "; ".join(
        f"{short(m, 40)}: top-1 {_told(points[0])}, ECE {points[3][0]:.3f}"
        for m, points in series.items()
        if points[0] is not None and points[3] is not None
    )
    plot = evaluation_plots.dots("accuracy", list(_MEASURES.values()), series, "share of the images", f"{words}.")
    return _shown("Accuracy and calibration", plot, list(_MEASURES.values()), series)


def _classes(suite: _Suite) -> str:
    labels = {r["level"]: r["kind"] for r in suite.rows}
    series = {m: [suite.point(m, name, label, "top1") for label, name in labels.items()] for m in suite.models}
    rank = {
        label: min((p[0] for points in series.values() if (p := points[i])), default=1.0)
        for i, label in enumerate(labels)
    }
    order = sorted(range(len(labels)), key=lambda i: (rank[list(labels)[i]], list(labels)[i]))
    names = [list(labels.values())[i] for i in order]
    sorted_series = {m: [points[i] for i in order] for m, points in series.items()}
    shown = names[:NAMED]
    words = f"The classes with the lowest accuracy first: {', '.join(short(name, 30) for name in names[:3])}."
    if len(names) > NAMED:
        words += f" Shown are {NAMED} of {len(names):,}; the table has all."
    few = {m: points[:NAMED] for m, points in sorted_series.items()}
    return _shown("Classes", evaluation_plots.dots("classes", shown, few, "top-1", words), names, sorted_series)


def _reliability(suite: _Suite) -> str:
    series = {}
    for model in suite.models:
        points = []
        for level in suite.levels(None):
            right, sure = suite.point(model, None, level, "accuracy"), suite.point(model, None, level, "confidence")
            if right is not None and sure is not None:
                points.append((sure[0], right))
        if points:
            series[model] = points
    words = "The share of right answers over the confidence, in bins of a fifteenth; on the dashed line both are equal."
    labels = "confidence", "share of right answers"
    return figure("Reliability", evaluation_plots.lines("reliability", series, labels, words, diagonal=True))


def _attacks(suite: _Suite) -> str:
    parts = []
    for kind in suite.kinds:
        levels = suite.levels(kind)
        series = {m: [suite.point(m, kind, eps, "top1") for eps in levels] for m in suite.models}
        along = {m: [(eps, p) for eps, p in zip(levels, points, strict=True) if p] for m, points in series.items()}
        along = {m: points for m, points in along.items() if points}
        words = "; ".join(f"{short(m, 40)}: {_told(p[-1][1])} at eps {p[-1][0]:g}" for m, p in along.items())
        labels = "eps, of values of 0..255", "top-1"
        plot = evaluation_plots.lines(f"attack-{kind}", along, labels, f"Top-1 under {kind}. {words}.", "log")
        parts.append(_shown(kind.upper(), plot, [f"eps {eps:g}" for eps in levels], series))
    return "\n".join(parts)


def _corruptions(suite: _Suite) -> str:
    def error(model: str, kind: str, level: float) -> float | None:
        point = suite.point(model, kind, level, "top1")
        return None if point is None else 1 - point[0]

    means: dict[str, list[Point | None]] = {}
    for model in suite.models:
        own = [
            [e for level in suite.levels(kind) if (e := error(model, kind, level)) is not None] for kind in suite.kinds
        ]
        means[model] = [(sum(each) / len(each), min(each), max(each)) if each else None for each in own]
    names = [kind.replace("_", " ") for kind in suite.kinds]
    words = "Share of wrong answers: the dot is the mean of the severities, the bar reaches from the least to the most."
    words += _summary(suite, "mean_error", "mean error") + _summary(suite, "mce", "mean corruption error", 100)
    plot = evaluation_plots.dots("corruptions", names, means, "share of wrong answers", words)
    levels = sorted({level for kind in suite.kinds for level in suite.levels(kind)})
    rows = [
        {"kind": kind.replace("_", " "), "model": model} | {f"severity {s:g}": error(model, kind, s) for s in levels}
        for kind in suite.kinds
        for model in suite.models
    ]
    along = {}
    for model in suite.models:
        points: list[tuple[float, Point]] = []
        for level in levels:
            known = [e for kind in suite.kinds if (e := error(model, kind, level)) is not None]
            if known:
                points.append((level, (sum(known) / len(known), None, None)))
        if points:
            along[model] = points
    labels = "severity", "share of wrong answers, mean of kinds"
    by_level = evaluation_plots.lines("severities", along, labels, "The mean over the kinds, by severity.")
    return f"{figure('Corruptions', plot)}\n{figure('Severities', by_level)}\n{_table(rows)}"


def _films(suite: _Suite) -> str:
    series = {m: [suite.point(m, kind, None, "flip_probability") for kind in suite.kinds] for m in suite.models}
    names = [kind.replace("_", " ") for kind in suite.kinds]
    words = "How often the answer changes from one frame to the next; with noise, against the clean picture."
    words += _summary(suite, "mean_flip_probability", "mean") + _summary(suite, "mean_flip_rate", "mean flip rate", 100)
    return _shown("Films", evaluation_plots.dots("films", names, series, "flip probability", words), names, series)


def _outside(suite: _Suite) -> str:
    parts = []
    for number, kind in enumerate(suite.kinds):
        series = {m: [suite.point(m, kind, None, measure) for measure in _OUTSIDE] for m in suite.models}
        images = max(row["images"] for row in suite.rows if row["kind"] == kind)
        words = (
            f"{images:,} pictures of '{short(kind, 60)}', of none of the classes. A high AUROC and a low rest are good."
        )
        names = list(_OUTSIDE.values())
        plot = evaluation_plots.dots(f"outside-{number}", names, series, "share", words)
        parts.append(_shown("Outside pictures", plot, names, series))
    return "\n".join(parts)


_SECTIONS: dict[str, tuple[str, Callable[[_Suite], str]]] = {
    "clean": ("Accuracy and calibration", _accuracy),
    "class": ("Classes", _classes),
    "reliability": ("Reliability", _reliability),
    "attack": ("Attacks", _attacks),
    "corruption": ("Corruptions", _corruptions),
    "perturbation": ("Films of small changes", _films),
    "outside": ("Outside pictures", _outside),
}


def _summary(suite: _Suite, measure: str, words: str, scale: float = 1) -> str:
    told = []
    for model in suite.models:
        row = suite.row(model, None, None, measure)
        if row is not None:
            told.append(f"{short(model, 40)} {row['value'] / scale:.1%}")
    return f" {words[0].upper()}{words[1:]}: {', '.join(told)}." if told else ""


def _told(point: Point) -> str:
    value, low, high = point
    return percent(value) + ("" if low is None or high is None else f" ({percent(low)} to {percent(high)})")


def _shown(title: str, plot: Plot, names: Sequence[str], series: Mapping[str, Sequence[Point | None]]) -> str:
    rows = []
    for i, name in enumerate(names):
        for model, points in series.items():
            point = points[i]
            if point is not None:
                rows.append({"figure": name, "model": model, "value": point[0], "from": point[1], "to": point[2]})
    return f"{figure(title, plot)}\n{_table(rows)}"


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th><button>{escape(name)}</button></th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>\n" for row in rows)
    return (
        "<details><summary>The figures</summary><div class=scroll><table>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div></details>"
    )


def _cell(value: object) -> str:
    if isinstance(value, str):
        return f"<td>{escape(short(value, 120))}</td>"
    if value is None:
        return "<td data-n>-</td>"
    shown = f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
    return f'<td data-n="{value}">{shown}</td>'
