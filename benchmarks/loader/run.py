"""Images per second of the loader, of others and of the floor; CPU time, memory, small pictures, large manifests.

    pictures.py --> JPEGs, PNGs --peers.py, ours.py--> shards, chunks, stores
    measure.py, a process for each figure, the methods in turn --> rates --> results/loader.md
    memory.py, manifests of up to 10M rows --> memory, seconds to the first batch

    python benchmarks/loader/run.py [--seconds 5] [--runs 3] [--packages DIR] [--work DIR] [--write]

The other loaders and the photographs are installed into a temporary folder unless --packages names one.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import peers
import pictures

from curator.pictures import decode

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "loader.md"
TITLES = {
    "timm_loader": "timm create_loader",
    "image_folder": "ImageFolder, Pillow, DataLoader",
    "torchvision_io": "torchvision.io, v2 transforms, DataLoader",
    "webdataset": "webdataset, Pillow",
    "litdata": "litdata, torchvision.io, v2 transforms",
    "spdl": "SPDL, FFmpeg",
    "ours_wheels": "curator, wheels only",
    "ours": "curator",
    "ours_packed": "curator, packed at 256, quality 90",
    "floor_wheels": "floor, simplejpeg",
    "floor": "floor, crop decoded only",
}
NEEDS_C = ("ours", "floor")
SCALED = ("timm_loader", "ours_wheels", "ours", "floor")
FEW = ("28", "32", "64")
Figures = dict[tuple[str, bool, int], list[dict[str, float]]]  # of method, RandAugment, cores: those of each run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=5, help="timed part of each run")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--pictures", type=int, default=2000)
    options.add_argument("--rows", type=int, default=10_000_000, help="of the large manifest")
    options.add_argument("--packages", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        work = Path(folder).resolve()
        (work / "tmp").mkdir()
        os.environ["TMPDIR"] = str(work / "tmp")  # litdata and killed workers leave files there
        packages = (chosen.packages or installed(work / "packages")).resolve()
        made = prepare(work, packages, chosen.pictures)
        methods = [name for name in TITLES if decode._jpeg is not None or name not in NEEDS_C]
        figures: Figures = defaultdict(list)
        for number in range(chosen.runs):
            for cores, names in ((2, methods), (1, [name for name in SCALED if name in methods])):
                for name in names:
                    for noise in (False, True) if cores == 2 and not name.startswith("floor") else (False,):
                        found = measured(name, work, packages, cores, chosen.seconds, noise)
                        figures[name, noise, cores].append(found)
                        busy = found["rate"] * found["cpu_ms"] / 1000  # less than the cores: others had them
                        what = f"{name}{' with RandAugment' if noise else ''}, {busy:.2f} of {cores} cores"
                        print(f"run {number + 1}: {what}, {found['rate']:.0f} images/s", file=sys.stderr)
            for name in (f"small_{size}_{how}" for size in FEW for how in ("plain", "augmented")):
                found = measured(name, work, packages, 2, chosen.seconds / 3, False)
                figures[name, False, 2].append(found)
        lines = [
            *header(made, methods, chosen.runs, chosen.seconds),
            *throughput(figures, methods),
            *scaling(figures, methods),
            *small(figures, made),
            *memory(work, chosen.rows),
        ]
    text = "\n".join([*lines, ""])
    print(text)
    if chosen.write:
        RESULT.write_text(text)


def installed(packages: Path) -> Path:
    """The folder, with the packages of the other loaders and of the photographs in it."""
    wanted = (*peers.PACKAGES, *pictures.PACKAGES)
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--target", str(packages), *wanted], check=True)
    for library in (packages / "av.libs").glob("lib[as][vw]*-*.so.*"):  # under the names that spdl asks for
        name, _, rest = library.name.partition("-")
        major = rest.partition(".so.")[2].partition(".")[0]
        library.with_name(f"{name}.so.{major}").symlink_to(library.name)
    pictures.download(packages)
    return packages


def prepare(work: Path, packages: Path, count: int) -> dict:
    """Makes the files, and what each loader wants them turned into; returns what the files are."""
    (work / "files").mkdir()
    made = run([HERE / "pictures.py", packages, work / "files", count])
    run([HERE / "peers.py", work, packages])
    run([HERE / "ours.py", work, "jpeg", *(f"png{size}" for size in FEW)])
    return json.loads(made)


def run(command: list) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr}")
    return done.stdout


def measured(name: str, work: Path, packages: Path, cores: int, seconds: float, noise: bool) -> dict[str, float]:
    """What measure.py says of one method."""
    command = [sys.executable, HERE / "measure.py", name, work, "--packages", packages, "--cores", cores]
    command += ["--seconds", seconds, *(["--randaugment"] if noise else [])]
    libraries = {"LD_LIBRARY_PATH": str(packages / "av.libs")} if name == "spdl" else {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | libraries,
            start_new_session=True,
        )
        answer = next((line for line in process.stdout if line.startswith("{")), None)
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers
        if answer is None:
            errors.seek(0)
            sys.exit(f"{name}: {errors.read()}")
    return json.loads(answer)


def header(made: dict, methods: list[str], runs: int, seconds: float) -> list[str]:
    names = ("torch", "torchvision", "timm", "webdataset", "pillow", "simplejpeg")
    others = [package.replace("==", " ") for package in peers.PACKAGES if package.startswith(("spdl==", "litdata"))]
    low, middle, high = made["quality_quartiles"]
    return [
        "# The loader",
        "",
        f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}, "
        f"{', '.join([*(f'{name} {version(name)}' for name in names), *others])}. `make bench-loader`",
        "",
        f"{made['pictures']:,} different JPEGs (4:2:0, baseline) made from {made['photographs']} photographs: random "
        f"windows, flipped or not, mean {made['mean_width']} x {made['mean_height']}, with noise of 6 grey levels, "
        f"which cameras add and resizing takes away. The quality of each is chosen for a drawn size: {low}, {middle}, "
        f"{high} at the quartiles; mean {made['mean_kb']} KB, quartiles "
        f"{', '.join(map(str, made['kb_quartiles']))} KB. In the page cache.",
        "",
        f"Median of {runs} runs of {seconds:g} s after a warm-up, each a process of its own, the methods in turn. "
        f"Workers or threads: one a core. x timm: the median of the ratios within each run. CPU: user and system time, "
        "with all processes. Peak MB: summed over processes, pages that workers share counted in each.",
        *([] if "ours" in methods else ["", "curator._jpeg was not built here: whole pictures are decoded."]),
    ]


def throughput(figures: Figures, methods: list[str]) -> list[str]:
    lines = ["", "## Random resized crop to 224 px and flip, uint8 batches of 64, 2 cores", ""]
    lines += [
        "| loader | images/s (each run) | x timm | CPU ms an image | with RandAugment (each run) | x timm "
        "| CPU ms an image | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in methods:
        cells = []
        for noise in (False, True):
            found = figures[name, noise, 2]
            base = figures["timm_loader", noise, 2]
            if not found:
                cells += ["-"] * 3
                continue
            times = statistics.median(f["rate"] / b["rate"] for f, b in zip(found, base, strict=True))
            cells += [rates(found), f"{times:.2f}", f"{middle(found, 'cpu_ms'):.2f}"]
        peak = max(found["mb"] for found in figures[name, False, 2])
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} | {peak:.0f} |")
    return [
        *lines,
        "",
        "RandAugment: two operations, magnitude 9; timm's rand-m9-inc1 on Pillow's pictures for timm, webdataset and "
        "SPDL, torchvision's for ImageFolder (Pillow) and those that decode to tensors (it applies every operation it "
        "draws, timm and curator each by half). Packed: JPEGs re-encoded once, see docs/packing.md. Floor: bytes in "
        "memory and boxes drawn before, decoding and antialiased resize only, a thread a core.",
    ]


def scaling(figures: Figures, methods: list[str]) -> list[str]:
    lines = ["", "## One core and two", "", "| loader | 1 core (each run) | 2 cores | x |", "|---|---|---|---|"]
    for name in (name for name in SCALED if name in methods):
        one, two = figures[name, False, 1], figures[name, False, 2]
        times = statistics.median(b["rate"] / a["rate"] for a, b in zip(one, two, strict=True))
        lines.append(f"| {TITLES[name]} | {rates(one)} | {middle(two, 'rate'):,.0f} | {times:.2f} |")
    return lines


def small(figures: Figures, made: dict) -> list[str]:
    lines = ["", f"## Small pictures: {made['small']:,} PNGs, kept decoded, batches of 256, 2 cores", ""]
    lines += [
        "| px | as they are, images/s (each run) | CPU us an image | crop, flip, RandAugment (each run) "
        "| CPU us an image |",
        "|---|---|---|---|---|",
    ]
    for size in FEW:
        plain, noisy = (figures[f"small_{size}_{how}", False, 2] for how in ("plain", "augmented"))
        cells = [cell for found in (plain, noisy) for cell in (rates(found), f"{middle(found, 'cpu_ms') * 1000:.0f}")]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return lines


def memory(work: Path, rows: int) -> list[str]:
    """Loads large manifests; the first load of the largest is the one that lays its rows out."""
    lines = ["", "## Manifests of 1000 classes, 20 kept: memory and time to the first batch", ""]
    lines += ["| rows | copies | threads | batches | first batch s | peak MB | before opening MB |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, count, copies, loads in (
        ("many", rows, 1, ((2, 1), (1, 150), (2, 150), (8, 150))),
        ("once", rows // 10, 1, ((2, 1), (2, 150))),
        ("hundred", rows // 10, 100, ((2, 1), (2, 150))),
    ):
        run([HERE / "memory.py", "make", work, name, count, copies])
        for number, (threads, batches) in enumerate(loads):
            print(f"{count} rows x {copies}, {threads} threads", file=sys.stderr)
            found = json.loads(run([HERE / "memory.py", "load", work, name, threads, batches]))
            first = f"{found['first_batch']:.2f}" + ("" if number else ", not laid out")
            cells = (f"{count:,}", copies, threads, batches, first, f"{found['peak']:.0f}", f"{found['before']:.0f}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
        shutil.rmtree(work / "large")
    return [
        *lines,
        "",
        "One process, batches of 64 at 224 px of the pictures above. Before opening: Python with torch loaded. First "
        "batch: from opening the loader. Rows that are not laid out are laid out on disk then; build-manifest does it "
        "at its end.",
    ]


def rates(found: list[dict[str, float]]) -> str:
    each = ", ".join(f"{figure['rate']:.0f}" for figure in found)
    return f"{middle(found, 'rate'):,.0f} ({each})"


def middle(found: list[dict[str, float]], what: str) -> float:
    return statistics.median(each[what] for each in found)


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    main()
