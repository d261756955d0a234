"""What a store in a bucket costs: requests and seconds of each command, 30 ms away, beside the same store in a folder.

The bucket is a server on this machine that answers each request 30 ms late; it is written in Python and takes a few
milliseconds of a core for each, so that the seconds are those of a slow bucket on a busy machine. `make bench-bucket`
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
SERVER = HERE.parent / "tests" / "bucket_server.py"
RESULTS = HERE / "results" / "bucket.md"
LATE_S = 0.03
COMMANDS = (
    "init",
    "add-images {base}/photos/labeled --split labeled",
    "add-images {base}/photos/holdout --split holdout",
    "add-images {base}/photos/pool --split unlabeled",
    "train --recipe tiny-teacher --name teacher --set schedule.steps=100 --set schedule.warmup_steps=10",
    "label --model teacher",
    "build-manifest m --per-class {per_class} --min-confidence 0.1",
    "train --recipe tiny-student --manifest m --name student --set schedule.steps=100 --set schedule.warmup_steps=10",
    "train --recipe tiny-student --manifest m --name again --set schedule.steps=100 --set schedule.warmup_steps=10",
    "sql select+count(*)+from+images",
    "sql select+label,+count(*)+from+labels+group+by+all",
    "show m",
)


def main() -> None:
    """Runs the commands and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000, help="pictures of the pool")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(HERE.parent)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = measure(Path(folder), options.pictures)
    print(text)
    if options.write:
        RESULTS.write_text(text, "utf-8")


def measure(folder: Path, pictures: int) -> str:
    """The table, as Markdown."""
    make_pictures(folder / "photos", pictures)
    log = folder / "requests"
    server = subprocess.Popen([sys.executable, SERVER, log], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true", "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip
        os.environ.update(environment)
        upload(folder / "photos", address)
        late = [
            {"method": method, "match": "", "kind": "slow", "times": 10**9, "seconds": LATE_S} for method in METHODS
        ]
        request = urllib.request.Request(f"{address}/_faults", json.dumps(late).encode(), method="POST")
        urllib.request.urlopen(request).close()
        rows = []
        for command in COMMANDS:
            before = count(log)
            there = run(command, "s3://bench/w", pictures, environment)
            asked = sum((count(log) - before).values())
            here = run(command, str(folder), pictures, environment)
            shown = command.format(base="...", per_class=pictures // 10).replace("+", " ").partition(" --set")[0]
            rows.append(f"| `{shown}` | {here:.1f} | {there:.1f} | {asked} |")
        # on another machine, which has kept nothing yet
        shutil.rmtree(folder / "cache")
        for command in COMMANDS[-3:]:
            before = count(log)
            there = run(command, "s3://bench/w", pictures, environment)
            shown = command.replace("+", " ")
            rows.append(f"| `{shown}`, nothing kept | | {there:.1f} | {sum((count(log) - before).values())} |")
    finally:
        server.kill()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    head = (
        "# A store in a bucket\n\n"
        f"{dt.date.today()}, {os.cpu_count()} cores, {memory:.0f} GiB. {pictures} pictures of 64 px in the pool, 300 "
        f"labeled, 300 held out; each request is answered {LATE_S * 1000:.0f} ms late. Each command once, in the order "
        "of the table; what one reads is kept for the next. `make bench-bucket`\n\n"
        "| command | in a folder, s | in a bucket, s | requests |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


METHODS = ("GET", "PUT", "HEAD", "POST", "DELETE")


def count(log: Path) -> Counter[str]:
    """Requests so far, by their method."""
    lines = log.read_text("utf-8").split("\n")[:-1]
    return Counter(json.loads(line)[0] for line in lines)


def run(command: str, base: str, pictures: int, environment: dict[str, str]) -> float:
    """Runs a command of the tool; its seconds."""
    words = [word.format(base=base, per_class=pictures // 10).replace("+", " ") for word in command.split()]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "curator", *words, "--store", f"{base}/store"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"curator {' '.join(words)}: {done.stderr}")
    return time.perf_counter() - began


def make_pictures(folder: Path, pool: int) -> None:
    """Pictures of ten classes, by their colour."""
    rng = np.random.default_rng(0)
    for split, number in (("labeled", 300), ("holdout", 300), ("pool", pool)):
        for i in range(number):
            label = i % 10
            place = folder / split / f"class-{label}" if split != "pool" else folder / split
            place.mkdir(parents=True, exist_ok=True)
            picture = rng.normal(np.linspace(40, 215, 10)[label], 40, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(place / f"{i:06}.jpg"), picture)


def upload(folder: Path, address: str) -> None:
    """Copies the pictures into the bucket."""
    import boto3

    from curator.storage.bucket import Bucket

    boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="bench")
    place = Bucket("s3://bench/w/photos")
    for file in sorted(folder.rglob("*.jpg")):
        place.put(file.relative_to(folder).as_posix(), file)


if __name__ == "__main__":
    main()
