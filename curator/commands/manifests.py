"""Commands that select training rows and look at what was selected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator import progress
from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.errors import plural
from curator.reports import render

if TYPE_CHECKING:
    from curator.curation.checks import Verdict
    from curator.curation.manifests import Manifest
    from curator.storage.store import Store


@app.command("build-manifest")
def build_manifest(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Name.", show_default="g<generation>-<per-class>")] = None,
    per_class: Annotated[int | None, typer.Option(help="Quota: rows, counted with copies, of each class.")] = None,
    generation: Annotated[
        int | None, typer.Option(help="Generation.", show_default="the newest", autocompletion=completion.generations)
    ] = None,
    min_confidence: Annotated[float, typer.Option(help="Only images with a confidence above this.")] = 0.3,
    policy: Annotated[
        str,
        typer.Option(help="Selection rule: a name, or an .sql file of your own.", autocompletion=completion.policies),
    ] = "top",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of the policy.", metavar="NAME=VALUE")
    ] = None,
    targets: Annotated[str, typer.Option(help="soft, hard, or auto (hard from --hard-from on).")] = "soft",
    hard_from: Annotated[float, typer.Option(help="Lowest confidence of a hard target with --targets auto.")] = 0.6,
    temperature: Annotated[float, typer.Option(help="T of p^(1/T), applied when soft labels are read.")] = 1.0,
    fill: Annotated[str, typer.Option(help="copies (short classes are filled up) or none.")] = "copies",
    max_copies: Annotated[int | None, typer.Option(help="Most copies of one image.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL expression over labels and images.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of policies that draw.")] = 0,
    dedup: Annotated[
        bool, typer.Option("--dedup/--no-dedup", help="Keep one of images that repeat each other.")
    ] = False,
    accepted: Annotated[
        bool,
        typer.Option(
            "--accepted/--no-accepted", help="Take what reviewers accepted or relabeled first, at any confidence."
        ),
    ] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated/--no-calibrated", help="Compare calibrated confidences with --min-confidence.")
    ] = False,
    near_leaks: Annotated[str, typer.Option(help="drop or keep what a scan found near the holdout.")] = "drop",
    as_of: Annotated[
        str | None,
        typer.Option(
            help="Read the table versions and options of this manifest.",
            metavar="MANIFEST",
            autocompletion=completion.manifests,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1, write nothing if a class falls short.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be selected; write nothing.")] = False,
    engine: Annotated[str, typer.Option(help="duckdb or spark; the rows are the same.")] = "duckdb",
    master: Annotated[
        str | None, typer.Option(help="Where Spark runs, e.g. spark://host:7077.", show_default="local[*]")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also print every class and the SQL.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Selects confident images, balances the classes and writes a manifest.

    Example: curator build-manifest --per-class 130000
    """
    from curator.curation import building
    from curator.loading import records
    from curator.storage.store import Store

    options: dict[str, Any] = {
        "generation": generation, "per_class": per_class, "min_confidence": min_confidence, "policy": policy,
        "targets": targets, "temperature": temperature, "fill": fill, "max_copies": max_copies, "where": where,
        "seed": seed, "hard_from": hard_from, "settings": _settings(settings or []), "dedup": dedup,
        "accepted": accepted, "calibrated": calibrated, "near_leaks": near_leaks,
    }  # fmt: skip
    # What the user did not say is left to the library, which may take it from --as-of.
    defaults = (None, "DEFAULT")
    said = {k: v for k, v in options.items() if getattr(context.get_parameter_source(k), "name", None) not in defaults}
    there = Store(store)
    where_to = _master(engine, master)
    built = building.build(there, name, said, as_of=as_of, strict=strict, dry_run=dry_run, master=where_to)
    if not dry_run:  # now, so that a training begins at once
        records.lay_out(there, built, None)
    targets = built.lineage["parameters"]["targets"]
    if "hard_from" in said and targets != "auto":
        progress.say(f"with --targets {targets} no row depends on --hard-from; it is for --targets auto")
    document = _document(built) | ({"lineage": built.lineage} if explain else {})
    text = f"would build: {_summary(built)}" if dry_run else _summary(built)
    render.answer(document, json, "\n\n".join([text, _class_table(built), built.lineage["sql"]]) if explain else text)


