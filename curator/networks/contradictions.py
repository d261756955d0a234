"""Keys of a recipe that do not fit together, or that have no effect beside the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from curator.configuration import Key
from curator.errors import some, suggestion

# Keys that say the same thing in two ways: the one that is given later takes the other's place.
RIVALS = {
    f"{table}.{one}": f"{table}.{other}"
    for table, *pair in (
        ("schedule", "steps", "epochs"),
        ("schedule", "warmup_steps", "warmup_epochs"),
        ("finetune", "steps", "epochs"),
    )
    for one, other in (pair, pair[::-1])
}

# Keys that mean something with one value of another key only.
FOLLOWERS = {
    ("schedule.decay", "exponential"): ("decay_rate", "decay_epochs"),
    ("schedule.mode", "pretrain"): ("pretrain",),
    ("optimizer.name", "rmsprop"): ("alpha",),
}


def give_way(data: dict[str, Any], given: Collection[str]) -> None:
    """Takes out of a recipe's data what a change leaves without meaning.

    Args:
        data: A recipe's data after the change.
        given: Dotted keys that were changed; none of them is taken out.
    """
    gone = [RIVALS[key] for key in given if key in RIVALS]
    for (key, value), followers in FOLLOWERS.items():
        table, _, name = key.partition(".")
        section = data.get(table)
        if key in given and isinstance(section, dict) and not _means(section.get(name), value):
            gone += [f"{table}.{follower}" for follower in followers]
    for key in {*gone} - {*given}:
        table, _, name = key.partition(".")
        if isinstance(data.get(table), dict):
            data[table].pop(name, None)


def _means(found: object, value: str) -> bool:
    """Whether a key has the value: an optimiser's name begins with its family's."""
    return isinstance(found, str) and found.startswith(value)


def find(data: dict[str, Any], wrong: Collection[Key]) -> Iterator[tuple[Key, str]]:
    """Keys that do not fit together, as (key, message).

    Args:
        data: A recipe's data without what is wrong by itself.
        wrong: The keys that were.
    """
    yield from _noise(data.get("noise", {}), wrong)
    yield from _length("schedule", data.get("schedule", {}), wrong)
    if data.get("finetune") is not None:
        yield from _length("finetune", data["finetune"], wrong)
    yield from _warmup(data.get("schedule", {}))
    yield from _batches(data)
    yield from _network(data.get("network", {}))
    for (key, value), followers in FOLLOWERS.items():
        table, _, name = key.partition(".")
        found = data.get(table, {})
        for follower in followers:
            if follower in found and (table, name) not in wrong and not _means(found.get(name), value):
                yield (table, follower), f"'{table}.{follower}' has no effect without '{key}' = '{value}'"
    evaluation = data.get("evaluation", {})
    if evaluation.get("keep") == "best" and not evaluation.get("every") and ("evaluation", "every") not in wrong:
        yield ("evaluation", "keep"), "'evaluation.keep' = 'best' needs an 'evaluation.every' above 0"
    optimizer = data.get("optimizer", {})
    if "base_batch" in optimizer and "learning_rate" not in optimizer and ("optimizer", "learning_rate") not in wrong:
        yield ("optimizer", "base_batch"), "'optimizer.base_batch' needs the 'optimizer.learning_rate' of that batch"


def _noise(noise: dict[str, Any], wrong: Collection[Key]) -> Iterator[tuple[Key, str]]:
    ops = noise.get("randaugment_ops")
    if ops is None and ("noise", "randaugment_ops") not in wrong:
        for key in ("randaugment_magnitude", "operations"):
            if noise.get(key):
                yield (
                    ("noise", key),
                    f"'noise.{key}' has no effect without 'noise.randaugment_ops' (0 to switch it off)",
                )
    if ops and not noise.get("randaugment_magnitude") and ("noise", "randaugment_magnitude") not in wrong:
        yield ("noise", "randaugment_ops"), "'noise.randaugment_ops' needs a 'noise.randaugment_magnitude' above 0"
    mixing = {"mixup", "cutmix"}
    if "mix" in noise and not mixing & noise.keys() and not {("noise", key) for key in mixing} & {*wrong}:
        yield ("noise", "mix"), "'noise.mix' has no effect without 'noise.mixup' or 'noise.cutmix' (0 to switch it off)"
    for key in ("crop_scale", "crop_ratio"):
        low, high = noise.get(key, (1, 1))
        if not 0 < low <= high:
            yield ("noise", key), f"'noise.{key}' = [{low}, {high}]: should be 0 < first <= second"
    if noise.get("operations") is not None:
        from curator.noise.augment import OPERATIONS

        for name in noise["operations"]:
            if name not in OPERATIONS:
                close = suggestion(name, OPERATIONS) or f"; known are {some(OPERATIONS, 20)}"
                yield ("noise", "operations", name), f"'noise.operations': '{name}' is unknown{close}"


def _length(table: str, found: dict[str, Any], wrong: Collection[Key]) -> Iterator[tuple[Key, str]]:
    """Exactly one of steps and epochs."""
    given = [key for key in ("steps", "epochs") if key in found or (table, key) in wrong]
    if len(given) != 1 and (table,) not in wrong:
        verb = "both are given" if given else "neither is given"
        yield (table, "epochs" if given else ""), f"of '{table}.steps' and '{table}.epochs', {verb}: give one"


def _warmup(schedule: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    if {"warmup_steps", "warmup_epochs"} <= schedule.keys():
        yield (
            ("schedule", "warmup_epochs"),
            "of 'schedule.warmup_steps' and 'schedule.warmup_epochs', both are given: give one",
        )
        return
    for unit in ("steps", "epochs"):  # one of each is compared when the number of images is known
        length, warmup = schedule.get(unit), schedule.get(f"warmup_{unit}", 0)
        if length and warmup >= length:  # no steps need none
            yield (
                ("schedule", f"warmup_{unit}"),
                f"'schedule.warmup_{unit}' = {warmup}: should be below the {length} {unit} of the run",
            )


_FOR_PSEUDO_ROWS = (("loss", "form", "ratio"), ("schedule", "mode", "pretrain"), ("noise", "augment", "pseudo"))


def _batches(data: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """What does not go with the sizes of the batches."""
    schedule, finetune, noise = data.get("schedule", {}), data.get("finetune") or {}, data.get("noise", {})
    if schedule.get("pseudo_ratio") == 0:
        for table, key, value in _FOR_PSEUDO_ROWS:
            if data.get(table, {}).get(key) == value:
                yield (table, key), f"'{table}.{key}' = '{value}' does not go with 'schedule.pseudo_ratio' = 0"
    batch = schedule.get("labeled_batch")
    for key in ("mixup", "cutmix"):
        if noise.get(key) and batch == 1:
            yield (
                ("noise", key),
                f"'noise.{key}' mixes the images of a batch: 'schedule.labeled_batch' should be at least 2",
            )
    parts = data.get("compute", {}).get("accumulate", 1)
    for table, found in (("schedule", schedule), ("finetune", finetune)):
        size = found.get("labeled_batch")
        if size is not None and size < parts:
            yield (
                ("compute", "accumulate"),
                f"'compute.accumulate' = {parts}: should be at most '{table}.labeled_batch' = {size}",
            )


def _network(network: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    instead = {"drop_rate": "noise.dropout", "drop_path_rate": "noise.drop_path", "pretrained": "network.pretrained"}
    arguments = network.get("arguments", {})
    for argument, key in instead.items():
        if argument in arguments:
            yield ("network", "arguments", argument), f"'network.arguments.{argument}': give '{key}' instead"
    if "num_classes" in arguments:
        yield (
            ("network", "arguments", "num_classes"),
            "'network.arguments.num_classes': the store says how many there are",
        )
    if network.get("pretrained") and ":" in network.get("architecture", ""):
        yield ("network", "pretrained"), "'network.pretrained': only timm's architectures have weights to begin with"
