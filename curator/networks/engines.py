"""Engines: what computes a network's logits when it only labels, and the proof that another gives the same answers.

    auto ---> torch, timed on the first batch --- little work, or a GPU ----------------> torch
                           | long work on a CPU                                              ^
    onnxruntime -> the network exported to ONNX -> as torch, on the first batch? -- no ------+ (by name: an error)
                                                           | yes, and faster
                                                           +-----------------------> onnxruntime

Left out, by measurement: torch.compile, which is slower than ONNX Runtime and takes longer to prepare, and bfloat16 on
the CPU, which is slower too and gives other probabilities; see docs/labeling.md.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from curator import progress
from curator.errors import CuratorError, InputError, suggestion
from curator.networks.network import Network, leave_a_core

NAMES = ("auto", "torch", "onnxruntime")

# How far another engine's probabilities may be from torch's in float32. The table of labels rounds them by up to
# 2.4e-4, so what the engine changes is less than what is lost anyway. ONNX Runtime's differ by a fiftieth of this,
# those of bfloat16 by several hundred times as much.
TOLERANCE = 1e-4

# Work that torch does sooner is left to it: an export takes 5 to 20 s.
_TRIAL_SECONDS = 60.0

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Engine(Protocol):
    """Computes a network's answers.

    Attributes:
        at_once: Batches that are computed at the same time, each by a thread that calls.
    """

    name: str
    at_once: int

    def __call__(self, images: Pixels) -> Floats:
        """Logits float32 [B, C] of images uint8 [B, H, W, 3], for any B."""


class Torch:
    """The network itself, in float32, where it lies; what the other engines are measured by.

    Args:
        network: In eval mode.
    """

    name, at_once = "torch", 1

    def __init__(self, network: Network) -> None:
        self._network = network
        self.device = network.scale.device

    def __call__(self, images: Pixels) -> Floats:
        """Logits float32 [B, C] of images uint8 [B, H, W, 3]."""
        with torch.inference_mode():
            logits: Floats = self._network(torch.from_numpy(images).to(self.device)).float().cpu().numpy()
        return logits


class OnnxRuntime:
    """The network in ONNX Runtime on the CPU, exported with its normalisation.

    It computes on all cores of this process, while other threads decode: its threads sleep when they wait, unlike
    torch's, so decoding takes from them only what it needs. Two batches at once, because within a batch all threads
    wait for the slowest at each layer, which is the one that shares its core with decoding.

    Args:
        network: In eval mode, on the CPU.
        size: Side of the pictures in pixels.

    Raises:
        CuratorError: ONNX Runtime or the exporter is not installed, or the network cannot be exported.
    """

    name, at_once = "onnxruntime", 2

    def __init__(self, network: Network, size: int) -> None:
        try:
            runtime: Any = importlib.import_module("onnxruntime")
            importlib.import_module("onnxscript")
        except ImportError as error:
            raise CuratorError(f"ONNX Runtime is not installed ({error})", "pip install 'curator[onnx]'") from None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = max(1, cores() - 1)  # one for each core, with the second caller's
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; the others are about the making of the graph
        try:
            with tempfile.TemporaryDirectory(prefix="curator-onnx-") as folder:
                path = _export(network, size, Path(folder))
                self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # torch and ONNX Runtime raise whatever the network trips
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CuratorError(f"ONNX Runtime cannot take this network ({told})", "--engine torch") from error

    def __call__(self, images: Pixels) -> Floats:
        """Logits float32 [B, C] of images uint8 [B, H, W, 3]."""
        logits: Floats = self._session.run(None, {"images": images})[0]
        return logits


def _export(network: Network, size: int, folder: Path) -> Path:
    """Writes the network as ONNX, for any number of pictures."""
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # of one, the exporter would take the number as fixed
    path = folder / "network.onnx"
    with warnings.catch_warnings():  # the exporter's own affairs
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=["images"],
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=True)  # one file alone could not hold more than 2 GB
    return path


def cores() -> int:
    """The cores of this process: those of the machine, shared by the ranks on it."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_memory() -> None:
    """Lets the process keep the memory of its batches.

    glibc gives large blocks back to the system when they are freed, so that the next batch pays a page fault for each
    4 KB again: a third of the time of a small network. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes: the most that glibc takes
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD, bytes


def check(wanted: str) -> None:
    """Whether there is an engine of that name.

    Raises:
        InputError: There is none.
    """
    if wanted not in NAMES:
        raise InputError(f"the engine '{wanted}' is unknown{suggestion(wanted, NAMES)}", ", ".join(NAMES))


def choose(wanted: str, network: Network, images: Pixels | None, work: int) -> Engine:
    """The engine to label with.

    Args:
        wanted: One of NAMES. "auto" takes the fastest that agrees with torch.
        network: In eval mode.
        images: The first batch, uint8 [B, H, W, 3]; None where torch is wanted.
        work: Images to label.

    Raises:
        CuratorError: An engine was asked for by name and is not installed, cannot take the network, or does not give
            torch's answers.
    """
    reference = Torch(network)
    automatic, on_cpu = wanted == "auto", reference.device.type == "cpu"
    if wanted == "torch" or (automatic and not on_cpu):
        return reference
    if not on_cpu:
        raise InputError(f"ONNX Runtime computes on the CPU, and the device is {reference.device}", "--device cpu")
    if images is None or not len(images):
        if automatic:
            return reference
        raise InputError("no image of the first batch can be read, so that nothing is proven", "--engine torch")
    seconds = _seconds(reference, images) if automatic else float("inf")
    if automatic and seconds * work / len(images) < _TRIAL_SECONDS:
        return reference
    try:
        other = OnnxRuntime(network, images.shape[1])
        apart = difference(reference(images), other(images))
        if not apart <= TOLERANCE:  # NaN is no agreement
            what = f"ONNX Runtime's probabilities differ from torch's by up to {apart:.2g}, more than {TOLERANCE:g}"
            raise CuratorError(what, "--engine torch")
    except CuratorError as error:
        if not automatic:
            raise
        hint = f" ({error.mend})" if error.mend.startswith("pip") else ""
        progress.say(f"labeling with torch: {error.what}{hint}")
        return reference
    agree = f"its probabilities are within {apart:.1g} of torch's"
    if not automatic:
        progress.say(f"labeling with ONNX Runtime: {agree}")
        return other
    rates = [len(images) / each for each in (_seconds(other, images), seconds)]
    if rates[0] <= rates[1]:
        progress.say(f"labeling with torch: {rates[1]:.0f} images/s against {rates[0]:.0f} of ONNX Runtime")
        return reference
    progress.say(f"labeling with ONNX Runtime: {rates[0]:.0f} images/s against {rates[1]:.0f} of torch, {agree}")
    return other


def probabilities(logits: Floats) -> Floats:
    """Softmax [N, C] in float64, rounded once: the stored sum must be 1 within 1e-3 at any number of classes."""
    found: Floats = torch.softmax(torch.from_numpy(logits).double(), dim=1).float().numpy()
    return found


def difference(reference: Floats, logits: Floats) -> float:
    """The largest difference of any probability; NaN where there is one among them."""
    return float(np.abs(probabilities(reference) - probabilities(logits)).max())


def _seconds(engine: Engine, images: Pixels) -> float:
    """Time of a batch, computed as in `predict`. Of two: at the first, memory is found and weights are laid out."""
    batches = [images] * engine.at_once
    with ThreadPoolExecutor(engine.at_once, "engine", leave_a_core) as pool:
        list(pool.map(engine, batches))
        began = time.perf_counter()
        list(pool.map(engine, batches))
    return (time.perf_counter() - began) / engine.at_once
