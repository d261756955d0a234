"""Training: the labeled split and, for a student, a manifest, in joint batches under the recipe's noise.

    recipe + rows -> phases: loader -> mixing -> forward -> joint loss -> optimiser -> average -> checkpoint ...
        -> weights -> models table

Everything random in a step comes from (seed, step), so a resumed run takes the steps that it would have taken. Under
torchrun the ranks share each batch, and the first of them writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple, NoReturn

import deltalake
import pyarrow as pa
import torch
from torch import distributed

from curator import progress, ranks
from curator.errors import CuratorError, InputError
from curator.loading.batches import Statistics
from curator.loading.loader import ManifestLoader
from curator.loading.rows import Fold
from curator.lock import alone
from curator.networks import checkpoints, network, recipes
from curator.runs import optimization
from curator.runs.assignment import Assignment
from curator.runs.journal import Journal
from curator.runs.optimization import Optimization
from curator.runs.phases import Phase
from curator.runs.steps import Steps
from curator.runs.watch import Watch
from curator.schema import MODELS
from curator.signals import stoppable
from curator.storage import additions
from curator.storage.store import Store, Versions

CHECKPOINT_SECONDS = 60.0


class Trained(NamedTuple):
    """What a training run did."""

    model: str
    generation: int
    steps: int
    top1: float | None  # of the weights that were registered
    images_per_second: float
    loss: float | None
    input_bound: float  # share of the time spent waiting for the loader
    loader: dict[str, float]  # what its threads spent their time on, see `batches.Statistics.shares`
    pack: str | None  # that images were read from
    precision: str
    failed: int
    problems: list[str]
    step: int  # after which the weights were those that were registered
    best_step: int | None  # of the best evaluation, where the recipe wants some on the way
    best_top1: float | None


def train(
    store: Store,
    recipe: str,
    manifest: str | None = None,
    name: str | None = None,
    init: str | None = None,
    changes: list[str] | None = None,
    resume: bool = False,
    threads: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    pack: str | None = "auto",
    device: str = "auto",
    fold: Fold | None = None,
    tensorboard: Path | None = None,
    versions: Versions | None = None,
) -> Trained:
    """Trains a model and registers it.

    Args:
        store: The store.
        recipe: Name of a shipped recipe, or path of a `.toml` file.
        manifest: Manifest to train on with the labeled split; the model's generation is one above its labels'.
        name: Name of the model; g<generation>-<recipe> by default.
        init: What to start from: a registered model, or a file of weights (.safetensors, .pt, .pth).
        changes: KEY=VALUE changes of the recipe.
        resume: Go on from the run's newest checkpoint, if there is one.
        threads: Threads of the loader.
        checkpoint_seconds: Work that a kill can lose at most, in seconds.
        pack: The pack to read images from where it has them; None for the originals, "auto" for the one that fits.
        device: Where to compute; "auto" is a GPU where there is one.
        fold: Part of the labeled split to leave out. Such a model stays in the folder of its run of folds and is not
            registered, so that nothing takes it for a teacher.
        tensorboard: Folder for TensorBoard's event files, which come into one of the run's name in it.
        versions: Table versions to read labeled rows and holdout at; the newest reviews by default. A resumed run
            reads those that it began with.

    Raises:
        InputError: The recipe, manifest or name is not usable; evaluations on the way are wanted without a holdout, or
            event files without the package tensorboard.
        StoreError: Another run of this name is going on.
        CuratorError: The loss is not finite, or too many images cannot be read.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    recipe_name, plan = recipes.load(recipe, changes)
    network.leave_a_core()
    with ranks.join(device) as mine:
        assignment = Assignment(store, plan, recipe_name, manifest, name, init, pack, fold)
        called, folder = assignment.name, assignment.folder
        with alone(folder, f"training '{called}'") if mine.first else nullcontext():
            if mine.first or os.environ.get("LOCAL_RANK") == "0":  # once a machine
                store.place.anew(folder.relative_to(store.path).as_posix())
            registered = store.delta("models")
            if store.rows("select 1 from models where model = $model", model=called):
                raise InputError(f"the model '{called}' exists" + " and is finished" * resume, "give another --name")
            if mine.first:
                checkpoints.clean(folder)
            mine.wait()
            kept = checkpoints.load(folder) if resume else None
            if kept is not None:
                assignment.read(kept.state.get("versions", {}))
            else:  # the same on each rank, whatever people decide in between
                assignment.read(mine.gather(versions or {"reviews": store.versions()["reviews"]})[0])
            run = _Run(store, assignment, registered, kept, threads, mine, tensorboard)
            with closing(run.journal):
                started = run.resume() if resume else run.begin()
                run.train(started, checkpoint_seconds)
                return run.register()


