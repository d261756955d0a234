"""The frame of a page that stands alone: its style, its one script, and a policy that forbids everything else.

    title, body -> one HTML document that loads nothing and runs no script but the one below

The policy names that script by its hash, so that foreign text cannot become a script even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from html import escape
from pathlib import Path

from curator.errors import InputError
from curator.reports.plots import Plot

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #22262c; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; } h2 { margin: 2.4rem 0 .5rem; font-size: 1.2rem; }
h3 { margin: 1.4rem 0 .3rem; font-size: 1rem; } p { margin: .4rem 0; }
.key { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.key div { border: 1px solid #d7dbe0; border-radius: 6px; padding: .4rem .9rem; }
.key b { display: block; font-size: 1.25rem; } .key span, figcaption, .quiet { color: #565d68; font-size: .87rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .8rem 0; }
dt { color: #565d68; } dd { margin: 0; overflow-wrap: anywhere; }
.warn { border-left: 4px solid #c2571a; background: #fdf3ec; padding: .5rem 1rem; }
.fine { border-left: 4px solid #3a8a4d; background: #eff7f1; padding: .5rem 1rem; }
.warn p, .fine p { overflow-wrap: anywhere; } figure { margin: 0 0 1.4rem; break-inside: avoid; }
figure svg { width: 100%; height: auto; } figure svg text { font-family: system-ui, sans-serif !important; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; width: 100%; }
th, td { text-align: right; padding: .18rem .6rem; border-bottom: 1px solid #e6e8eb;
  font-variant-numeric: tabular-nums; }
th:nth-child(2), td:nth-child(2) { text-align: left; overflow-wrap: anywhere; min-width: 8rem; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer;
  text-align: inherit; }
th[aria-sort=ascending] button::after { content: " \\2191";
  } th[aria-sort=descending] button::after { content: " \\2193"; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: .8rem .6rem; }
.pictures figure { margin: 0; font-size: .78rem; line-height: 1.3;
  } .pictures figcaption { overflow-wrap: anywhere; }
.pictures img, .broken { width: 96px; height: 96px; object-fit: contain; background: #f1f2f4; display: block; }
.broken { box-sizing: border-box; border: 1px dashed #b3372f; color: #b3372f; padding: .3rem; overflow: hidden; }
.pictures b { color: #22262c; display: block; }
pre { background: #f5f6f7; padding: .8rem; overflow-x: auto; font-size: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media print { body { max-width: none; margin: 0; font-size: 11pt; } th button { pointer-events: none; }
  tr { break-inside: avoid; } }
"""

# Sorts a table by the column whose head was clicked: numbers by data-n, missing ones last, text as a person counts.
_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.firstChild.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") === "descending", at = head.cellIndex;
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = head.closest("table").tBodies[0], sign = up ? 1 : -1;
  const key = row => row.cells[at].dataset.n;
  const compare = (a, b) => key(a) === undefined
    ? sign * a.cells[at].textContent.localeCompare(b.cells[at].textContent, "en", {numeric: true})
    : key(a) === "" || key(b) === "" ? (key(a) === "") - (key(b) === "") : sign * (key(a) - key(b));
  body.append(...[...body.rows].sort(compare));
});
"""


def page(title: str, body: str) -> str:
    """One HTML document.

    Args:
        title: Plain text.
        body: HTML; a table whose heads hold buttons can be sorted by them.
    """
    only = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{only}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
<script>{_SCRIPT}</script>
</body>
</html>
"""


def figure(title: str, plot: Plot) -> str:
    """A plot as HTML, with what it shows in words below it."""
    svg = plot.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return f"<figure>{svg}<figcaption>{escape(plot.words)}</figcaption></figure>"


def check(place: Path, name: str, force: bool) -> None:
    """Whether a page called NAME.html, if nothing else is said, can be written to a file.

    Raises:
        InputError: It is a folder, or it exists and must not be replaced.
    """
    if place.is_dir():
        raise InputError(f"'{place}' is a folder", f"give a file, e.g. --output {place / f'{name}.html'}")
    if place.exists() and not force:
        raise InputError(f"'{place}' exists", "give another --output, or --force to replace it")


def save(html: str, place: Path) -> int:
    """Writes a page; the file is there whole or not at all, its folder is made. Returns its bytes."""
    data = html.encode()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=place.parent) as beside:
        made = Path(beside) / "page.html"
        with made.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        made.replace(place)
    return len(data)
