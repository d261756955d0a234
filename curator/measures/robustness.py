"""A model put to the test: the holdout as it is, attacked, corrupted, perturbed, and pictures of none of its classes.

    Trial --a pass for each kind--> Answers, a few bytes an image --bootstrap--> figures with intervals
        --> table evaluations, after each kind; all of them as one document

A pass holds a few batches of pictures, so memory does not grow with the holdout; what is finished is kept when the rest
is interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from curator.errors import InputError, suggestion
from curator.measures import attacks, bootstrap, estimates, evaluations, outside
from curator.measures.attacks import EPS, STEPS
from curator.measures.estimates import Estimate, estimate, measured, named
from curator.measures.evaluation import Answers, Evaluation, figures, judge
from curator.measures.evaluations import Basis, Figures
from curator.measures.trial import Batch, Trial
from curator.networks.engines import probabilities
from curator.networks.inference import Pictures
from curator.noise import corruptions, perturbations
from curator.pictures import sources
from curator.quality.calibration import reliability
from curator.storage.store import Store

Floats = npt.NDArray[np.float64]


class Wanted(NamedTuple):
    """What to test beside the holdout as it is.

    Attributes:
        attacks: Of attacks.NAMES.
        eps: Of each attack, in values of 0..255.
        steps: Of PGD.
        corruptions: Whether all corruptions, in all severities.
        perturbations: Whether all perturbations.
        outside: Folder (or shards, or listing) with pictures of none of the classes.
        baseline: Model to compare corruptions and perturbations with; its own figures must be in the store.
        limit: Size of a sample of the holdout; all of it by default.
        seed: Of the sample, of all draws, of the resamples.
    """

    attacks: Sequence[str] = ()
    eps: Sequence[float] = EPS
    steps: int = STEPS
    corruptions: bool = False
    perturbations: bool = False
    outside: str | None = None
    baseline: str | None = None
    limit: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Whether it can be done.

        Raises:
            InputError: It cannot.
        """
        for name in self.attacks:
            if name not in attacks.NAMES:
                what = f"the attack '{name}' is unknown{suggestion(name, attacks.NAMES)}"
                raise InputError(what, f"--attack {'|'.join(attacks.NAMES)}")
        for eps in self.eps:
            if not 0 < eps <= 255:
                raise InputError(f"an eps of {eps:g} is no distance of pixels", "give one above 0, at most 255")
        if self.steps < 1:
            raise InputError(f"PGD cannot take {self.steps} steps", f"--steps {STEPS}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"a sample of {self.limit} images is empty", "--limit 1000")
        if self.baseline is not None and not (self.corruptions or self.perturbations):
            what = "a baseline is compared by corruptions or perturbations, and neither is asked for"
            raise InputError(what, "add --corruptions or --perturbations")


class Findings(NamedTuple):
    """What the tests found; each figure with the 95 % bootstrap interval beside it, shares between 0 and 1.

    Attributes:
        clean: The figures of `curator.measures.evaluation`.
        basis: The images.
        intervals: low and high of each of estimates.MEASURES.
        classes: See `estimates.classes`.
        bins: See `calibration.reliability`.
        attacks: Of each attack, a row for each eps.
        corruptions: Of each kind the rows of its severities, the mean error, and with a baseline the mean corruption
            error and the relative one, in percent; None where they were not asked for.
        perturbations: Of each kind its flip probability, the mean, and with a baseline the mean flip rate in percent.
        outside: Confidence on outside pictures, and how well scores tell them from the holdout.
    """

    clean: Evaluation
    basis: Basis
    intervals: dict[str, tuple[float, float]]
    classes: list[dict[str, Any]]
    bins: list[dict[str, float]]
    attacks: dict[str, list[dict[str, Any]]]
    corruptions: dict[str, Any] | None
    perturbations: dict[str, Any] | None
    outside: dict[str, Any] | None

    def document(self) -> dict[str, Any]:
        """All of it as one document; what was not asked for is left out."""
        always = {name: getattr(self, name) for name in ("intervals", "classes", "bins", "attacks")}
        asked = {name: getattr(self, name) for name in ("corruptions", "perturbations", "outside")}
        basis = {"seed": self.basis.seed, "limit": self.basis.limit, "basis": self.basis.digest}
        return self.clean._asdict() | basis | always | {name: part for name, part in asked.items() if part is not None}


def evaluate(
    store: Store, model: str, wanted: Wanted | None = None, threads: int | None = None, device: str = "auto"
) -> Findings:
    """Tests a registered model on the holdout, at the test resolution of its recipe, and keeps the figures.

    Args:
        store: The store.
        model: A registered model with weights.
        wanted: What to test beside the holdout as it is.
        threads: Threads that compute; one a core by default.
        device: Name of the device that computes; "auto" is a GPU where there is one.

    Raises:
        InputError: The model, the device, the baseline's figures or the pictures are not there, or what is wanted
            cannot be done. What was finished before is kept.
    """
    wanted = Wanted() if wanted is None else wanted
    wanted.check()
    beyond = None if wanted.outside is None else _tables(store, wanted.outside)
    with closing(Trial(store, model, wanted.limit, wanted.seed, threads, device)) as trial:
        return _tested(trial, wanted, beyond)


def _tested(trial: Trial, wanted: Wanted, beyond: list[pa.Table] | None) -> Findings:
    found, energy, failed, digest = _clean(trial)
    tests = _Tests(trial, wanted, Basis(len(found.label), digest, wanted.seed, wanted.limit))
    (told,), (top1,) = measured([found], wanted.seed)
    classes = estimates.classes(found, trial.store.classes(), wanted.seed)
    bins = reliability(found.confidence, found.right)
    tests.keep("clean", estimates.rows(told))
    tests.keep("class", [estimates.class_row(row) for row in classes])
    tests.keep("reliability", [row for each in bins for row in estimates.bin_rows(each)])
    # a baseline that is not there is told before the long work
    errors = tests.given("corruption", corruptions.KINDS) if wanted.corruptions else None
    rates = tests.given("perturbation", perturbations.KINDS) if wanted.perturbations else None
    return Findings(
        clean=figures(found, trial.model, trial.generation, failed),
        basis=tests.basis,
        intervals={name: wide for name, (_, wide) in told.items() if wide is not None},
        classes=classes,
        bins=bins,
        attacks={name: tests.attacked(name) for name in dict.fromkeys(wanted.attacks)},
        corruptions=tests.corrupted(1 - float(found.right.mean()), 1 - top1, errors) if wanted.corruptions else None,
        perturbations=tests.perturbed(rates) if wanted.perturbations else None,
        outside=None if beyond is None else tests.beyond(str(wanted.outside), beyond, found, energy),
    )


def _clean(trial: Trial) -> tuple[Answers, Floats, int, str]:
    """The answers to the holdout as it is, their energies [N], unreadable images, the digest of ids and classes."""

    def work(given: Batch) -> tuple[Answers, Floats, npt.NDArray[np.int64]]:
        logits = trial.engine(given.pixels)
        return judge(probabilities(logits), given.labels), _energy(logits), given.ids

    parts, failed = trial.holdout("as it is", work, trial.batch())
    answers, energies, ids = zip(*parts, strict=True)
    found = Answers.together(answers)
    which = np.stack([np.concatenate(ids), found.label], axis=1).astype("<i8")
    return found, np.concatenate(energies), failed, blake2b(which.tobytes(), digest_size=8).hexdigest()


class _Tests:
    """The tests that are asked for, each of which keeps its figures."""

    def __init__(self, trial: Trial, wanted: Wanted, basis: Basis) -> None:
        self.trial, self.wanted, self.basis = trial, wanted, basis
        self.parameters = corruptions.parameters(trial.size)

    def keep(self, suite: str, rows: Sequence[dict[str, Any]], **options: Any) -> None:
        trial = self.trial
        options |= {"resolution": trial.size}
        evaluations.record(trial.store, trial.model, suite, rows, self.basis, options)

    def given(self, suite: str, kinds: Sequence[str]) -> Figures | None:
        """The baseline's figures."""
        if self.wanted.baseline is None:
            return None
        return evaluations.baseline(
            self.trial.store, self.wanted.baseline, suite, kinds, f"--{suite}s", self.basis, self.parameters
        )

    def attacked(self, name: str) -> list[dict[str, Any]]:
        trial, wanted, levels = self.trial, self.wanted, sorted(set(self.wanted.eps))

        def work(given: Batch) -> list[Answers]:
            pixels = torch.from_numpy(given.pixels).to(trial.device).float()
            truth = torch.from_numpy(given.labels).to(trial.device)
            found = []
            for eps in levels:
                if name == "fgsm":
                    changed = attacks.fgsm(trial.network, pixels, truth, eps)
                else:
                    start = torch.from_numpy(attacks.starts(given.ids, trial.size, eps, wanted.seed)).to(trial.device)
                    changed = attacks.pgd(trial.network, pixels, truth, eps, wanted.steps, start=start)
                with torch.inference_mode():
                    logits = trial.network(changed).float().cpu().numpy()
                found.append(judge(probabilities(logits), given.labels))
            return found

        parts, _ = trial.holdout(name, work, trial.batch(gradients=True))
        told, _ = measured([Answers.together(cell) for cell in zip(*parts, strict=True)], wanted.seed)
        rows = [row for cell, eps in zip(told, levels, strict=True) for row in estimates.rows(cell, name, eps)]
        self.keep("attack", rows, **({"steps": wanted.steps} if name == "pgd" else {}))
        return [{"eps": eps} | named(cell) for eps, cell in zip(levels, told, strict=True)]

    def corrupted(self, clean: float, clean_drawn: Floats, given: Figures | None) -> dict[str, Any]:
        """All corruptions.

        Args:
            clean: Share of wrong answers to the holdout as it is.
            clean_drawn: [D] the same of resamples.
            given: The baseline's figures.
        """
        trial, levels = self.trial, corruptions.SEVERITIES
        found: dict[str, list[dict[str, Any]]] = {}
        errors: dict[str, Floats] = {}  # of each kind the mean over severities, [1]
        drawn: dict[str, Floats] = {}  # and of each resample, [D]
        for kind in corruptions.KINDS:

            def work(given: Batch, kind: str = kind) -> list[Answers]:
                changed = (corruptions.corrupt(given.pixels, given.ids, kind, s, self.wanted.seed) for s in levels)
                return [judge(probabilities(trial.engine(each)), given.labels) for each in changed]

            parts, _ = trial.holdout(kind.replace("_", " "), work, trial.batch())
            told, top1 = measured([Answers.together(cell) for cell in zip(*parts, strict=True)], self.wanted.seed)
            rows = [row for cell, level in zip(told, levels, strict=True) for row in estimates.rows(cell, kind, level)]
            self.keep("corruption", rows, parameters=self.parameters)
            found[kind] = [{"severity": level} | named(cell) for level, cell in zip(levels, told, strict=True)]
            errors[kind] = 1 - np.mean([row["top1"] for row in found[kind]], keepdims=True)
            drawn[kind] = 1 - top1.mean(axis=0)
        summary = {"mean_error": estimate(_mean(errors), _mean(drawn))}
        if given is not None:
            theirs = {kind: 1 - float(np.mean([given[kind, s, "top1"] for s in levels])) for kind in errors}
            summary["mce"] = estimate(*(evaluations.ratio(each, theirs) for each in (errors, drawn)))
            more = {kind: each - clean for kind, each in errors.items()}
            more_drawn = {kind: each - clean_drawn for kind, each in drawn.items()}
            theirs = {kind: each - (1 - given[None, None, "top1"]) for kind, each in theirs.items()}
            summary["relative_mce"] = estimate(*(evaluations.ratio(each, theirs) for each in (more, more_drawn)))
        return self._together("corruption", found, summary)

    def perturbed(self, given: Figures | None) -> dict[str, Any]:
        """All perturbations; `given` are the baseline's figures."""
        trial, seed = self.trial, self.wanted.seed
        found: dict[str, dict[str, Any]] = {}
        rates: dict[str, Floats] = {}
        drawn: dict[str, Floats] = {}
        for kind in perturbations.KINDS:

            def work(given: Batch, kind: str = kind) -> Floats:
                film = perturbations.frames(given.pixels, given.ids, kind, seed)
                logits = trial.engine(film.reshape(-1, *film.shape[2:]))
                return perturbations.flips(logits.argmax(axis=1).reshape(film.shape[:2]), kind)

            parts, _ = trial.holdout(f"film of {kind.replace('_', ' ')}", work, trial.batch(perturbations.FRAMES))
            flipped = np.concatenate(parts)
            rates[kind], drawn[kind] = flipped.mean(keepdims=True), bootstrap.means(flipped[:, None], seed)[:, 0]
            told = {"flip_probability": estimate(rates[kind], drawn[kind])}
            self.keep("perturbation", estimates.rows(told, kind), parameters=self.parameters)
            found[kind] = named(told)
        summary = {"mean_flip_probability": estimate(_mean(rates), _mean(drawn))}
        if given is not None:
            theirs = {kind: given[kind, None, "flip_probability"] for kind in rates}
            summary["mean_flip_rate"] = estimate(*(evaluations.ratio(each, theirs) for each in (rates, drawn)))
        return self._together("perturbation", found, summary)

    def _together(self, suite: str, kinds: dict[str, Any], summary: dict[str, Estimate]) -> dict[str, Any]:
        options: dict[str, Any] = {"parameters": self.parameters}
        if self.wanted.baseline is not None:
            options["baseline"] = self.wanted.baseline
        self.keep(suite, estimates.rows(summary), **options)
        return options | {"kinds": kinds} | named(summary)

    def beyond(self, folder: str, tables: list[pa.Table], found: Answers, energy: Floats) -> dict[str, Any]:
        """Outside pictures, beside the answers to the holdout and their energies [N]."""

        def work(seen: Pictures) -> tuple[npt.NDArray[np.float32], Floats]:
            logits = self.trial.engine(seen.pixels)
            return probabilities(logits).max(axis=1), _energy(logits)

        total = sum(table.num_rows for table in tables)
        parts, failed = self.trial.over("outside pictures", tables, total, work)
        if not parts:
            raise InputError(f"no picture in '{folder}' can be read", "give a folder with pictures")
        confidence, energies = (np.concatenate(column) for column in zip(*parts, strict=True))
        ours: dict[str, outside.Floats] = {"confidence": found.confidence, "energy": energy}
        theirs: dict[str, outside.Floats] = {"confidence": confidence, "energy": energies}
        told: dict[str, Estimate] = {
            **outside.boldness(confidence, self.wanted.seed),
            **outside.separation(ours, theirs, self.wanted.seed),
        }
        self.keep("outside", [row | {"images": len(confidence)} for row in estimates.rows(told, folder)])
        return {"folder": folder, "images": len(confidence), "failed": failed} | named(told)


def _tables(store: Store, folder: str) -> list[pa.Table]:
    """Where the pictures of a folder are, in batches."""
    table = pa.Table.from_batches(list(sources.read(folder, "unlabeled", False, store.root)))
    return [table.slice(start, 64) for start in range(0, table.num_rows, 64)]


def _energy(logits: npt.NDArray[np.float32]) -> Floats:
    """Log of the sum of exp of the logits [N]: minus the energy."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    found: Floats = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return found


def _mean(values: Mapping[str, Floats]) -> Floats:
    found: Floats = np.mean(list(values.values()), axis=0)
    return found
