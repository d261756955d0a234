"""The report of a manifest: one HTML page that a person reads to judge it.

    figures.gather -> head, plots, class table, pictures, lineage -> written beside its place -> renamed

The page stands alone: plots and pictures are inside it. Everything that is not this module's own text is escaped. The
same store gives the same bytes.
"""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curator.curation.account import wilson
from curator.errors import plural
from curator.reports import figures, plots
from curator.reports.figures import Figures, Picture
from curator.reports.page import check, figure, page, save
from curator.reports.plots import Plot, percent, short

if TYPE_CHECKING:
    from curator.storage.store import Store

LISTED = 300  # up to here the table holds every class
_NOTICEABLE = 50  # of each kind, where there are more
_TITLES = {"class_name": "class", "cut_off": "cut-off", "low": "from", "high": "to"}


class Report(NamedTuple):
    """What was written.

    Attributes:
        pictures: Pictures on the page.
        unreadable: Boxes that say why there is none.
    """

    name: str
    path: str
    bytes: int
    pictures: int
    unreadable: int


def write(store: Store, name: str, output: str | Path | None = None, force: bool = False) -> Report:
    """Writes the report of a published manifest.

    Args:
        store: The store.
        name: The manifest.
        output: The file, NAME.html in the current folder if not given; its folder is made where it is missing.
        force: Whether to replace a file that is there.

    Raises:
        InputError: There is no such manifest, its files are missing or damaged, or the output is taken. Nothing was
            written.
    """
    place = Path(output if output is not None else f"{name}.html")
    check(place, name, force)
    found = figures.gather(store, name)
    size = save(html(found), place)
    shown = found.least_confident + found.most_copied
    unreadable = sum(bool(picture.problem) for picture in shown)
    return Report(name, str(place), size, len(shown) - unreadable, unreadable)


def html(found: Figures) -> str:
    """The whole page."""
    parts = [
        _head(found),
        f"<h2>What each rule left</h2>\n{figure('What each rule left', _funnel(found))}",
        f"<h2>Classes</h2>\n{_class_plots(found)}",
        f"<h2>Confidence</h2>\n{figure('Confidence', _confidence(found))}",
        f"<h2>Class table</h2>\n{_class_table(found)}",
        f"<h2>Pictures</h2>\n{_pictures(found)}",
        f"<h2>Lineage</h2>\n{_lineage(found)}",
    ]
    return page(f"{found.manifest.name}: report", "\n".join(parts))


def _head(found: Figures) -> str:
    manifest, lineage = found.manifest, found.manifest.lineage
    key = {
        "rows, with copies": f"{manifest.rows:,}",
        "different images": f"{manifest.unique_images:,}",
        f"of {len(found.classes):,} classes have rows": f"{len(found.classes) - len(found.empty):,}",
        "classes short of the quota": f"{len(found.short):,}",
    }
    if found.seen:
        key["labels right, estimated"] = percent(found.right / found.seen)
    facts = {
        "generation": manifest.generation,
        "teacher": lineage["model"]["model"],
        "policy": lineage["parameters"]["policy"],
        "options (others have their defaults)": ", ".join(
            f"{option} {value}" for option, value in found.options.items()
        ),
        "sha256": manifest.sha256,
        "written by": lineage["tool"],
    }
    if lineage["parameters"].get("policy_sql"):
        facts["policy"] = f"{facts['policy']} (SQL of its own, see the lineage below)"
    versions = "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in lineage["tables"].items())
    warnings = "".join(f"<p>{escape(text)}</p>" for text in found.warnings)
    return "\n".join(
        [
            f"<h1>{escape(manifest.name)}</h1>\n<p class=quiet>A training manifest.</p>",
            f"<div class=key>{''.join(f'<div><b>{v}</b><span>{escape(k)}</span></div>' for k, v in key.items())}</div>",
            f"<div class=warn>{warnings}</div>" if warnings else "<div class=fine><p>No warnings.</p></div>",
            f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>' for k, v in facts.items())}</dl>",
            f"<details><summary>Versions of the tables that were read</summary><dl>{versions}</dl></details>",
        ]
    )


def _funnel(found: Figures) -> Plot:
    pool = found.funnel[0][1]
    counts = [f"{number:,} {name}" for name, number in found.funnel[1:-2]]
    kept, rows = found.manifest.unique_images, found.manifest.rows
    words = (
        f"Of {pool:,} images in the pool: {', '.join(counts)}. Kept are {kept:,} "
        f"({percent(kept / max(pool, 1))}); with their copies they count as {rows:,} rows, "
        f"{rows / kept:.2f} for each image."
    )
    return plots.funnel(found.funnel, words)


