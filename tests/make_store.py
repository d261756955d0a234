"""Makes the store that later releases have to read: tests/fixtures/store-FORMAT, some 300 kB.

    shapes of three classes --every step of the route, two generations--> store-2/{labeled,pool,holdout,tars,store}

Run it once for each format, by the release that brings it: python tests/make_store.py. It does not touch a store that
is there, because what counts is what the release of its time wrote.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pictures import CLASSES, RECIPE, folders, picture, write

from curator import cli
from curator.storage.store import FORMAT

FIXTURES = Path(__file__).resolve().parent / "fixtures"
# A network of tests/pictures.py, whose weights take 2 kB.
OWN = RECIPE.replace('architecture = "test_resnet"', 'architecture = "pictures:Slow"')


def main() -> None:
    """Makes the store in a folder of its own and moves it to its place when it is whole."""
    target = FIXTURES / f"store-{FORMAT}"
    if target.exists():
        sys.exit(f"{target} is there already, and is kept as the release that wrote it left it")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / target.name
        pictures(root)
        os.chdir(root)
        route()
        (root / "held-out.parquet").unlink()
        shutil.rmtree(root / "store" / "rows")  # is made again by who needs it
        shutil.copytree(root, target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.name}: {size / 1000:.0f} kB")


def pictures(root: Path) -> None:
    """The pictures: of each class 2 labeled, 2 of the holdout, 3 of the pool; one repeats, one shows the holdout."""
    folders(root, labeled=2, pool=2, holdout=2)
    (root / "recipe.toml").write_text(OWN, "utf-8")
    shutil.copyfile(root / "pool" / "0001.png", root / "pool" / "again.png")
    shutil.copyfile(root / "holdout" / "disc" / "1.png", root / "pool" / "leak.png")
    (root / "tars").mkdir()
    with tarfile.open(root / "tars" / "000.tar", "w") as tar:
        for label, name in enumerate(CLASSES):
            tar.add(write(root / f"{name}.png", picture(label, 3000)), f"{name}.png")
            (root / f"{name}.png").unlink()


def route() -> None:
    """Every step, through the commands, with decisions of each kind."""
    run("init")
    run("add-images", "labeled", "--split", "labeled", "--labels", "folder")
    run("add-images", "holdout", "--split", "holdout", "--labels", "folder")
    run("add-images", "pool", "--split", "unlabeled")
    run("add-images", "tars/*.tar", "--split", "unlabeled")
    run("quality", "duplicates")
    run("train", "--recipe", "recipe.toml", "--name", "teacher", "--set", "schedule.steps=6")
    run("label", "--model", "teacher", "--embeddings")
    decide({"pool/0000.png": "accept,", "pool/0004.png": "reject,", "pool/0005.png": "relabel,bar"})
    run("build-manifest", "g0", "--per-class", "5", "--min-confidence", "0.1")
    run("train", "--recipe", "recipe.toml", "--name", "student", "--manifest", "g0")
    run("label", "--model", "student")
    run("quality", "calibration")
    run("evaluate", "--model", "student")
    decide({"pool/0004.png": "skip,", "tars/000.tar::disc.png": "accept,"})
    run("build-manifest", "g1", "--per-class", "4", "--min-confidence", "0.2", "--policy", "threshold", "--dedup",
        "--set", "threshold=0.3", "--targets", "hard")  # fmt: skip
    run("pack", "g1", "--size", "16")
    run("quality", "audit", "--per-class", "5", "--min-confidence", "0")
    uris = [f"labeled/{name}/{number}.png" for name in CLASSES for number in range(2)]
    given = [[0.8 if label == own else 0.1 for label in range(3)] for own in (0, 0, 1, 0, 2, 2)]
    column = pa.array(given, pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris, "probs": column}), "held-out.parquet")
    run("quality", "folds", "--from", "held-out.parquet", "--name", "outside")


def decide(decisions: dict[str, str]) -> None:
    """Takes decisions in: uri -> decision and class."""
    lines = ["uri,decision,new_label,reason", *(f"{uri},{said},seen" for uri, said in decisions.items())]
    Path("decisions.csv").write_text("\n".join(lines) + "\n", "utf-8")
    run("review", "--from", "decisions.csv", "--reviewer", "anna")
    Path("decisions.csv").unlink()


def run(*arguments: str) -> None:
    """Runs one command, which has to succeed."""
    code = cli.run([*arguments, "--quiet"])
    if code:
        sys.exit(f"curator {' '.join(arguments)} exits with {code}")


if __name__ == "__main__":
    main()