class _Run:
    """One run: its network, phases and journal, and the checkpoint that it goes on from."""

    def __init__(
        self,
        store: Store,
        assignment: Assignment,
        registered: deltalake.DeltaTable,
        kept: checkpoints.Checkpoint | None,
        threads: int | None,
        mine: ranks.Ranks,
        tensorboard: Path | None,
    ) -> None:
        self.store, self.assignment, self.threads, self.ranks = store, assignment, threads, mine
        self.state, self.registered = kept, registered
        self.name, self.folder, self.steps = assignment.name, assignment.folder, assignment.steps
        self.phases, self.network = assignment.phases, assignment.network
        self.recipe = recipe = assignment.recipe
        if recipe.compute.sync_batchnorm and mine.world > 1:
            if mine.device.type != "cuda":
                raise InputError("torch's SyncBatchNorm needs GPUs", "--set compute.sync_batchnorm=false")
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)  # type: ignore[no-untyped-call]
        self.network = self.network.to(mine.device).to(memory_format=torch.channels_last)
        self.precision = recipe.compute.precision
        self.journal = Journal(store, self.name, assignment.epoch, tensorboard)
        generation, versions = assignment.generation, assignment.versions
        self.watch = Watch(store, recipe, self.name, generation, self.folder, threads, versions)
        self.images, self.seconds = 0, 0.0  # of this process, without checkpoints
        self.spent = Statistics()
        self.last_loss: float | None = None  # of the last step that was taken

    def begin(self) -> int:
        """A new run; a checkpoint of an unfinished one is not thrown away silently."""
        there = checkpoints.steps(self.folder)
        folder = self.folder.relative_to(self.store.path).as_posix()
        if there:
            raise InputError(
                f"an unfinished run of '{self.name}' has the checkpoint {there[-1].name}",
                f"go on with --resume, give another --name, or {self.store.place.removal([folder])}",
            )
        largest = max((sum(count for _, count in phase.streams) for phase in self.phases), default=1)
        wanted = optimization.precision(self.recipe, self.network, self.ranks.device, largest // self.ranks.world)
        self.precision = self.ranks.gather(wanted)[0]
        if self.ranks.first:
            self.journal.go_on(0)
            self.watch.go_on(0)
        self._announce()
        return 0

    def resume(self) -> int:
        """The step after the last checkpoint; 0 where there is none."""
        if self.state is None:
            self._say(f"no checkpoint of '{self.name}': starting from the beginning")
            return self.begin()
        self.assignment.expect(self.state.state["run"], self.watch.identity)
        self.precision = self.state.state["precision"]
        self.network.load_state_dict(self.state.weights["network"])
        if self.ranks.first:
            self.spent.failures |= self.journal.go_on(self.state.step)
            self.watch.go_on(self.state.step)
        self._announce()
        self._say(f"going on at step {self.state.step} of {self.steps}")
        return self.state.step

    def train(self, start: int, checkpoint_seconds: float) -> None:
        """Takes the steps from `start` to the end, phase by phase."""
        self.final = self.network
        with progress.progress(f"training {self.name}", self.steps, "steps") as advance, stoppable() as stopped:
            advance(start)
            for phase in self.phases:
                if phase.end > start:
                    self._train(phase, max(start, phase.begin), checkpoint_seconds, advance, stopped)

    def _train(
        self,
        phase: Phase,
        start: int,
        checkpoint_seconds: float,
        advance: Callable[..., None],
        stopped: Callable[[], bool],
    ) -> None:
        """Takes the steps of one phase."""
        moving = Optimization(self.network, self.recipe, phase, self.precision, self.ranks.device)
        if self.state is not None and self.state.state["moving"] is not None:
            moving.load_state_dict(self.state.state["moving"])
            if moving.average is not None:
                moving.average.load_state_dict(self.state.weights["average"])
        self.state = None
        steps = Steps(self.network, moving, self.recipe, self.ranks)
        loader = self._loader(phase)
        moving.train()
        self._look(start, moving, stopped)  # where the last process was stopped while it did
        if self._agree(stopped())[0]:
            self._stop(start)
        saved = began = time.perf_counter()
        with closing(loader.batches(start - phase.begin, phase.end - phase.begin)) as batches:
            for number, batch in enumerate(batches, start=1):
                at, rate = phase.begin + batch.step, moving.rate
                self.last_loss = loss = steps.take(batch._replace(step=at))
                self.journal.note(at, at + 1 == self.steps, loss, rate)
                if self.ranks.first:
                    self.journal.tell(loader.statistics.failures)
                pause = self._look(at + 1, moving, stopped)
                now, saved, began = time.perf_counter(), saved + pause, began + pause
                self.images += len(batch.images) * self.ranks.world
                pace = loader.batch_size * number / (now - began)
                advance(1, f"loss {loss:.3f}, rate {rate:.2g}, {pace:.0f} images/s{self.watch.note}")
                stop, due = self._agree(stopped(), now - saved > checkpoint_seconds)
                if (stop or due) and at + 1 < phase.end:
                    self.seconds += now - saved
                    self._save(at + 1, moving, loader)
                    saved = time.perf_counter()
                    if stop:
                        self._stop(at + 1)
        self.seconds += time.perf_counter() - saved
        self.spent.add(loader.statistics)
        if phase is self.phases[-1]:
            self.final = self._averaged(moving)
        else:  # the next one begins with the average
            if moving.average is not None:
                self.network.load_state_dict(moving.average.module.state_dict())
            self._save(phase.end, None, loader)

    def _averaged(self, moving: Optimization) -> network.Network:
        """The weights that are evaluated and registered."""
        averaged: network.Network = self.network if moving.average is None else moving.average.module
        return averaged

    def _look(self, step: int, moving: Optimization, stopped: Callable[[], bool]) -> float:
        """Evaluates the weights after a step if it is time to; the seconds that it took, which are not the training's.

        The other ranks wait for the first one where they agree on what comes next.
        """
        began = time.perf_counter()
        if self.ranks.first and step < self.steps:  # the last ones are evaluated in any case
            self.journal.add(step, self.watch.look(step, self._averaged(moving), stopped))
        return time.perf_counter() - began

    def _stop(self, step: int) -> NoReturn:
        self._say(f"stopped after step {step}, which is kept")
        raise KeyboardInterrupt

    def _loader(self, phase: Phase) -> ManifestLoader:
        loader = ManifestLoader(
            self.store.root,
            phase.streams,
            phase.noise,
            self.assignment.classes,
            seed=phase.seed,
            rank=self.ranks.rank,
            world=self.ranks.world,
            threads=self.threads,
            max_failures=self.recipe.max_failures,
        )
        loader.statistics.failures |= self.spent.failures
        sizes = ", ".join(f"{count} {rows.name.split()[0]}" for rows, count in loader.streams)
        taken = f"{phase.end - phase.begin} steps of {loader.batch_size} images ({sizes})"
        self._say(f"{phase.name} {self.name}: {taken} at {phase.noise[0].size} px")
        return loader

    def _agree(self, *flags: bool) -> list[bool]:
        """Which of the flags is set on any rank."""
        if self.ranks.world == 1:
            return [*flags]
        found = torch.tensor(flags, dtype=torch.uint8, device=self.ranks.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def _save(self, step: int, moving: Optimization | None, loader: ManifestLoader) -> None:
        """Writes a checkpoint and the figures up to it."""
        failures = {key: why for some in self.ranks.gather(loader.statistics.failures) for key, why in some.items()}
        if self.ranks.first:
            weights = {"network": self.network.state_dict()}
            if moving is not None and moving.average is not None:
                weights["average"] = moving.average.state_dict()
            state = {
                "run": self.assignment.identity | self.watch.identity,
                "versions": self.assignment.versions,
                "precision": self.precision,
                "moving": None if moving is None else moving.state_dict(),
            }
            # The figures first: those behind a checkpoint are taken back, those before it would not be written again.
            self.journal.write(step, failures)
            checkpoints.save(self.folder, step, weights, state, self.recipe.compute.keep_checkpoints)
            self.store.place.mirror(self.folder)
        self.ranks.wait()

    def _say(self, text: str) -> None:
        if self.ranks.first:
            progress.say(text)

    def _announce(self) -> None:
        """Says what is trained, and on what."""
        for line in self.assignment.summary():
            self._say(line)
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        where = f"{self.ranks.device.type}, {self.precision}" + f", {self.ranks.world} ranks" * (self.ranks.world > 1)
        self._say(f"{self.recipe.network.architecture}, {millions:.2f}M parameters, {where}")

    def register(self) -> Trained:
        """Evaluates the averaged weights where there is a holdout, and adds the model to the store."""
        self.final.eval()
        for name, tensor in self.final.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise CuratorError(
                    f"the last step left weights that are not finite ({name})",
                    "train again with a lower optimizer.learning_rate",
                )
        shares = {stage: round(share, 3) for stage, share in self.spent.shares.items()}
        figures: dict[str, float] = {
            "images_per_second": round(self.images / max(self.seconds, 1e-9), 1),
            "input_bound": round(self.spent.wait / max(self.seconds, 1e-9), 3),
        } | {f"loader_{stage}": share for stage, share in shares.items()}
        failures = {key: why for some in self.ranks.gather(self.spent.failures) for key, why in some.items()}
        step, best = self.steps, None
        if self.ranks.first:
            step, found = self.watch.conclude(self.steps, self.final, self.journal)
            figures, best = figures | found, self.watch.best
            self._register(step, figures, failures)
        self.ranks.wait()
        problems = [f"image {image_id}, {reason}" for image_id, reason in failures.items()]
        return Trained(
            self.name,
            self.assignment.generation,
            self.steps,
            figures.get("top1"),
            figures["images_per_second"],
            self.last_loss,
            figures["input_bound"],
            shares,
            self.assignment.pack,
            self.precision,
            len(problems),
            problems[:20],
            step,
            best and best.step,
            best and best.figures["top1"],
        )

    def _register(self, step: int, figures: dict[str, float], failures: dict[int, str]) -> None:
        path = self.folder / "weights.safetensors"
        weights_hash = network.save(self.final, path)
        if self.assignment.fold is None:
            below = self.folder.relative_to(self.store.path).as_posix()
            own = self.store.path / self.store.place.own_folder(below, weights_hash)
            own.mkdir(exist_ok=True)
            path = path.rename(own / path.name)
        about = {
            "loss": self.last_loss,
            "steps": self.steps,
            "step": step,
            "pack": self.assignment.pack,
            "precision": self.precision,
            "init": self.assignment.init,
            "versions": self.assignment.versions,
        }
        row = {
            "model": self.name,
            "generation": self.assignment.generation,
            "recipe": self.recipe.model_dump_json(),
            "weights": path.relative_to(self.store.path).as_posix(),
            "weights_hash": weights_hash,
            "parents": self.assignment.parents,
            "manifest": self.assignment.manifest,
            "metrics": json.dumps(figures | about),
            "created_at": additions.now(self.store.rows, "models"),
        }
        self.journal.write(self.steps, failures, figures)
        self.store.place.settle([path])
        self.store.place.mirror(self.folder)
        if self.assignment.fold is None:
            rows = pa.Table.from_pylist([row], MODELS.schema)
            additions.claim(self.store, "models", rows, f"model {self.name}", self.registered)
        checkpoints.remove(self.folder, self.watch.best is not None and self.watch.best.step == step)
        self.store.place.mirror(self.folder)
