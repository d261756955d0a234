"""Training: the labeled split and, for a student, a manifest, in joint batches under the recipe's noise.

    recipe + rows -> phases: loader -> mixing -> forward -> joint loss -> optimiser -> average -> checkpoint ...
        -> weights -> models table

Everything random in a step comes from (seed, step), so a resumed run takes the steps that it would have taken. Under
torchrun the ranks share each batch, and the first of them writes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import distributed

from curator import checkpoints, manifests, network, optimization, packs, phases, progress, ranks, recipes
from curator.batches import Statistics
from curator.errors import CuratorError, InputError
from curator.evaluation import evaluate_network
from curator.journal import Journal
from curator.loader import ManifestLoader
from curator.lock import alone
from curator.optimization import Optimization
from curator.phases import Phase
from curator.recipes import Recipe
from curator.rows import Rows
from curator.schema import MODELS
from curator.steps import Steps
from curator.store import Store, check_name

CHECKPOINT_SECONDS = 60.0


class Trained(NamedTuple):
    """What a training run did."""

    model: str
    generation: int
    steps: int
    top1: float | None
    images_per_second: float
    loss: float
    input_bound: float  # share of the time spent waiting for the loader
    loader: dict[str, float]  # what its threads spent their time on, see `batches.Statistics.shares`
    pack: str | None  # that images were read from
    precision: str
    failed: int
    problems: list[str]


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

    Raises:
        InputError: The recipe, manifest or name is not usable.
        StoreError: Another run of this name is going on.
        CuratorError: The loss is not finite, or too many images cannot be read.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    recipe_name, plan = recipes.load(recipe, changes)
    network.leave_a_core()
    with ranks.join(device) as mine:
        run = _Run(store, plan, recipe_name, manifest, name, init, threads, pack, mine)
        with alone(run.folder, f"training '{run.name}'") if mine.first else nullcontext():
            if store.rows("select 1 from models where model = $model", model=run.name):
                raise InputError(f"the model '{run.name}' exists" + " and is finished" * resume, "give another --name")
            if mine.first:
                checkpoints.clean(run.folder)
            mine.wait()
            started = run.resume() if resume else run.begin()
            run.train(started, checkpoint_seconds)
            return run.register()


class _Run:
    """One run: its network, phases and journal."""

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        recipe_name: str,
        manifest: str | None,
        name: str | None,
        init: str | None,
        threads: int | None,
        pack: str | None,
        mine: ranks.Ranks,
    ) -> None:
        self.store, self.recipe, self.manifest, self.init, self.threads = store, recipe, manifest, init, threads
        self.ranks = mine
        self.classes = len(store.classes())
        if not self.classes:
            raise InputError("the store has no classes yet", "curator add-images FOLDER --split labeled")
        self.pack = packs.chosen(store, pack, max(recipe.network.resolution, recipe.network.test_resolution))
        self.labeled, pseudo = Rows.labeled(store, self.pack), None
        self.generation, self.parents = 0, []
        self.network = network.build(recipe, self.classes, recipe.network.pretrained)
        if init is not None:
            begun = network.begin_from(store, init, self.network, recipe)
            if begun is not None:  # trained on without a manifest, a model stays of its generation
                self.generation, self.parents = begun, [init]
        if manifest is not None:
            if not recipe.schedule.pseudo_ratio:
                raise InputError("the recipe takes no pseudo-labeled images", "--set schedule.pseudo_ratio=1")
            found = manifests.find(store, manifest)
            self.generation = found.generation + 1
            self.parents = [*dict.fromkeys([found.lineage["model"]["model"], *self.parents])]
            pseudo = Rows.manifest(store, manifest, self.pack)
        self.rows = [self.labeled, *([] if pseudo is None else [pseudo])]
        self.name = name or f"g{self.generation}-{recipe_name}"
        check_name("model", self.name)
        self.phases = phases.of(recipe, self.labeled, pseudo)
        self.steps = self.phases[-1].end
        if recipe.compute.sync_batchnorm and mine.world > 1:
            if mine.device.type != "cuda":
                raise InputError("torch's SyncBatchNorm needs GPUs", "--set compute.sync_batchnorm=false")
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)  # type: ignore[no-untyped-call]
        self.network = self.network.to(mine.device).to(memory_format=torch.channels_last)
        self.precision = recipe.compute.precision
        self.folder = store.path / "models" / self.name
        self.journal = Journal(store, self.name, len(self.labeled) / recipe.schedule.labeled_batch)
        self.images, self.seconds, self.waited = 0, 0.0, 0.0  # of this process, without checkpoints
        self.spent = Statistics()
        self.last_loss = float("nan")
        self.state: checkpoints.Checkpoint | None = None

    def begin(self) -> int:
        """A new run; a checkpoint of an unfinished one is not thrown away silently."""
        there = checkpoints.steps(self.folder)
        if there:
            raise InputError(
                f"an unfinished run of '{self.name}' has a checkpoint at {there[-1]}",
                f"go on with --resume, give another --name, or rm -r {self.folder}",
            )
        largest = max(sum(count for _, count in phase.streams) for phase in self.phases)
        wanted = optimization.precision(self.recipe, self.network, self.ranks.device, largest // self.ranks.world)
        self.precision = self.ranks.gather(wanted)[0]
        if self.ranks.first:
            self.journal.go_on(0)
        self._announce()
        return 0

    def resume(self) -> int:
        """The step after the last checkpoint; 0 where there is none."""
        self.state = checkpoints.load(self.folder)
        if self.state is None:
            self._say(f"no checkpoint of '{self.name}': starting from the beginning")
            return self.begin()
        identity, kept = self._identity(), self.state.state["run"]
        differ = [what for what, value in identity.items() if kept.get(what) != value]
        if differ:
            mend = "give the same options as before, or another --name"
            if differ == ["pack"]:
                pack = kept["pack"][0]
                same = "the pack was extended since; give another --name"
                mend = same if pack == self.pack else f"--pack {pack or 'none'}, as before"
            raise InputError(
                f"the checkpoint of '{self.name}' belongs to a run with another {' and another '.join(differ)}", mend
            )
        self.precision = self.state.state["precision"]
        self.network.load_state_dict(self.state.weights["network"])
        if self.ranks.first:
            self.spent.failures |= self.journal.go_on(self.state.step)
        self._announce()
        self._say(f"going on at step {self.state.step} of {self.steps}")
        return self.state.step

    def train(self, start: int, checkpoint_seconds: float) -> None:
        """Takes the steps from `start` to the end, phase by phase."""
        with progress.progress(f"training {self.name}", self.steps, "steps") as advance, _stoppable() as stopped:
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
        saved = began = time.perf_counter()
        with closing(loader.batches(start - phase.begin, phase.end - phase.begin)) as batches:
            for number, batch in enumerate(batches, start=1):
                at, rate = phase.begin + batch.step, moving.rate
                self.last_loss = steps.take(batch._replace(step=at))
                self.journal.note(at, at + 1 == self.steps, self.last_loss, rate)
                if self.ranks.first:
                    self.journal.tell(loader.statistics.failures)
                now = time.perf_counter()
                self.images += len(batch.images) * self.ranks.world
                pace = loader.batch_size * number / (now - began)
                advance(1, f"loss {self.last_loss:.3f}, rate {rate:.2g}, {pace:.0f} images/s")
                stop, due = self._agree(stopped(), now - saved > checkpoint_seconds)
                if (stop or due) and at + 1 < phase.end:
                    self.seconds += now - saved
                    self._save(at + 1, moving, loader)
                    saved = time.perf_counter()
                    if stop:
                        self._say(f"stopped after step {at + 1}; go on with --resume")
                        raise KeyboardInterrupt
        self.seconds += time.perf_counter() - saved
        self.spent.add(loader.statistics)
        average = None if moving.average is None else moving.average.module
        if phase is self.phases[-1]:
            self.final = self.network if average is None else average
        else:  # the next one begins with the average
            if average is not None:
                self.network.load_state_dict(average.state_dict())
            self._save(phase.end, None, loader)

    def _loader(self, phase: Phase) -> ManifestLoader:
        loader = ManifestLoader(
            self.store.root,
            phase.streams,
            phase.noise,
            self.classes,
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

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that wrote the checkpoint."""
        labeled = self.labeled.records[np.arange(len(self.labeled))]
        digest = hashlib.sha256(labeled["image_id"].tobytes() + labeled["classes"].tobytes())
        return {
            "recipe": self.recipe.model_dump_json(),
            "manifest": [rows.name for rows in self.rows],
            "set of labeled images": digest.hexdigest(),
            "pack": [self.pack, *(rows.packed for rows in self.rows)],
            "--init": self.init,
        }

    def _save(self, step: int, moving: Optimization | None, loader: ManifestLoader) -> None:
        """Writes a checkpoint and the figures up to it."""
        failures = {key: why for some in self.ranks.gather(loader.statistics.failures) for key, why in some.items()}
        if self.ranks.first:
            weights = {"network": self.network.state_dict()}
            if moving is not None and moving.average is not None:
                weights["average"] = moving.average.state_dict()
            state = {
                "run": self._identity(),
                "precision": self.precision,
                "moving": None if moving is None else moving.state_dict(),
            }
            checkpoints.save(self.folder, step, weights, state, self.recipe.compute.keep_checkpoints)
            self.journal.write(step, failures)
        self.ranks.wait()

    def _say(self, text: str) -> None:
        if self.ranks.first:
            progress.say(text)

    def _announce(self) -> None:
        """Says what is trained, and on what."""
        if self.labeled.unscanned:
            self._say(f"{self.labeled.unscanned} labeled images were never scanned, so not checked against the holdout")
        if self.pack is not None:
            packed, rows = (sum(of(each) for each in self.rows) for of in (lambda rows: rows.packed, len))
            self._say(f"{packed} of {rows} images are read from the pack {self.pack}")
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        where = f"{self.ranks.device.type}, {self.precision}" + f", {self.ranks.world} ranks" * (self.ranks.world > 1)
        self._say(f"{self.recipe.network.architecture}, {millions:.2f}M parameters, {where}")

    def register(self) -> Trained:
        """Saves the averaged weights, evaluates them where there is a holdout, and adds the model to the store."""
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
        if self.ranks.first:
            figures |= self._evaluate()
            self._register(figures, failures)
        self.ranks.wait()
        problems = [f"image {image_id}, {reason}" for image_id, reason in failures.items()]
        return Trained(
            self.name,
            self.generation,
            self.steps,
            figures.get("top1"),
            figures["images_per_second"],
            self.last_loss,
            figures["input_bound"],
            shares,
            self.pack,
            self.precision,
            len(problems),
            problems[:20],
        )

    def _evaluate(self) -> dict[str, float]:
        holdout = self.store.rows("select count(*) as n from images where split = 'holdout' and status <> 'unreadable'")
        if holdout[0]["n"]:
            try:
                result = evaluate_network(self.store, self.final, self.recipe, self.name, self.generation, self.threads)
                return {"top1": result.top1, "top5": result.top5, "ece": result.ece}
            except InputError as error:  # no reason to lose the training
                progress.say(f"not evaluated: {error.what}")
        return {}

    def _register(self, figures: dict[str, float], failures: dict[int, str]) -> None:
        path = self.folder / "weights.safetensors"
        weights_hash = network.save(self.final, path)
        about = {
            "loss": self.last_loss,
            "steps": self.steps,
            "pack": self.pack,
            "precision": self.precision,
            "init": self.init,
        }
        row = {
            "model": self.name,
            "generation": self.generation,
            "recipe": self.recipe.model_dump_json(),
            "weights": path.relative_to(self.store.path).as_posix(),
            "weights_hash": weights_hash,
            "parents": self.parents,
            "manifest": self.manifest,
            "metrics": json.dumps(figures | about),
            "created_at": dt.datetime.now(dt.UTC),
        }
        self.journal.write(self.steps, failures, figures)
        self.store.append("models", pa.Table.from_pylist([row], MODELS.schema))
        checkpoints.remove(self.folder)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Lets the step that is being taken end when Ctrl-C or SIGTERM comes; a second one stops at once.

    Yields:
        Whether one came.
    """
    came = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield came.is_set
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
