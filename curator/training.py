"""Training: the labeled split and, for a student, a manifest, in joint batches under the recipe's noise.

    recipe + rows -> loader -> forward -> joint loss -> optimiser -> EMA -> checkpoint ... -> weights -> models table

Everything random in a step comes from (seed, step), so a resumed run takes the steps that it would have taken.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import nn

from curator import draws, manifests, network, progress, recipes
from curator.augment import OPERATIONS, Augmentation
from curator.errors import CuratorError, InputError
from curator.evaluation import evaluate_network
from curator.loader import Batch, ManifestLoader, Rows
from curator.losses import joint_loss
from curator.recipes import Recipe
from curator.schema import METRICS, MODELS
from curator.store import Store, check_name

CHECKPOINT_SECONDS = 60.0
_LOG_STEPS = 50


class Trained(NamedTuple):
    """What a training run did."""

    model: str
    generation: int
    steps: int
    top1: float | None
    images_per_second: float
    loss: float
    input_bound: float  # share of the time spent waiting for the loader
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

    Raises:
        InputError: The recipe, manifest or name is not usable.
        CuratorError: The loss is not finite, or too many images cannot be read.
    """
    recipe_name, plan = recipes.load(recipe, changes)
    run = _Run(store, plan, recipe_name, manifest, name, init)
    done = store.rows("select 1 from models where model = $model", model=run.name)
    if done and resume:
        raise InputError(
            f"the model '{run.name}' is finished; there is nothing to resume", "leave --resume out, or --name"
        )
    if done:
        raise InputError(f"the model '{run.name}' exists", "give the new one another --name")
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
        self, store: Store, recipe: Recipe, recipe_name: str, manifest: str | None, name: str | None, init: str | None
    ) -> None:
        self.store, self.recipe, self.manifest = store, recipe, manifest
        classes = store.classes()
        if not classes:
            raise InputError("the store has no classes yet", "curator add-images FOLDER --split labeled")
        labeled = Rows.labeled(store)
        schedule = recipe.schedule
        streams = [(labeled, schedule.labeled_batch)]
        temperature = 1.0
        self.generation, self.parents = 0, []
        if manifest is not None:
            if not schedule.pseudo_ratio:
                raise InputError("the recipe takes no pseudo-labeled images", "--set schedule.pseudo_ratio=1")
            found = manifests.find(store, manifest)
            temperature = found.lineage["parameters"]["temperature"]
            self.generation = found.generation + 1
            self.parents.append(found.lineage["model"]["model"])
            streams.append((Rows.manifest(store, manifest), schedule.labeled_batch * schedule.pseudo_ratio))
        self.name = name or f"g{self.generation}-{recipe_name}"
        check_name("model", self.name)
        self.steps = recipe.steps(len(labeled))
        self.epoch_steps = len(labeled) / schedule.labeled_batch
        self.loader_threads: int | None = None
        self.network = network.build(recipe, len(classes))
        if init is not None:
            self.network.load_state_dict(network.load(store, init)[0].state_dict())
            self.parents.append(init)
        self.parameters = sum(p.numel() for p in self.network.parameters())
        self.loader = ManifestLoader(
            store.root,
            streams,
            augmentation(recipe),
            len(classes),
            seed=recipe.seed,
            temperature=temperature,
            max_failures=recipe.max_failures,
        )
        self.optimizer, self.scheduler = _optimizer(self.network, recipe, self.steps)
        self.average = _average(self.network, recipe)
        self.folder = store.path / "models" / self.name
        self.checkpoint = self.folder / "checkpoint.pt"
        self.losses: list[tuple[int, float, float]] = []  # step, loss, learning rate, not yet in the metrics table
        self.seconds = 0.0
        self.last_loss = float("nan")

    def begin(self) -> int:
        """A new run; a checkpoint of an unfinished one is not thrown away silently."""
        if self.checkpoint.exists():
            raise InputError(
                f"an unfinished run of '{self.name}' has a checkpoint at {self.checkpoint}",
                "go on with --resume, give another --name, or delete the file",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        return 0

    def resume(self) -> int:
        """The step after the last checkpoint; 0 where there is none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint.exists():
            progress.say(f"no checkpoint of '{self.name}': starting from the beginning")
            return 0
        state = torch.load(self.checkpoint, weights_only=True)
        if state["run"] != self._identity():
            raise InputError(
                f"the checkpoint of '{self.name}' belongs to a run with another recipe or manifest",
                "give the same options as before, or another --name",
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.seconds = state["seconds"]
        progress.say(f"going on at step {state['step']} of {self.steps}")
        return int(state["step"])

    def train(self, start: int, checkpoint_seconds: float) -> None:
        """Takes the steps from `start` to the end."""
        self.network.train()
        saved = began = time.perf_counter()
        with progress.progress(f"training {self.name}", self.steps, "steps") as advance:
            advance(start)
            for batch in self.loader.batches(start, self.steps):
                self._step(batch)
                done = batch.step + 1
                now = time.perf_counter()
                rate = (done - start) * self.loader.batch_size / (now - began)
                advance(1, f"loss {self.last_loss:.3f}, {rate:.0f} images/s")
                if now - saved > checkpoint_seconds and done < self.steps:
                    self.seconds += now - saved
                    self._save(done)
                    saved = time.perf_counter()
        self.seconds += time.perf_counter() - saved
        for reason in list(self.loader.statistics.failures.values())[:20]:
            progress.say(f"not readable, left out: {reason}")

    def _step(self, batch: Batch) -> None:
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
                "lower optimizer.learning_rate; the last checkpoint is kept (--resume)",
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
        return {"recipe": self.recipe.model_dump_json(), "rows": [rows.name for rows, _ in self.loader.streams]}

    def _save(self, step: int) -> None:
        """Writes a checkpoint, whole or not at all, and the figures up to it."""
        state = {
            "run": self._identity(),
            "step": step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        unfinished = self.checkpoint.with_suffix(".unfinished")
        torch.save(state, unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.rename(self.checkpoint)
        self._write_metrics({})

    def _write_metrics(self, last: dict[str, float]) -> None:
        now = dt.datetime.now(dt.UTC)
        rows = [
            {
                "model": self.name,
                "step": step,
                "epoch": step / self.epoch_steps,
                "name": name,
                "value": value,
                "at": now,
            }
            for step, loss, rate in self.losses
            for name, value in (("loss", loss), ("learning_rate", rate))
        ] + [
            {"model": self.name, "step": self.steps, "epoch": self.steps / self.epoch_steps, "at": now}
            | {"name": name, "value": value}
            for name, value in last.items()
        ]
        if rows:
            self.store.append("metrics", pa.Table.from_pylist(rows, METRICS.schema))
        self.losses = []

    def register(self) -> Trained:
        """Saves the averaged weights, evaluates them where there is a holdout, and adds the model to the store."""
        final = self.network if self.average is None else self.average.module
        final.eval()
        path = self.folder / "weights.safetensors"
        weights_hash = network.save(final, path)
        images = self.loader.statistics.images
        figures: dict[str, float] = {
            "images_per_second": round(images / max(self.seconds, 1e-9), 1),
            "input_bound": round(self.loader.statistics.wait / max(self.seconds, 1e-9), 3),
        }
        holdout = self.store.rows("select count(*) as n from images where split = 'holdout' and status <> 'unreadable'")
        if holdout[0]["n"]:
            result = evaluate_network(self.store, final, self.recipe, self.name, self.generation)
            figures |= {"top1": result.top1, "top5": result.top5, "ece": result.ece}
        row = {
            "model": self.name,
            "generation": self.generation,
            "recipe": self.recipe.model_dump_json(),
            "weights": path.relative_to(self.store.path).as_posix(),
            "weights_hash": weights_hash,
            "parents": self.parents,
            "manifest": self.manifest,
            "metrics": json.dumps(figures | {"loss": self.last_loss, "steps": self.steps}),
            "created_at": dt.datetime.now(dt.UTC),
        }
        self._write_metrics(figures)
        self.store.append("models", pa.Table.from_pylist([row], MODELS.schema))
        self.checkpoint.unlink(missing_ok=True)
        problems = list(self.loader.statistics.failures.values())
        return Trained(
            self.name,
            self.generation,
            self.steps,
            figures.get("top1"),
            figures["images_per_second"],
            self.last_loss,
            figures["input_bound"],
            len(problems),
            problems[:20],
        )


def augmentation(recipe: Recipe) -> Augmentation:
    """The augmentation that a recipe's noise describes."""
    noise = recipe.noise
    return Augmentation(
        size=recipe.network.resolution,
        scale=noise.crop_scale,
        ratio=noise.crop_ratio,
        flip=noise.flip,
        randaugment_ops=noise.randaugment_ops,
        magnitude=noise.randaugment_magnitude,
        operations=noise.operations or OPERATIONS,
        cutout=noise.cutout,
    )


def _optimizer(net: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """An optimiser of timm and a schedule that counts steps."""
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    wanted = recipe.optimizer
    try:
        optimizer = create_optimizer_v2(
            net, opt=wanted.name, lr=wanted.learning_rate, weight_decay=wanted.weight_decay, momentum=wanted.momentum
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"the optimiser '{wanted.name}' cannot be made ({error})", "see timm.optim.list_optimizers()"
        ) from None
    schedule = recipe.schedule
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine" if schedule.decay == "cosine" else "step",
        num_epochs=steps,
        decay_epochs=steps + 1,
        warmup_epochs=schedule.warmup_steps,
        warmup_lr=wanted.learning_rate / 100,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    scheduler.step_update(0)
    return optimizer, scheduler


def _average(net: nn.Module, recipe: Recipe) -> Any:
    """The exponential moving average of timm, or None where the recipe switches it off."""
    from timm.utils import ModelEmaV3  # type: ignore[attr-defined]

    average = recipe.average
    if not average.decay:
        return None
    return ModelEmaV3(net, decay=average.decay, use_warmup=average.warmup, warmup_gamma=9.0, warmup_power=1.0)
