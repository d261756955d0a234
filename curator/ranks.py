"""The processes of a run: one by itself, or as many as torchrun started, each on a device of its own.

    RANK, WORLD_SIZE, LOCAL_RANK (set by torchrun) -> process group (nccl on GPUs, gloo on CPUs) -> Ranks

Tensors go through that group. What the ranks tell each other, and where they wait, goes over gloo on GPUs too.

A run by itself is rank 0 of 1, so that what follows needs no second way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import distributed

from curator.errors import CuratorError, InputError

# The longest that a rank waits for what the others say. torch's own 30 minutes, 10 on GPUs, would end a labeling in
# which one host is slower than another, or the first rank has many parts to publish. One that died is noticed at once.
PATIENCE = timedelta(days=7)


class Ranks(NamedTuple):
    """This process among those of the run.

    Attributes:
        rank: Its number.
        world: How many there are.
        device: Where it computes.
        group: The process group of what they tell each other; None where there is but one.
    """

    rank: int
    world: int
    device: torch.device
    group: distributed.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all ranks have come here."""
        if self.world > 1:
            with _together():
                distributed.barrier(self.group)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, for each of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with _together():
            distributed.all_gather_object(values, value, self.group)
        return values


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        again = "run the same command again (train: with --resume); it goes on"
        raise CuratorError("another process of the run ended", again) from error


def device_of(wanted: str = "auto") -> torch.device:
    """A device by name; "auto" is the GPU of this rank where there is one, and the CPU otherwise.

    Raises:
        InputError: There is no such device here.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.zeros(1, device=device)
    # What torch raises for an unknown name, a build without CUDA, and a device that this build cannot compute on.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"the device '{wanted}' cannot be used ({why})", "--device cpu") from None
    return device


@contextmanager
def join(device: str = "auto") -> Iterator[Ranks]:
    """Joins the ranks of this run, for as long as the context lasts.

    Args:
        device: Name of the device, or "auto".

    Raises:
        InputError: The device cannot be used.
        CuratorError: The ranks do not reach each other.
    """
    found = device_of(device)
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world == 1:
        yield Ranks(0, 1, found)
        return
    if distributed.is_initialized():  # inside a longer run, as that of a whole plan
        yield Ranks(rank, world, found, _talk())
        return
    if found.type == "cuda":
        torch.cuda.set_device(found)
    try:
        with _without_answer():
            distributed.init_process_group("nccl" if found.type == "cuda" else "gloo")
            group = _talk()
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        mend = "on several hosts GLOO_SOCKET_IFNAME names the network that joins them; torchrun --max-restarts needs "
        mend += "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        raise CuratorError(f"the processes of this run do not reach each other ({why})", mend) from error
    try:
        yield Ranks(rank, world, found, group)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _without_answer() -> Iterator[None]:
    """Sends to standard error what native code prints: torch 2.9 tells each connection where the answer belongs."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _talk() -> distributed.ProcessGroup:
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, distributed.ProcessGroup)  # a number stands for one that this rank is not in
    return group
