"""Commands that select training rows and look at what was selected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator import render
from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app

if TYPE_CHECKING:
    from curator.checks import Verdict
    from curator.manifests import Manifest


@app.command("build-manifest")
def build_manifest(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Name.", show_default="g<generation>-<per-class>")] = None,
    per_class: Annotated[int | None, typer.Option(help="Quota: rows, counted with copies, of each class.")] = None,
    generation: Annotated[int | None, typer.Option(help="Generation.", show_default="the newest")] = None,
    min_confidence: Annotated[float, typer.Option(help="Only images with a confidence above this.")] = 0.3,
    policy: Annotated[str, typer.Option(help="Selection rule, a file of sql/policies.")] = "top",
    targets: Annotated[str, typer.Option(help="soft or hard.")] = "soft",
    temperature: Annotated[float, typer.Option(help="T of p^(1/T), applied when soft labels are read.")] = 1.0,
    fill: Annotated[str, typer.Option(help="copies (short classes are filled up) or none.")] = "copies",
    max_copies: Annotated[int | None, typer.Option(help="Most copies of one image.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL expression over labels and images.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of policies that draw.")] = 0,
    as_of: Annotated[
        str | None,
        typer.Option(help="Read the table versions and options of this manifest.", metavar="MANIFEST"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1, write nothing if a class falls short.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be selected; write nothing.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Also print every class and the SQL.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Selects confident images, balances the classes and writes a manifest.

    Example: curator build-manifest --per-class 130000
    """
    from curator import manifests
    from curator.store import Store

    options: dict[str, Any] = {
        "generation": generation, "per_class": per_class, "min_confidence": min_confidence, "policy": policy,
        "targets": targets, "temperature": temperature, "fill": fill, "max_copies": max_copies, "where": where,
        "seed": seed,
    }  # fmt: skip
    # What the user did not say is left to the library, which may take it from --as-of.
    defaults = (None, "DEFAULT")
    said = {k: v for k, v in options.items() if getattr(context.get_parameter_source(k), "name", None) not in defaults}
    built = manifests.build(Store(store), name, said, as_of=as_of, strict=strict, dry_run=dry_run)
    document = _document(built) | ({"lineage": built.lineage} if explain else {})
    text = f"would build: {_summary(built)}" if dry_run else _summary(built)
    render.answer(document, json, "\n\n".join([text, _class_table(built), built.lineage["sql"]]) if explain else text)


@app.command("manifests")
def list_manifests(store: StoreOption = DEFAULT_STORE, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Lists the manifests of the store.

    Example: curator manifests
    """
    from curator import manifests
    from curator.store import Store

    rows = manifests.published(Store(store))
    text = render.table(rows) if rows else "no manifests yet; make one with: curator build-manifest --per-class K"
    render.answer({"manifests": rows}, json, text)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the manifest.")],
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Shows what a manifest holds and how it was made.

    Example: curator show g0-130000
    """
    from curator import manifests
    from curator.store import Store

    found = manifests.find(Store(store), name)
    lineage = found.lineage
    parts = [
        _summary(found),
        render.fields({k: v for k, v in lineage["parameters"].items() if v is not None}),
        render.fields(
            {"teacher": lineage["model"]["model"], "weights sha256": lineage["model"]["weights_hash"]}
            | {"table versions": ", ".join(f"{k} {v}" for k, v in lineage["tables"].items())}
            | {"sql sha256": lineage["sql_sha256"], "tool": lineage["tool"]}
        ),
        _class_table(found),
    ]
    render.answer(_document(found) | {"lineage": lineage}, json, "\n\n".join(parts))


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="Name of a manifest.", metavar="A")],
    after: Annotated[str, typer.Argument(help="Name of the manifest to compare it with.", metavar="B")],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 if anything differs.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Counts the images that differ between two manifests, by class.

    Example: curator diff g0-130000 g1-130000
    """
    from curator import comparison
    from curator.store import Store

    found = comparison.diff(Store(store), before, after)
    changed = [c for c in found.classes if any(c[name] for name in comparison.COUNTS if name != "same")]
    text = render.fields({name.replace("_", " "): number for name, number in found.totals.items()})
    if changed:
        text += "\n\n" + render.table(changed, title="classes that differ:")
    render.answer(found.totals | {"classes": found.classes}, json, text)
    if exit_code:
        found.expect_none()


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="Name of the manifest.", show_default="all of them")] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Checks manifests against their own record and the store as it is now; exits 1 when something is wrong.

    Example: curator check g0-130000
    """
    from curator import manifests
    from curator.errors import AnswerIsNo, some
    from curator.store import Store

    verdicts = manifests.check(Store(store), name)
    text = (
        "\n\n".join(map(_verdict, verdicts)) or "no manifests yet; make one with: curator build-manifest --per-class K"
    )
    render.answer({"manifests": [verdict.document for verdict in verdicts]}, json, text)
    if wrong := [verdict.name for verdict in verdicts if not verdict.ok]:
        raise AnswerIsNo(
            f"{len(wrong)} of {len(verdicts)} manifests fail a check ({some(wrong)})",
            "build under another name from the store as it is now: curator build-manifest NEW --per-class K; "
            "damaged files: restore them, or delete the folder and build the same name with --as-of",
        )


