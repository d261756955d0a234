"""The options of a selection: checked once, recorded in the manifest, part of its hash."""

from __future__ import annotations

import dataclasses
from typing import Any

from curator.curation import policies
from curator.errors import InputError, some, suggestion

FILLS = ("copies", "none")
TARGETS = ("soft", "hard", "auto")
NEAR_LEAKS = ("drop", "keep")


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The options of a selection. They are part of a manifest's hash.

    Args:
        generation: Generation of the soft labels.
        per_class: The quota K: rows, counted with copies, of each class.
        min_confidence: Candidates have a confidence above this, compared in float32.
        policy: Name of a file in sql/policies/, or what to call `policy_sql`.
        targets: "soft" for the teacher's distribution, "hard" for its top class, "auto" for hard from `hard_from` on.
        temperature: T of p^(1/T), applied when a loader reads the soft labels.
        fill: "copies" fills a short class up to the quota, "none" leaves it short.
        max_copies: Most copies of one image, or None.
        where: An SQL expression over images and labels that candidates must fulfil, or None.
        seed: Seed of policies that draw; "top" draws nothing.
        hard_from: With the targets "auto", rows of this confidence and above are hard, compared in float32. The default
            is where hard labels stop hurting in study 4 of Xie et al. (CVPR 2020).
        policy_sql: The text of a user's own policy, or None.
        settings: Values of the policy's own parameters; its defaults where it is not said.
        near_leaks: "drop" leaves out what a scan found to be near a holdout image, "keep" only what has its bytes.
        dedup: Whether of images that repeat each other one is left, and none that repeats a labeled one.
        accepted: Whether images that a reviewer accepted or gave a class come first, and are candidates at any
            confidence.
        calibration: Temperature under which confidences are compared with `min_confidence`, or None for as they are.

    Raises:
        InputError: One or more options are out of range; all are named.
    """

    generation: int
    per_class: int
    min_confidence: float = 0.3
    policy: str = "top"
    targets: str = "soft"
    temperature: float = 1.0
    fill: str = "copies"
    max_copies: int | None = None
    where: str | None = None
    seed: int = 0
    hard_from: float = 0.6
    policy_sql: str | None = None
    settings: dict[str, policies.Value] = dataclasses.field(default_factory=dict)
    near_leaks: str = "drop"
    dedup: bool = False
    accepted: bool = False
    calibration: float | None = None

    def __post_init__(self) -> None:
        known = policies.names()
        wrong = [
            message
            for bad, message in (
                (self.generation < 0, f"--generation {self.generation} is negative"),
                (self.per_class < 1, f"--per-class {self.per_class} is not at least 1"),
                (self.per_class > 2**31 - 1, f"--per-class {self.per_class} is above {2**31 - 1}"),
                (
                    not 0 <= self.min_confidence < 1,
                    f"--min-confidence {self.min_confidence} is not in [0, 1)",
                ),
                (
                    self.policy_sql is None and self.policy not in known,
                    f"--policy {self.policy} is unknown{suggestion(self.policy, known)} (there is {some(known, 20)}; "
                    "the name of a file of your own ends in .sql)",
                ),
                (self.targets not in TARGETS, f"--targets {self.targets} is not one of {', '.join(TARGETS)}"),
                (not 0 <= self.hard_from <= 1, f"--hard-from {self.hard_from} is not in [0, 1]"),
                (self.fill not in FILLS, f"--fill {self.fill} is not one of {', '.join(FILLS)}"),
                (
                    not 0 < self.temperature < float("inf"),
                    f"--temperature {self.temperature} is not above 0",
                ),
                (
                    self.max_copies is not None and not 1 <= self.max_copies < 2**31,
                    f"--max-copies {self.max_copies} is not in 1 to {2**31 - 1}",
                ),
                (not -(2**63) <= self.seed < 2**63, f"--seed {self.seed} does not fit into 64 bits"),
                (self.where is not None and not self.where.strip(), "--where is empty"),
                (
                    self.near_leaks not in NEAR_LEAKS,
                    f"--near-leaks {self.near_leaks} is not one of {', '.join(NEAR_LEAKS)}",
                ),
                (
                    self.calibration is not None and not 0 < self.calibration < float("inf"),
                    f"the calibration's temperature {self.calibration} is not above 0",
                ),
            )
            if bad
        ]
        if wrong:
            raise InputError("; ".join(wrong), "curator build-manifest --help")
        # An option left out and its default are one and the same selection.
        object.__setattr__(
            self, "settings", policies.settle(policies.load(self.policy, self.policy_sql), self.settings)
        )

    @property
    def values(self) -> dict[str, Any]:
        """The parameters as they are recorded."""
        return dataclasses.asdict(self)

    @property
    def bound(self) -> dict[str, Any]:
        """The parameters as bound values of the SQL, with those of the policy by their own names."""
        return self.values | self.settings | {"T": self.calibration}

    @property
    def changed(self) -> dict[str, Any]:
        """The parameters that are not at their defaults, so that an option added later changes no older hash."""
        return {name: value for name, value in self.values.items() if value != DEFAULTS[name]}


def check_confidence(least: float) -> None:
    """Whether a number can be a confidence to compare others with; nothing is above 1.

    Raises:
        InputError: It cannot.
    """
    if not 0 <= least <= 1:
        raise InputError(f"--min-confidence {least} is not in [0, 1]", "give e.g. --min-confidence 0.3")


DEFAULTS = {field.name: field.default for field in dataclasses.fields(Parameters)} | {"settings": {}}