def _class_plots(found: Figures) -> str:
    drawn = {
        "Candidates and kept images": _candidates(found),
        "Cut-off confidence": _cut_offs(found),
        "Copies": _copies(found),
    }
    if found.seen:
        drawn["Precision, estimated on the holdout"] = _precision(found)
    return "\n".join(f"<h3>{title}</h3>\n{figure(title, plot)}" for title, plot in drawn.items())


def _candidates(found: Figures) -> Plot:
    classes, quota = found.classes, found.manifest.lineage["parameters"]["per_class"]
    most, least = classes[0], classes[-1]
    empty, lacking = len(found.empty), len(found.short)
    words = (
        f"{most['candidates']:,} {plural(most['candidates'], 'candidate is', 'candidates are')} in the class with the "
        f"most ({short(most['class_name'], 60)}), "
        f"{least['candidates']:,} in the one with the fewest ({short(least['class_name'], 60)}); the median is "
        f"{statistics.median(c['candidates'] for c in classes):,g}. The quota is {quota:,}: "
        f"{len(classes) - empty - lacking:,} of {len(classes):,} classes have as many images to choose from, "
        f"{lacking:,} fewer, {empty:,} none."
    )
    return plots.classes(classes, quota, words)


def _cut_offs(found: Figures) -> Plot:
    cut = [c for c in found.classes if c["cut_off"] is not None]
    low, high = (f(cut, key=lambda c: c["cut_off"]) for f in (min, max))
    words = (
        f"Confidence of the last kept image: {low['cut_off']:.3f} in the class that had to go lowest "
        f"({short(low['class_name'], 60)}), {high['cut_off']:.3f} in the class that stayed highest "
        f"({short(high['class_name'], 60)}), median {statistics.median(c['cut_off'] for c in cut):.3f}."
    )
    return plots.cut_offs(cut, found.manifest.lineage["parameters"]["min_confidence"], words)


def _copies(found: Figures) -> Plot:
    once = sum(row["images"] for row in found.copies if row["copies"] == 1)
    rows, most = found.manifest.rows, found.copies[-1]["copies"]
    words = (
        f"{once:,} {plural(once, 'image counts once and makes', 'images count once and make')} "
        f"{percent(once / rows)} of the rows; the most copied count {most:,} {plural(most, 'time')}. "
        "The shares above the bars are of the rows."
    )
    weights = [row for row in found.copies if row["least_weight"] is not None]
    if any((row["least_weight"], row["most_weight"]) != (1, 1) for row in weights):
        least, top = min(r["least_weight"] for r in weights), max(r["most_weight"] for r in weights)
        mean = sum(r["weight"] for r in weights) / sum(r["copies"] * r["images"] for r in weights)
        words += f" The weight of a row is between {least:.3f} and {top:.3f}, on average {mean:.3f}."
    return plots.copies(found.copies, words)


def _precision(found: Figures) -> Plot:
    told = [c for c in found.classes if c["precision"] is not None]
    rows = told if len(told) <= plots.NAMED else sorted(told, key=lambda c: (c["precision"], c["low"], c["label"]))
    low, high = wilson(found.right, found.seen)
    worst = min(told, key=lambda c: c["high"])
    words = (
        f"Of {found.seen:,} holdout images that the teacher puts into a class at or above its cut-off, {found.right:,} "
        f"({percent(found.right / found.seen)}, 95 % interval {percent(low)} to {percent(high)}) belong there. The "
        f"interval that ends lowest is {percent(worst['low'])} to {percent(worst['high'])}, with "
        f"{worst['holdout_right']:,} right of {worst['holdout_seen']:,} ({short(worst['class_name'], 60)}). "
        f"{len(found.classes) - len(told):,} of {len(found.classes):,} classes have no such image."
    )
    return plots.precision(rows, words)


def _confidence(found: Figures) -> Plot:
    high = plots.STEPS * 9 // 10
    parts = (found.pool, found.images, found.rows)
    pool, images, rows = (percent(int(np.sum(p[high:])) / max(int(np.sum(p)), 1)) for p in parts)
    words = (
        f"A confidence of 0.9 or more have {pool} of the {int(found.pool.sum()):,} labeled pool images, "
        f"{images} of the {int(found.images.sum()):,} kept images, and {rows} of the {int(found.rows.sum()):,} rows."
    )
    return plots.confidence(*parts, found.manifest.lineage["parameters"]["min_confidence"], words)


