"""Training: the labeled split and, for a student, a manifest, in joint batches under the recipe's noise.

    recipe + rows -> loader -> forward -> joint loss -> optimiser -> EMA -> checkpoint ... -> weights -> models table

Everything random in a step comes from (seed, step), so a resumed run takes the steps that it would have taken.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from curator import draws, manifests, network, packs, progress, recipes
from curator.batches import Batch
from curator.errors import CuratorError, InputError
from curator.evaluation import evaluate_network
from curator.loader import ManifestLoader, augmentation
from curator.lock import alone
from curator.losses import joint_loss
from curator.recipes import Recipe
from curator.rows import Rows
from curator.schema import METRICS, MODELS
from curator.store import Store, check_name

CHECKPOINT_SECONDS = 60.0
_LOG_STEPS = 50
_TOLD = 20  # unreadable images that are named while a run goes on
_UNREADABLE = "unreadable:"  # begins the names in the metrics table under which image_ids stand


class Trained(NamedTuple):
    """What a training run did."""

    model: str
    generation: int
    steps: int
    top1: float | None
    images_per_second: float
    loss: float
    input_bound: float  # share of the time spent waiting for the loader
    loader: dict[str, float]  # what its threads spent their time on, see `loader.Statistics.shares`
    pack: str | None  # that images were read from
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
) -> Trained:
    """Trains a model and registers it.

    Args:
        store: The store.
        recipe: Name of a shipped recipe, or path of a `.toml` file.
        manifest: Manifest to train on with the labeled split; the model's generation is one above its labels'.
        name: Name of the model; g<generation>-<recipe> by default.
        init: Registered model whose weights to start from.
        changes: KEY=VALUE changes of the recipe.
        resume: Go on from the run's checkpoint, if there is one.
        threads: Threads of the loader.
        checkpoint_seconds: Work that a kill can lose at most, in seconds.
        pack: The pack to read images from where it has them; None for the originals, "auto" for the one that fits.

    Raises:
        InputError: The recipe, manifest or name is not usable.
        StoreError: Another run of this name is going on.
        CuratorError: The loss is not finite, or too many images cannot be read.
    """
    recipe_name, plan = recipes.load(recipe, changes)
    network.leave_a_core()
    run = _Run(store, plan, recipe_name, manifest, name, init, threads, pack)
    with alone(run.folder, f"training '{run.name}'"):
        for unfinished in run.folder.glob("*.unfinished"):  # of a process that was killed while it wrote
            unfinished.unlink()
        if store.rows("select 1 from models where model = $model", model=run.name):
            raise InputError(f"the model '{run.name}' exists" + " and is finished" * resume, "give another --name")
        started = run.resume() if resume else run.begin()
        sizes = ", ".join(f"{count} {rows.name.split()[0]}" for rows, count in run.loader.streams)
        progress.say(
            f"training {run.name}: {plan.network.architecture}, {run.parameters / 1e6:.2f}M parameters, "
            f"{run.steps} steps of {run.loader.batch_size} images ({sizes})"
        )
        run.train(started, checkpoint_seconds)
        return run.register()


class _Run:
    """One run: its network, optimiser, average and loader."""

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
    ) -> None:
        self.store, self.recipe, self.manifest, self.init, self.threads = store, recipe, manifest, init, threads
        classes = store.classes()
        if not classes:
            raise InputError("the store has no classes yet", "curator add-images FOLDER --split labeled")
        self.pack = packs.chosen(store, pack, recipe.network.resolution)
        self.labeled = labeled = Rows.labeled(store, self.pack)
        schedule = recipe.schedule
        streams = [(labeled, schedule.labeled_batch)]
        self.generation, self.parents = 0, [init] if init is not None else []
        if init is not None:  # trained on without a manifest, a model stays of its generation
            initial, _, row = network.load(store, init)
            self.generation = row["generation"]
        if manifest is not None:
            if not schedule.pseudo_ratio:
                raise InputError("the recipe takes no pseudo-labeled images", "--set schedule.pseudo_ratio=1")
            found = manifests.find(store, manifest)
            self.generation = found.generation + 1
            self.parents = [*dict.fromkeys([found.lineage["model"]["model"], *self.parents])]
            streams.append((Rows.manifest(store, manifest, self.pack), schedule.labeled_batch * schedule.pseudo_ratio))
        if labeled.unscanned:
            progress.say(f"{labeled.unscanned} labeled images were never scanned, so not checked against the holdout")
        if self.pack is not None:
            packed, rows = (sum(of(each) for each, _ in streams) for of in (lambda rows: rows.packed, len))
            progress.say(f"{packed} of {rows} images are read from the pack {self.pack}")
        self.name = name or f"g{self.generation}-{recipe_name}"
        check_name("model", self.name)
        self.steps = recipe.steps(len(labeled))
        self.epoch_steps = len(labeled) / schedule.labeled_batch
        self.network = network.build(recipe, len(classes))
        if init is not None:
            try:
                self.network.load_state_dict(initial.state_dict())
            except RuntimeError:
                raise InputError(
                    f"the weights of '{init}' do not fit the architecture '{recipe.network.architecture}'",
                    "start from a model of the same architecture and arguments, or leave --init out",
                ) from None
        self.parameters = sum(p.numel() for p in self.network.parameters())
        self.loader = ManifestLoader(
            store.root,
            streams,
            augmentation(recipe),
            len(classes),
            seed=recipe.seed,
            threads=threads,
            max_failures=recipe.max_failures,
        )
        self.optimizer, self.scheduler = network.optimizer(self.network, recipe, self.steps)
        self.average = network.average(self.network, recipe)
        self.folder = store.path / "models" / self.name
        self.checkpoint = self.folder / "checkpoint.pt"
        self.losses: list[tuple[int, float, float]] = []  # step, loss, learning rate, not yet in the metrics table
        self.told: set[int] = set()  # unreadable images that are in the metrics table
        self.images, self.seconds = 0, 0.0  # trained on by this process, without checkpoints
        self.last_loss = float("nan")

    def begin(self) -> int:
        """A new run; a checkpoint of an unfinished one is not thrown away silently."""
        if self.checkpoint.exists():
            raise InputError(
                f"an unfinished run of '{self.name}' has a checkpoint at {self.checkpoint}",
                "go on with --resume, give another --name, or delete the file",
            )
        self._forget_figures(0)
        return 0

    def resume(self) -> int:
        """The step after the last checkpoint; 0 where there is none."""
        if not self.checkpoint.exists():
            progress.say(f"no checkpoint of '{self.name}': starting from the beginning")
            return self.begin()
        state = network.load_state(self.checkpoint)
        identity = self._identity()
        differ = [what for what, value in identity.items() if state["run"].get(what) != value]
        if differ:
            raise InputError(
                f"the checkpoint of '{self.name}' belongs to a run with another {' and another '.join(differ)}",
                "give the same options as before, or another --name",
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._forget_figures(state["step"])
        query = "select name from metrics where model = $model and starts_with(name, $prefix)"
        known = self.store.rows(query, model=self.name, prefix=_UNREADABLE)
        self.told = {int(row["name"].removeprefix(_UNREADABLE)) for row in known}
        self.loader.statistics.failures |= dict.fromkeys(self.told, "before the run was resumed")
        progress.say(f"going on at step {state['step']} of {self.steps}")
        return int(state["step"])

    def train(self, start: int, checkpoint_seconds: float) -> None:
        """Takes the steps from `start` to the end."""
        self.network.train()
        saved = began = time.perf_counter()
        told = len(self.loader.statistics.failures)
        with (
            progress.progress(f"training {self.name}", self.steps, "steps") as advance,
            closing(self.loader.batches(start, self.steps)) as batches,
        ):
            advance(start)
            for batch in batches:
                self._step(batch)
                failures = self.loader.statistics.failures
                for image_id in [*failures][told:_TOLD]:
                    progress.say(f"not readable, left out: image {image_id}, {failures[image_id]}")
                told = len(failures)
                done = batch.step + 1
                now = time.perf_counter()
                self.images += self.loader.batch_size
                advance(1, f"loss {self.last_loss:.3f}, {self.images / (now - began):.0f} images/s")
                if now - saved > checkpoint_seconds and done < self.steps:
                    self.seconds += now - saved
                    self._save(done)
                    saved = time.perf_counter()
        self.seconds += time.perf_counter() - saved

    def _step(self, batch: Batch) -> None:
        if not len(batch.images):  # none of it could be read, within the budget
            self.scheduler.step_update(batch.step + 1)
            return
        loss_of, schedule = self.recipe.loss, self.recipe.schedule
        # Dropout and stochastic depth draw from torch's generator, which is set anew for each step.
        torch.manual_seed(int(draws.key(self.recipe.seed, "step", batch.step) >> 1))
        loss = joint_loss(
            self.network(batch.images),
            batch.targets,
            batch.weight,
            batch.labeled,
            loss_of.form,
            loss_of.label_smoothing,
            schedule.pseudo_ratio,
        )
        self.last_loss = loss.item()
        rate = self.optimizer.param_groups[0]["lr"]
        if not torch.isfinite(loss):
            raise CuratorError(
                f"the loss of step {batch.step} is {self.last_loss} at learning rate {rate:.4g}; image_ids of the "
                f"batch begin with {', '.join(map(str, batch.image_ids[:5]))}",
                "train again with a lower optimizer.learning_rate, under another --name if there is a checkpoint",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step_update(batch.step + 1)
        if self.average is not None:
            self.average.update(self.network, step=batch.step)
        if batch.step % _LOG_STEPS == 0 or batch.step + 1 == self.steps:
            self.losses.append((batch.step + 1, self.last_loss, rate))

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that wrote the checkpoint."""
        labeled = self.labeled.records[np.arange(len(self.labeled))]
        digest = hashlib.sha256(labeled["image_id"].tobytes() + labeled["classes"].tobytes())
        return {
            "recipe": self.recipe.model_dump_json(),
            "manifest": [rows.name for rows, _ in self.loader.streams],
            "set of labeled images": digest.hexdigest(),
            "pack": [self.pack, *(rows.packed for rows, _ in self.loader.streams)],
            "--init": self.init,
        }

    def _save(self, step: int) -> None:
        """Writes a checkpoint and the figures up to it."""
        state = {
            "run": self._identity(),
            "step": step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        network.save_state(state, self.checkpoint)
        self._write_metrics(step, {})

    def _forget_figures(self, step: int) -> None:
        """Takes back the figures that a run of this name wrote behind a step: the step is taken again."""
        query = "select count(*) as n from metrics where model = $model and step > $step"
        if self.store.rows(query, model=self.name, step=step)[0]["n"]:
            self.store.delta("metrics").delete(f"model = '{self.name}' and step > {step}")

    def _write_metrics(self, step: int, last: dict[str, float]) -> None:
        """Writes the losses so far, the images that could not be read, and the last figures of a run."""
        now = dt.datetime.now(dt.UTC)
        figures: list[tuple[int, str, float]] = [
            (at, name, x) for at, *xs in self.losses for name, x in zip(("loss", "learning_rate"), xs, strict=True)
        ]
        figures += [(self.steps, name, value) for name, value in last.items()]
        new = self.loader.statistics.failures.keys() - self.told
        figures += [(step, f"{_UNREADABLE}{image_id}", 1.0) for image_id in sorted(new)]
        self.told |= new
        rows = [(self.name, at, at / self.epoch_steps, name, value, now) for at, name, value in figures]
        if rows:
            self.store.append("metrics", pa.table([*zip(*rows, strict=True)], schema=METRICS.schema))
        self.losses = []

    def register(self) -> Trained:
        """Saves the averaged weights, evaluates them where there is a holdout, and adds the model to the store."""
        final = self.network if self.average is None else self.average.module
        final.eval()
        for name, tensor in final.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise CuratorError(
                    f"the last step left weights that are not finite ({name})",
                    "train again with a lower optimizer.learning_rate",
                )
        path = self.folder / "weights.safetensors"
        weights_hash = network.save(final, path)
        figures: dict[str, float] = {
            "images_per_second": round(self.images / max(self.seconds, 1e-9), 1),
            "input_bound": round(self.loader.statistics.wait / max(self.seconds, 1e-9), 3),
        }
        shares = {stage: round(share, 3) for stage, share in self.loader.statistics.shares.items()}
        figures |= {f"loader_{stage}": share for stage, share in shares.items()}
        holdout = self.store.rows("select count(*) as n from images where split = 'holdout' and status <> 'unreadable'")
        if holdout[0]["n"]:
            try:
                result = evaluate_network(self.store, final, self.recipe, self.name, self.generation, self.threads)
                figures |= {"top1": result.top1, "top5": result.top5, "ece": result.ece}
            except InputError as error:  # no reason to lose the training
                progress.say(f"not evaluated: {error.what}")
        row = {
            "model": self.name,
            "generation": self.generation,
            "recipe": self.recipe.model_dump_json(),
            "weights": path.relative_to(self.store.path).as_posix(),
            "weights_hash": weights_hash,
            "parents": self.parents,
            "manifest": self.manifest,
            "metrics": json.dumps(figures | {"loss": self.last_loss, "steps": self.steps, "pack": self.pack}),
            "created_at": dt.datetime.now(dt.UTC),
        }
        self._write_metrics(self.steps, figures)
        self.store.append("models", pa.Table.from_pylist([row], MODELS.schema))
        self.checkpoint.unlink(missing_ok=True)
        problems = [f"image {image_id}, {reason}" for image_id, reason in self.loader.statistics.failures.items()]
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
            len(problems),
            problems[:20],
        )
