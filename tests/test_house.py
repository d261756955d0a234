"""Rules of the house: which module may import which, and what a start of the command line may load."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "curator"

# Every module by its folder, from the foundation upward. A module may import those before it and no other, inside
# functions too, so that folders and the steps of the method form one route: each reads only what earlier steps wrote. A
# new module goes in behind all that it imports.
ORDER = {
    "": "errors lock schema digests progress queries names draws configuration ranks signals",
    "storage": "cache bucket blocks roots place prefix delta store additions commit_log",
    "pictures": "commits decode reading listings sources images thumbnails",
    "repeats": "neighbors likeness confirmation duplicates",
    "generations": "softlabels histogram derived drift browse publication label_file labels held_out",
    "decisions": "reviews session",
    "curation": (
        "usersql policies parameters quota selection translation spark checks manifests building account "
        "explanation comparison"
    ),
    "quality": "issues calibration reliability gallery disagreement worklist audit domain",
    "upkeep": "table_files integrity mending leftovers",
    "reports": "plots figures page report render",
    "noise": "noises blurs weather digital corruptions perturbations randaugment augment mixing",
    "delivery": "samples exports shards packs packing",
    "networks": "contradictions recipes checkpoints network engines inference",
    "loading": "records rows batches loader timm_reader",
    "measures": (
        "bootstrap outside evaluations evaluation_plots evaluation_report evaluation estimates attacks "
        "trial robustness contact_sheet"
    ),
    "runs": "phases losses optimization steps journal watch assignment estimate training folds",
    "teachers": "labeling embedding",
    "rounds": "objections plans evolution demo",
    "serving": "sandbox sandboxed situation server",
    "commands": (
        "completion images labels manifests doctor gc report exports packs recipes models evaluation "
        "evolve duplicates issues disagreement sql pages"
    ),
    "top": "cli __main__",
}
MODULES = [
    "__init__",
    *(
        f"{folder}.{module}" if folder not in ("", "top") else module
        for folder, inside in ORDER.items()
        for module in (["", *inside.split()] if folder not in ("", "top") else inside.split())
    ),
]
MODULES = [module.removesuffix(".") for module in MODULES]  # a folder itself, its __init__, comes before what is in it

# The modules that may import torch and timm when they are loaded. The others, the whole selection path among
# them, work where torch is not installed: they import these only inside the functions that need them.
TORCH = {
    "ranks",
    "noise.augment",
    "noise.mixing",
    "networks.checkpoints",
    "networks.network",
    "networks.engines",
    "networks.inference",
    "loading.batches",
    "loading.loader",
    "loading.timm_reader",
    "measures.evaluation",
    "measures.estimates",
    "measures.attacks",
    "measures.trial",
    "measures.robustness",
    "measures.contact_sheet",
    "runs.phases",
    "runs.losses",
    "runs.optimization",
    "runs.steps",
    "runs.watch",
    "runs.assignment",
    "runs.estimate",
    "runs.training",
    "runs.folds",
    "teachers.labeling",
    "teachers.embedding",
    "rounds.evolution",
    "rounds.demo",
}

# Folders that are packages only so that the wheel carries their files; they hold no code.
DATA = {"sql", "models"}

# What a call for help must not load, because each costs a good part of a second.
HEAVY = {"torch", "timm", "cv2", "pyarrow", "duckdb", "deltalake", "matplotlib"}


def modules() -> dict[str, ast.Module]:
    """The parsed modules of the package, by dotted name inside it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    assert found, f"no modules in {PACKAGE}"
    return found


def anywhere(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, inside functions too."""
    return ast.walk(tree)


def at_load(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: none in a function or under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from at_load(other)
            continue
        yield child
        yield from at_load(child)


def imported(nodes: Iterator[ast.AST], name: str, known: set[str]) -> set[tuple[str, int]]:
    """The modules that import statements name, each with its line; those of the package as `curator.NAME`.

    `from curator.FOLDER import NAME` is the module NAME where there is one, else a name of the folder's `__init__`.
    """
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = f"curator.{name}".split(".")[: -node.level]
                base = ".".join([*above, *([node.module] if node.module else [])])
            named = [f"{base}.{alias.name}" for alias in node.names]
            dotted = [each if base == "curator" or each.removeprefix("curator.") in known else base for each in named]
        else:
            continue
        for target in dotted:
            top, _, rest = target.partition(".")
            if top == "curator":
                inside = rest if rest in known or "." in rest else "__init__"
                target = f"curator.{inside}"
            found.add((target, node.lineno))
    return found


def test_import_direction() -> None:
    trees = modules()
    unplaced = sorted(trees.keys() - set(MODULES))
    assert not unplaced, f"place {', '.join(unplaced)} in ORDER of {__file__}, below all that it imports"
    assert len(MODULES) == len(set(MODULES)), "a module stands in ORDER twice"
    gone = sorted(set(MODULES) - trees.keys())
    assert not gone, f"take {', '.join(gone)} out of ORDER of {__file__}: there is no such module"
    place = {name: rank for rank, name in enumerate(MODULES)}
    wrong = []
    for name, tree in trees.items():
        for target, line in sorted(imported(anywhere(tree), name, set(MODULES) | DATA)):
            inside = target.removeprefix("curator.")
            if target == inside or inside in DATA:
                continue
            if inside not in place:
                wrong.append(f"curator.{name}, line {line}: curator.{inside} is not in ORDER")
            elif place[inside] >= place[name]:
                wrong.append(f"curator.{name}, line {line}: imports {inside}, which comes after {name}")
    assert not wrong, "\n".join(wrong)


def test_torch_stays_in_its_modules() -> None:
    assert set(MODULES) >= TORCH
    wrong = []
    for name, tree in modules().items():
        if name in TORCH:
            continue
        for target, line in sorted(imported(at_load(tree), name, set(MODULES) | DATA)):
            top, inside = target.split(".")[0], target.removeprefix("curator.")
            if top in ("torch", "torchvision", "timm") or inside in TORCH:
                wrong.append(f"curator.{name}, line {line}: import {target} inside the function that needs it")
    assert not wrong, "\n".join(wrong)


def test_help_loads_nothing_heavy() -> None:
    code = """
import json, sys
from curator.cli import main
sys.argv = ["curator", "build-manifest", "--help"]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
print(json.dumps([code or 0, sorted(sys.modules)]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    code, loaded = json.loads(done.stderr)
    assert code == 0
    assert "--per-class" in done.stdout
    assert not HEAVY & set(loaded)