def _class_table(found: Figures) -> str:
    rows, said = found.classes, f"All {len(found.classes):,} classes."
    if len(rows) > LISTED:
        rows = _noticeable(found)
        told = ", whose precision is the lowest even at the upper end of its interval" if found.seen else ""
        said = (
            f"The {len(rows):,} most noticeable of {len(found.classes):,} classes: up to {_NOTICEABLE} each of those "
            f"with nothing to choose from, with the least below the quota, with the most copies{told}. All of them: "
            f"curator show {found.manifest.name}."
        )
    columns = [c for c in found.classes[0] if found.seen or c not in ("precision", "low", "high")]
    columns = ["label", "class_name", *(c for c in dict.fromkeys(columns) if c not in ("label", "class_name"))]
    head = "".join(f"<th><button>{escape(_TITLES.get(c, c.replace('_', ' ')))}</button></th>" for c in columns)
    body = "".join(f"<tr>{''.join(_cell(row.get(c)) for c in columns)}</tr>\n" for row in rows)
    note = " Precision is estimated on the holdout; from and to bound its 95 % interval." if found.seen else ""
    return (
        f"<p class=quiet>{escape(said)} A click on a head sorts.{note}</p>\n<div class=scroll><table>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>"
    )


def _noticeable(found: Figures) -> list[dict[str, Any]]:
    rows = found.classes
    kinds = [
        found.empty,
        found.short,
        sorted((c for c in rows if c["most_copies"] > 1), key=lambda c: -c["most_copies"]),
        # An estimate from one or two images says little, so the upper end of the interval decides.
        sorted((c for c in rows if c["precision"] is not None), key=lambda c: c["high"]),
    ]
    labels = {c["label"] for kind in kinds for c in kind[:_NOTICEABLE]}
    return [c for c in rows if c["label"] in labels]


def _cell(value: object) -> str:
    if isinstance(value, str):
        return f"<td>{escape(short(value, 200))}</td>"
    if value is None:
        return "<td data-n>-</td>"
    shown = (
        f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else escape(str(value))
    )
    return f'<td data-n="{escape(str(value))}">{shown}</td>'


def _pictures(found: Figures) -> str:
    return "\n".join(
        [
            f"<h3>The {len(found.least_confident)} least confident kept images</h3>",
            _tiles(found.least_confident),
            f"<h3>{len(found.most_copied)} of the most copied images</h3>\n<p class=quiet>A few of each of the "
            f"classes that copy most.</p>\n{_tiles(found.most_copied)}"
            if found.most_copied
            else "<h3>Copies</h3>\n<p>Every kept image counts once.</p>",
        ]
    )


def _tiles(pictures: Sequence[Picture]) -> str:
    return f"<div class=pictures>{''.join(map(_tile, pictures))}</div>"


def _tile(picture: Picture) -> str:
    row = picture.row
    uri = escape(short(row["uri"], 120))
    if picture.problem:
        shown = f"<div class=broken>{escape(short(picture.problem, 120))}</div>"
    else:
        data = base64.b64encode(picture.jpeg).decode()
        shown = f'<img alt="{uri}" src="data:image/jpeg;base64,{data}">'
    count = "once" if row["copies"] == 1 else f"{row['copies']:,} copies"
    facts = [f"{row['confidence']:.3f}, {count}"]
    if row["weight"] is not None and row["weight"] != 1:
        facts.append(f"weight {row['weight']:.3f}")
    if row["source"] == "review":
        facts.append("class given by a reviewer")
    name = escape(short(row["class_name"] or "", 60))
    return f"<figure>{shown}<figcaption><b>{name}</b>{'<br>'.join(facts)}<br>{uri}</figcaption></figure>\n"


def _lineage(found: Figures) -> str:
    lineage = found.manifest.lineage
    rest = json.dumps({k: v for k, v in lineage.items() if k not in ("sql", "classes")}, indent=1, ensure_ascii=False)
    return (
        f"<details><summary>The statement that was run</summary><pre>{escape(lineage['sql'])}</pre></details>\n"
        "<details><summary>Everything else that was recorded, without the classes</summary>"
        f"<pre>{escape(rest)}</pre></details>"
    )
