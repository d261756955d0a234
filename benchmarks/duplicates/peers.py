"""The pairs that imagededup and CleanVision find in a folder, and how many images a second they read.

python benchmarks/duplicates/peers.py METHOD FOLDER     prints {"seconds": s, "pairs": [[path, path], ...]}
"""

from __future__ import annotations

import json
import sys
import time
from itertools import combinations
from pathlib import Path

PACKAGES = ("imagededup==0.3.3.post2", "cleanvision==0.3.7", "pywavelets", "tabulate", "imagehash", "tqdm")


def main() -> None:
    method, folder = sys.argv[1], Path(sys.argv[2])
    seconds, pairs = (cleanvision if method == "cleanvision" else imagededup)(method, folder)
    print(json.dumps({"seconds": seconds, "pairs": pairs}))


def imagededup(method: str, folder: Path) -> tuple[float, list[tuple[str, str]]]:
    from imagededup.methods import DHash, PHash

    name, distance = method.split("-")
    hasher = (PHash if name == "phash" else DHash)(verbose=False)
    began = time.perf_counter()
    encodings = hasher.encode_images(str(folder), recursive=True)
    seconds = time.perf_counter() - began
    found = hasher.find_duplicates(encoding_map=encodings, max_distance_threshold=int(distance))
    return seconds, [(a, b) for a, others in found.items() for b in others if a < b]


def cleanvision(method: str, folder: Path) -> tuple[float, list[tuple[str, str]]]:
    from cleanvision import Imagelab

    began = time.perf_counter()
    lab = Imagelab(data_path=str(folder))
    lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, verbose=False)
    seconds = time.perf_counter() - began
    sets = [*lab.info["near_duplicates"]["sets"], *lab.info["exact_duplicates"]["sets"]]
    names = [[str(Path(file).resolve().relative_to(folder.resolve())) for file in group] for group in sets]
    return seconds, [pair for group in names for pair in combinations(sorted(group), 2)]


if __name__ == "__main__":
    main()