@app.command("manifests")
def list_manifests(store: StoreOption = DEFAULT_STORE, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Lists the manifests of the store.

    Example: curator manifests
    """
    from curator.curation import manifests
    from curator.storage.store import Store

    rows = manifests.published(Store(store))
    text = render.table(rows) if rows else "no manifests yet; make one with: curator build-manifest --per-class K"
    render.answer({"manifests": rows}, json, text)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the manifest.", autocompletion=completion.manifests)],
    image_id: Annotated[
        int | None, typer.Option(help="Say of one image why it is in or out.", min=0, max=2**63 - 1)
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Shows what a manifest holds and how it was made; or why one image is in it, or is not.

    Example: curator show g0-130000
    """
    from curator.curation import account, manifests
    from curator.storage.store import Store

    if image_id is not None:
        _explain(Store(store), name, image_id, json)
        return
    found = manifests.find(Store(store), name)
    lineage = found.lineage
    parts = [
        _summary(found),
        render.fields(account.options(found)),
        render.fields(
            {"teacher": lineage["model"]["model"], "weights sha256": lineage["model"]["weights_hash"]}
            | {"table versions": ", ".join(f"{k} {v}" for k, v in lineage["tables"].items())}
            | {"sql sha256": lineage["sql_sha256"], "tool": lineage["tool"]}
            | ({"engine": lineage["engine"]} if "engine" in lineage else {})
        ),
        _class_table(found),
    ]
    render.answer(_document(found) | {"lineage": lineage}, json, "\n\n".join(parts))


@app.command()
def diff(
    before: Annotated[
        str, typer.Argument(help="Name of a manifest.", metavar="A", autocompletion=completion.manifests)
    ],
    after: Annotated[
        str,
        typer.Argument(
            help="Name of the manifest to compare it with.", metavar="B", autocompletion=completion.manifests
        ),
    ],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 if anything differs.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Counts the images that differ between two manifests, by class.

    Example: curator diff g0-130000 g1-130000
    """
    from curator.curation import comparison
    from curator.storage.store import Store

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
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the manifest.", show_default="all of them", autocompletion=completion.manifests),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Checks manifests against their own record and the store as it is now; exits 1 when something is wrong.

    Example: curator check g0-130000
    """
    from curator.curation import manifests
    from curator.errors import AnswerIsNo, some
    from curator.storage.store import Store

    verdicts = manifests.check(Store(store), name)
    text = (
        "\n\n".join(map(_verdict, verdicts)) or "no manifests yet; make one with: curator build-manifest --per-class K"
    )
    render.answer({"manifests": [verdict.document for verdict in verdicts]}, json, text)
    if wrong := [verdict.name for verdict in verdicts if not verdict.ok]:
        raise AnswerIsNo(
            f"{len(wrong)} of {len(verdicts)} {plural(len(verdicts), 'manifest')} "
            f"{plural(len(wrong), 'fails', 'fail')} a check ({some(wrong)})",
            "build under another name from the store as it is now: curator build-manifest NEW --per-class K; "
            "damaged files: restore them, or delete the folder and build the same name with --as-of",
        )


def _explain(store: Store, name: str, image_id: int, json: bool) -> None:
    from curator.curation import explanation

    found = explanation.explain(store, name, image_id)
    text = f"image {image_id} is {'in' if found.is_in else 'not in'} {name}: {found.reason}"
    if facts := {k.replace("_", " "): v for k, v in found.facts.items() if v is not None and k != "image_id"}:
        text += "\n\n" + render.fields(facts)
    document = {"name": name, "image_id": image_id, "in": found.is_in, "reason": found.reason}
    render.answer(document | {k: v for k, v in found.facts.items() if k != "image_id"}, json, text)


def _master(engine: str, master: str | None) -> str | None:
    """Where Spark is to run; None for DuckDB."""
    from curator.errors import InputError

    if engine not in ("duckdb", "spark"):
        raise InputError(f"--engine {engine} is not one of duckdb, spark", "curator build-manifest --help")
    if engine == "duckdb" and master is not None:
        raise InputError("--master says where Spark runs, and the engine is duckdb", "add --engine spark")
    return (master or "local[*]") if engine == "spark" else None


def _settings(given: list[str]) -> dict[str, str]:
    """The NAME=VALUE of each --set."""
    from curator.errors import InputError

    if wrong := [text for text in given if "=" not in text]:
        raise InputError(f"--set {wrong[0]} is not NAME=VALUE", "e.g. --policy threshold --set threshold=0.9")
    return {name.strip(): value.strip() for name, value in (text.split("=", 1) for text in given)}


def _verdict(verdict: Verdict) -> str:
    parts = [f"{verdict.name}: {'ok' if verdict.ok else 'not ok'}, {len(verdict.findings)} checks"]
    for found in verdict.findings:
        if found.offending:
            shown = "" if found.offending == len(found.rows) else f", the first {len(found.rows)}"
            parts.append(render.table(found.rows, title=f"{found.check}: {found.offending} found{shown}"))
    return "\n\n".join(parts)


def _document(manifest: Manifest) -> dict[str, Any]:
    from curator.curation import account

    return {
        "name": manifest.name,
        "path": manifest.uri,
        "generation": manifest.generation,
        "rows": manifest.rows,
        "unique_images": manifest.unique_images,
        "classes": len(manifest.classes) - len(manifest.empty_classes),
        "short_classes": manifest.short_classes,
        "empty_classes": manifest.empty_classes,
        "sha256": manifest.sha256,
        "funnel": manifest.lineage["funnel"],
        "warnings": account.warnings(manifest),
    }


def _summary(manifest: Manifest) -> str:
    from curator.curation import account

    lines = [
        f"{manifest.name}: {manifest.rows} {plural(manifest.rows, 'row')} from {manifest.unique_images} "
        f"{plural(manifest.unique_images, 'image')}, generation {manifest.generation}"
    ]
    if manifest.sha256:
        lines += [f"sha256 {manifest.sha256}", manifest.uri]
    lines += ["", render.fields(dict(account.funnel(manifest)))]
    right, seen = account.precision(manifest)
    if seen:
        low, high = account.wilson(right, seen)
        lines += [
            "",
            f"of {seen} holdout {plural(seen, 'image')} at or above the cut-off of {plural(seen, 'its', 'their')} "
            f"class {right / seen:.1%} are labeled rightly ({low:.1%} to {high:.1%}): an estimate for the kept images",
        ]
    return "\n".join(lines + [f"\n{warning}" for warning in account.warnings(manifest)])


def _class_table(manifest: Manifest) -> str:
    from curator.curation import account

    columns = ["label", "class_name", "candidates", "eligible", "kept", "rows", "most_copies", "cut_off"]
    if account.precision(manifest)[1]:
        columns += ["precision", "low", "high"]
    return render.table(account.classes(manifest), columns)
