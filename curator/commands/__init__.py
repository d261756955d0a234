"""The command line: each command parses, calls one function of the library, and renders its answer.

images.py    init, add-images
models.py    train, label, demo
labels.py    import-labels, review, index
manifests.py build-manifest, manifests, show, diff, check
report.py    report
exports.py   export
packs.py     pack
evaluation.py evaluate
recipes.py   recipes
evolve.py    evolve
duplicates.py quality duplicates, quality leaks
issues.py    quality folds, quality issues, quality calibration
disagreement.py quality disagreement, quality queue, quality audit, quality domain
sql.py       sql
doctor.py    doctor
gc.py        gc
pages.py     app
completion.py names that a shell offers on TAB
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import curator
from curator import progress

# The order of the route, in which help, completion and docs/commands.md name the commands.
ROUTE = (
    "init", "add-images", "train", "label", "import-labels", "build-manifest", "manifests", "show", "report", "diff",
    "check", "export", "pack", "evaluate", "recipes", "evolve", "review",
    "quality", "duplicates", "leaks", "folds", "issues", "calibration", "disagreement", "queue", "audit", "domain",
    "sql", "doctor", "gc", "index", "app", "demo",
)  # fmt: skip


class _InOrder(TyperGroup):
    """Names its commands in the order of ROUTE, whatever the order in which they were imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=ROUTE.index)


app = typer.Typer(
    name="curator",
    cls=_InOrder,
    help="Stores, selects, balances and audits the data of Noisy Student self-training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


quality = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    help="Data quality: duplicates, leaks, wrong labels, calibration, drift.\n\nExample: curator quality leaks",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(quality, name="quality")


def _show_progress(quiet: bool) -> bool:
    progress.show(not quiet)
    return quiet


def _version(asked: bool) -> None:
    if asked:
        print(f"curator {curator.__version__}")
        raise typer.Exit


@app.callback()
def every(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Stores, selects, balances and audits the data of Noisy Student self-training."""


StoreOption = Annotated[
    str, typer.Option("--store", envvar="CURATOR_STORE", help="Folder of the store, or its URL in a bucket.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no messages.", callback=_show_progress)]
DEFAULT_STORE = "store"