def _verdict(verdict: Verdict) -> str:
    parts = [f"{verdict.name}: {'ok' if verdict.ok else 'not ok'}, {len(verdict.findings)} checks"]
    for found in verdict.findings:
        if found.offending:
            shown = "" if found.offending == len(found.rows) else f", the first {len(found.rows)}"
            parts.append(render.table(found.rows, title=f"{found.check}: {found.offending} found{shown}"))
    return "\n\n".join(parts)


def _document(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "path": str(manifest.path),
        "generation": manifest.generation,
        "rows": manifest.rows,
        "unique_images": manifest.unique_images,
        "classes": len(manifest.classes) - len(manifest.empty_classes),
        "short_classes": manifest.short_classes,
        "empty_classes": manifest.empty_classes,
        "sha256": manifest.sha256,
        "funnel": manifest.lineage["funnel"],
    }


def _summary(manifest: Manifest) -> str:
    from curator.errors import some

    funnel = manifest.lineage["funnel"]
    lines = [
        f"{manifest.name}: {manifest.rows} rows from {manifest.unique_images} images, generation {manifest.generation}"
    ]
    if manifest.sha256:
        lines += [f"sha256 {manifest.sha256}", str(manifest.path)]
    counts = {
        "pool": funnel["pool"],
        "labeled by the teacher": funnel["labeled"],
        "pass --where": funnel["pass_where"],
        "above the confidence": funnel["above_threshold"],
        "not rejected": funnel["not_rejected"],
        "not in the holdout": funnel["candidates"],
        "within the quota": manifest.unique_images,
        "with copies": manifest.rows,
    }
    lines += ["", render.fields(counts), ""]
    if waiting := funnel["pool"] - funnel["unreadable"] - funnel["labeled"]:
        lines.append(f"{waiting} readable pool images have no label of this generation")
    if unscanned := funnel["not_checked_for_leaks"]:
        lines.append(f"{unscanned} pool images were never scanned, so not checked against the holdout")
    if manifest.short_classes:
        lines.append(f"short of candidates: {len(manifest.short_classes)} classes, {some(manifest.short_classes)}")
    if manifest.empty_classes:
        lines.append(f"without a candidate: {len(manifest.empty_classes)} classes, {some(manifest.empty_classes, 20)}")
    return "\n".join(lines).rstrip()


def _class_table(manifest: Manifest) -> str:
    columns = ["label", "class_name", "candidates", "kept", "rows", "most_copies", "cut_off"]
    return render.table(manifest.classes, columns)
