"""Studies of the method on Fashion-MNIST: few labels, the rest as pool, controls, several seeds.

    IDX files --pictures.py--> shards --> a store for each seed, pool and teacher
    arm --its plan--> curator evolve --> figures of its model --> figures/*.json --tables.py--> results/studies.md

    python benchmarks/studies/run.py [--studies noise,method] [--seeds 3] [--work DIR] [--jobs 1] [--write]

Arms whose figures are in --work are not run again, and a run that was stopped goes on inside the arm. --tune judges by
a validation part of the training set: that is how numbers of steps, noise and quota were chosen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import answers
import pictures
import plot
import pyarrow.parquet as pq
import study
import tables
from study import Arm

from curator import progress
from curator.curation import manifests
from curator.measures import robustness
from curator.measures.robustness import Wanted
from curator.networks import checkpoints, network
from curator.pictures.images import add_images
from curator.rounds import evolution
from curator.runs import training
from curator.storage.store import Store

LABELED = 10  # images of each class
EPS = (1.0, 2.0, 4.0)
SAMPLE = 1000  # images of the holdout that are corrupted and attacked


class Setting(NamedTuple):
    """What a whole run has in common."""

    folder: Path  # of its stores and figures; runs with other numbers have others
    data: Path
    labeled: int
    steps: float
    tune: bool
    threads: int


class Job(NamedTuple):
    """An arm with one seed."""

    setting: Setting
    arm: Arm
    seed: int
    robustness: bool

    @property
    def called(self) -> str:
        """Name of its model."""
        return "student" if self.arm.usual else _slug(self.arm.name)

    @property
    def place(self) -> Path:
        """Folder of its store, which arms with the same seed, pool and teacher share."""
        return self.setting.folder / "stores" / f"{self.seed}-{self.arm.place}"

    @property
    def kept(self) -> Path:
        """Where its figures are kept."""
        return self.setting.folder / "figures" / f"{self.seed}-{_slug(self.arm.name)}{'-robust' * self.robustness}.json"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--studies", default=",".join(study.names()), help="names, with commas between")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--work", type=Path, default=Path("studies-work"))
    options.add_argument("--data", type=Path, default=pictures.FOLDER, help="folder of the IDX files")
    options.add_argument("--labeled", type=int, default=LABELED, help="labeled images of each class")
    options.add_argument("--steps", type=float, default=1.0, help="all numbers of steps times this")
    options.add_argument("--tune", action="store_true", help="judge by a validation part of the training set")
    options.add_argument("--jobs", type=int, default=1, help="arms at a time")
    options.add_argument("--result", default="studies", help="name of the tables and figures in benchmarks/results")
    options.add_argument("--write", action="store_true", help="keep them")
    given = options.parse_args()
    os.environ["LOCAL_WORLD_SIZE"] = str(given.jobs)  # jobs share the cores as the ranks of a run do
    studies = {name: study.read(name) for name in given.studies.split(",")}
    named = f"{given.labeled}-labels-x{given.steps:g}{'-tune' * given.tune}"
    folder, threads = given.work.resolve() / named, max(1, (os.cpu_count() or 1) // given.jobs)
    setting = Setting(folder, given.data, given.labeled, given.steps, given.tune, threads)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    jobs = _jobs(setting, studies.values(), seeds)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    first, rest = _in_two(jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        found = [*_told(pool.map(run, first), len(jobs), 0), *_told(pool.map(run, rest), len(jobs), len(first))]
    tables.show(studies, found, setting.labeled, given.steps, given.tune, given.result if given.write else None)
    if given.write:
        plot.claims(studies, found, study.FOLDER.parents[1] / "docs" / "pictures" / f"{given.result}.png")


def _jobs(setting: Setting, studies: Iterable[study.Study], seeds: Iterable[int]) -> list[Job]:
    """Each arm of the studies once with each seed, the usual student first."""
    arms: dict[str, tuple[Arm, bool]] = {"student": (Arm(name="student"), False)}
    for each in studies:
        for arm in each.arms:
            before, robust = arms.get(arm.name, (arm, False))
            if before != arm:
                raise SystemExit(f"the arm '{arm.name}' stands in two studies, and differs\nmend: give one a new name")
            arms[arm.name] = (arm, robust or each.robustness)
    return [Job(setting, arm, seed, robust) for arm, robust in arms.values() for seed in seeds]


def _in_two(jobs: list[Job]) -> tuple[list[Job], list[Job]]:
    """The first job of each store, which trains the teacher and labels the pool, and the others."""
    places: dict[Path, Job] = {}
    for job in jobs:
        places.setdefault(job.place, job)
    first = [*places.values()]
    return first, [job for job in jobs if job not in first]


def _told(found: Iterable[dict[str, Any]], total: int, before: int) -> Iterable[dict[str, Any]]:
    began = time.perf_counter()
    for number, row in enumerate(found, start=before + 1):
        passed = time.perf_counter() - began
        print(f"{number} of {total}: {row['arm']}, seed {row['seed']}: {row['top1']:.2%}, {passed:.0f} s", flush=True)
        yield row


def run(job: Job) -> dict[str, Any]:
    """The figures of a job, computed where they are not kept."""
    if job.kept.is_file():
        kept: dict[str, Any] = json.loads(job.kept.read_text())
        return kept
    progress.show(False)
    network.leave_a_core()
    store, shards = _store(job)
    name = _trained(job, store, shards)
    row = {"arm": job.arm.name, "seed": job.seed, "machine": tables.machine()} | _figures(store, name, shards)
    if job.robustness:
        row |= _robust(store, name, job)
    before = job.kept.with_suffix(".part")
    before.write_text(json.dumps(row))
    before.rename(job.kept)
    return row


def _store(job: Job) -> tuple[Store, Path]:
    """The store of a job, with its pictures, and the folder of their shards."""
    shards, place = job.place / "shards", job.place / "store"
    done = job.place / "ready"
    if not done.exists():
        shutil.rmtree(job.place, ignore_errors=True)  # left half made
        wanted = job.setting
        pictures.write(wanted.data, shards, wanted.labeled, job.seed, wanted.tune, job.arm.imbalance)
        store = Store.create(place, [*pictures.CLASSES])
        for split, shard in (("labeled", "labeled"), ("unlabeled", "pool"), ("holdout", "holdout")):
            add_images(store, str(shards / f"{shard}.tar"), split)
        done.touch()
    return Store(place), shards


def _trained(job: Job, store: Store, shards: Path) -> str:
    """Trains what is not trained yet; the name of the model."""
    arm, setting = job.arm, job.setting
    if not arm.manifest:
        if not store.rows("select 1 from models where model = $m", m=job.called):
            training.train(
                store,
                str(study.FOLDER / "student.toml"),
                name=job.called,
                changes=study.changes("student", arm.student, job.seed, setting.steps),
                resume=bool(checkpoints.steps(store.path / "models" / job.called)),
                threads=setting.threads,
            )
        return job.called
    if arm.labels != "teacher":
        answers.give(store, arm.labels, shards, job.seed)
    plan = job.place / f"{job.called}-{arm.generation}.toml"
    plan.write_text(study.plan(arm, job.called, job.seed, setting.steps))
    evolution.evolve(store, str(plan), threads=setting.threads)
    return "teacher" if arm.generation == 0 else study.model(job.called, arm.generation)


def _figures(store: Store, model: str, shards: Path) -> dict[str, Any]:
    (row,) = store.rows("select metrics, manifest, recipe from models where model = $m", m=model)
    figures, schedule = json.loads(row["metrics"]), json.loads(row["recipe"])["schedule"]
    rows = schedule["labeled_batch"] * (1 + (schedule["pseudo_ratio"] if row["manifest"] else 0))
    seconds = figures["steps"] * rows / figures["images_per_second"]
    found = {key: figures[key] for key in ("top1", "ece", "steps")} | {"seconds": seconds}
    return found | _selected(store, row["manifest"], shards)


def _selected(store: Store, manifest: str | None, shards: Path) -> dict[str, Any]:
    """How many images and copies the model was taught with, and how many of the labels are the true ones."""
    if manifest is None:
        return {}
    table = pq.read_table(manifests.files(manifests.find(store, manifest)), columns=["uri", "copies", "top_classes"])
    truth, rows, names = pictures.truth(shards), table.to_pylist(), store.classes()
    right = sum(truth[row["uri"].rpartition("::")[2]] == names[row["top_classes"][0]] for row in rows)
    return {"images": len(rows), "rows": sum(row["copies"] for row in rows), "right": right / len(rows)}


def _robust(store: Store, model: str, job: Job) -> dict[str, Any]:
    wanted = Wanted(attacks=["fgsm"], eps=EPS, corruptions=True, limit=SAMPLE, seed=0)
    found = robustness.evaluate(store, model, wanted, threads=job.setting.threads)
    assert found.corruptions is not None
    attacked = {f"fgsm_{row['eps']:g}": row["top1"] for row in found.attacks["fgsm"]}
    return {"corruption_error": found.corruptions["mean_error"]} | attacked


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


if __name__ == "__main__":
    main()
