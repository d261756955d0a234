"""Labeling: a model's soft labels for every image it has not labeled yet, written as it goes, published at once.

    unlabeled rows, in batches --rank r takes every world-th--> predict --> writer thread --> parts
    the parts of all ranks, and of a killed run before --rank 0, when all are done--> one commit

Parts are written every few seconds of work. A run that is killed leaves whole parts behind; the next run counts their
images as done and publishes all parts in one commit. Locks on the folder keep two runs of one model apart.

A part's name says its split and the engine that computed it: `part-unlabeled-onnxruntime-TIME-RANDOM.parquet`.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator import progress, queries
from curator.errors import CuratorError, InputError, some, suggestion
from curator.generations import publication, softlabels
from curator.generations.labels import PartWriter, check_generation, folder_of, publish
from curator.lock import alone
from curator.networks import engines
from curator.networks.engines import Engine
from curator.networks.inference import Predictions, pictures, predict
from curator.networks.network import Network, leave_a_core, load
from curator.networks.recipes import Recipe
from curator.ranks import Ranks, join
from curator.schema import SPLITS
from curator.storage import delta
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

PART_SECONDS = 30.0
# Images that are summarized at once, for many classes fewer: with a batch alone the calls would take most of the time.
_CHUNK = 1024
_NO_IDS = pa.schema({"image_id": pa.int64()}).empty_table()
_NO_PARTS = pa.schema({"image_id": pa.int64(), "part": pa.int32()}).empty_table()
_AHEAD = 4  # chunks that may wait for the writer


class Labeled(NamedTuple):
    """What a labeling run did, all ranks together."""

    model: str
    generation: int
    images: int
    resumed: int
    already_labeled: int
    images_per_second: float
    engine: str | None  # what computed; None where nothing was left to compute
    failed: int
    problems: list[str]


class _Share(NamedTuple):
    """What one rank did."""

    parts: list[str]  # their names: another host may have another working folder
    images: int
    problems: list[str]
    seconds: float


def label(
    store: Store,
    model: str,
    splits: list[str] | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    part_seconds: float = PART_SECONDS,
    engine: str = "auto",
    device: str = "auto",
) -> Labeled:
    """Labels every image of the splits that the model has not labeled yet.

    Under torchrun each rank labels a share of the images, and all return the same answer.

    Args:
        store: The store.
        model: A registered model with weights.
        splits: Splits to label; all of them by default (the holdout's labels are for calibration).
        batch_size: Images of a forward pass.
        threads: Threads that read and decode; one a core by default.
        part_seconds: Work that a kill can lose at most, in seconds.
        engine: What computes, one of engines.NAMES. "auto" goes on with the engine that began the generation, and
            begins one with the fastest.
        device: Name of the device that computes; "auto" is a GPU where there is one.

    Raises:
        InputError: The model is unknown, or its generation belongs to another one.
        StoreError: Another run labels with this model.
        CuratorError: The engine cannot be used, or the network's answers are no numbers.
    """
    wanted = splits or list(SPLITS)
    for split in wanted:
        if split not in SPLITS:
            raise InputError(f"the split '{split}' is unknown{suggestion(split, SPLITS)}", ", ".join(SPLITS))
    if batch_size < 1:
        raise InputError(f"the batch size {batch_size} is not at least 1", "--batch-size 64")
    engines.check(engine)
    with join(device) as ranks:
        if not ranks.first:
            progress.show(False)
        network, recipe, row = load(store, model)
        network.to(ranks.device)
        generation = int(row["generation"])
        folder = folder_of(store, generation, model, row["weights_hash"])
        with _alone(folder, model, ranks):
            run = _Run(store, model, generation, folder, wanted, ranks)
            return run.label(network, recipe, batch_size, threads, part_seconds, engine)


@contextmanager
def _alone(folder: Path, model: str, ranks: Ranks) -> Iterator[None]:
    """Holds the folder for all ranks: another run begins only when each of them is gone."""
    doing = f"labeling with '{model}'"
    with ExitStack() as held:
        if ranks.first:
            held.enter_context(alone(folder, doing))
            for place in folder.glob("rank-*"):  # of a killed run; a lock goes with its process, and so does the place
                with alone(place, doing):
                    pass
        ranks.wait()
        if not ranks.first:
            held.enter_context(alone(folder / f"rank-{ranks.rank}", doing))
        ranks.wait()
        yield


class _Run:
    """A run of one model that has the folder of its labels to itself."""

    def __init__(
        self, store: Store, model: str, generation: int, folder: Path, splits: list[str], ranks: Ranks
    ) -> None:
        self.store, self.model, self.generation, self.folder = store, model, generation, folder
        self.splits, self.ranks = splits, ranks
        if ranks.first:
            for unfinished in folder.glob("*.unfinished"):
                unfinished.unlink()
        # Looked up by one rank, so that all share out the same list.
        names = store.place.names(folder.relative_to(store.path).as_posix(), "part-*.parquet")
        self.versions, names = ranks.gather((store.versions(), names))[0]
        self.table = store.delta("labels", self.versions["labels"])
        delta.expect_own_columns(self.table)  # now, and not when hours of work are to be published
        published = {Path(uri).name for uri in self.table.file_uris() if Path(uri).parent.name == folder.name}
        # Parts of other splits stay where they are: publishing them now would show a piece of their split.
        self.parts = [folder / name for name in names if name not in published and name.split("-")[1] in splits]
        self.begun_with = sorted({_engine_of(name) for name in names})

    def label(
        self, network: Network, recipe: Recipe, batch_size: int, threads: int | None, part_seconds: float, wanted: str
    ) -> Labeled:
        """Labels what is left, and publishes it when all ranks are done."""
        ranks, engine, own = self.ranks, None, _Share([], 0, [], 0.0)
        con = self.store.connect(self.versions)
        try:
            check_generation(con, self.generation, self.model)
            staged = self._staged(con)
            con.register("staged", staged)
            resumed = staged.num_rows
            if resumed:
                progress.say(f"going on: {resumed} images were labeled by a run that did not finish")
            query = queries.text("unlabeled_by")
            values = {"generation": self.generation, "splits": self.splits}
            total = queries.rows(con, f"select count(*) as n from ({query})", **values)[0]["n"]
            already = queries.rows(
                con,
                "select count(*) as n from stored_labels"
                " where generation = $generation and list_contains($splits, split)",
                **values,
            )[0]["n"]
            tables = queries.batches(con, query, batch_size, **values)
            first = next(tables, None)
            if first is not None:
                engine = self._engine(wanted, network, recipe, first, total)
                # Whole batches, as one process has them: a picture's neighbours may change its logits' last bits.
                share = itertools.islice(itertools.chain([first], tables), ranks.rank, None, ranks.world)
                answers = predict(network, recipe, self.store.root, share, threads, engine)
                own = self._work(answers, engine.name, part_seconds, total)
        finally:
            con.close()
        shares = ranks.gather(own)
        parts = [*self.parts, *(self.folder / name for share in shares for name in share.parts)]
        images = sum(share.images for share in shares)
        problems = [problem for share in shares for problem in share.problems]
        if parts and ranks.first:
            publish(self.store, self.table, parts, self.generation)
        ranks.wait()
        # After the others are let go, because it may take minutes. With nothing to publish it is what a run that was
        # killed behind its commit did not come to.
        if (parts or already) and ranks.first:
            publication.follow(self.store, self.generation)
        if total and not images and not resumed and not already:
            raise InputError(
                f"none of the {total} images can be read: {some(problems)}", "check that the files are where they were"
            )
        seconds = max(share.seconds for share in shares)
        return Labeled(
            self.model,
            self.generation,
            images + resumed,
            resumed,
            already,
            round(images / max(seconds, 1e-9), 1),
            engine.name if engine else None,
            len(problems),
            problems[:20],
        )

    def _staged(self, con: duckdb.DuckDBPyConnection) -> pa.Table:
        """The image_ids of the parts that are written but not published.

        A run on another machine that published first leaves parts behind of what is labeled by now: they go, and what
        two have written goes with a later run.
        """
        found = [self._read_ids(part) for part in self.parts]
        numbered = [ids.append_column("part", pa.array([n] * ids.num_rows, pa.int32())) for n, ids in enumerate(found)]
        con.register("staged", pa.concat_tables([_NO_PARTS, *numbered]))
        query = (
            "select distinct part from staged where image_id in"
            " (select image_id from stored_labels where generation = $generation)"
        )
        late = {row["part"] for row in queries.rows(con, query, generation=self.generation)}
        # Of two machines that were both stopped before they published, the first one's parts go on.
        query = "select distinct part from staged qualify part > min(part) over (partition by image_id)"
        double = {row["part"] for row in queries.rows(con, query)}
        self.ranks.wait()  # each rank has read them
        for number in sorted(late) if self.ranks.first else []:
            self.store.place.remove(self.parts[number])
        kept = [number for number in range(len(found)) if number not in late | double]
        self.parts = [self.parts[number] for number in kept]
        return pa.concat_tables([_NO_IDS, *(found[number] for number in kept)])

    def _read_ids(self, part: Path) -> pa.Table:
        with self.store.place.open(part) as file:
            return pq.read_table(file, columns=["image_id"])

    def _engine(self, wanted: str, network: Network, recipe: Recipe, first: pa.Table, total: int) -> Engine:
        """The engine: rank 0 chooses it, and each rank proves it for itself, on the same first batch."""
        leave_a_core()  # it is tried with the threads that it will have
        bound = wanted == "auto" and len(self.begun_with) == 1
        earlier = " and ".join(self.begun_with)
        if bound:
            wanted = self.begun_with[0]
            progress.say(f"generation {self.generation} was begun with {wanted}, which goes on (--engine for another)")
        elif self.begun_with and self.begun_with != [wanted]:
            progress.say(f"generation {self.generation} was begun with {earlier}; each part's name says which made it")
        pixels = pictures(self.store.root, first, recipe).pixels if wanted != "torch" else None
        work = total // self.ranks.world
        try:
            if self.ranks.first:
                engine = engines.choose(wanted, network, pixels, work)
            wanted = self.ranks.gather(engine.name if self.ranks.first else "")[0]
            return engine if self.ranks.first else engines.choose(wanted, network, pixels, work)
        except CuratorError as error:
            if bound:
                error.mend += f", or --engine torch for the rest of generation {self.generation}"
            raise

    def _work(self, answers: Generator[Predictions], engine: str, part_seconds: float, total: int) -> _Share:
        """Takes the answers of this rank to the writer; progress is that of all ranks, as far as rank 0 can tell."""
        began = time.perf_counter()
        with (
            ThreadPoolExecutor(1, "writer") as thread,
            progress.progress(f"labeling with {self.model}", total) as advance,
            closing(answers),
        ):
            work = _Work(self, engine, part_seconds, thread)
            try:
                for answer in answers:
                    work.add(answer)
                    done = min(total, answer.rows.num_rows * self.ranks.world)
                    total -= done
                    advance(done)
                parts = work.finish()
            except KeyboardInterrupt:
                work.finish()
                raise
            except BaseException:
                work.abandon()  # whole parts stay for the next run
                raise
        return _Share([part.name for part in parts], work.images, work.problems, time.perf_counter() - began)


class _Work:
    """Collects answers and writes a part whenever enough time has gone into it, in a thread beside the engine.

    A Ctrl-C reaches the main thread alone, so that it tears no part.
    """

    def __init__(self, run: _Run, engine: str, part_seconds: float, thread: ThreadPoolExecutor) -> None:
        self.images = 0
        self.problems: list[str] = []
        self._chunk: list[Predictions] = []
        self._run, self._engine, self._part_seconds, self._thread = run, engine, part_seconds, thread
        self._keep = run.store.settings.kept_classes
        self._classes = len(run.store.classes())
        self._since = time.monotonic()
        self._queue: deque[Future[None]] = deque()
        self._waiting: dict[str, list[pa.Table]] = {}  # by split: a part holds one split
        self._parts: list[Path] = []

    def add(self, answer: Predictions) -> None:
        """Keeps an answer, or hands a chunk of them to the thread; raises what an earlier chunk came to."""
        self._chunk.append(answer)
        full = sum(each.rows.num_rows for each in self._chunk) * max(1, self._classes / 256) >= _CHUNK
        if full or time.monotonic() - self._since > self._part_seconds:
            self._hand_over()

    def _hand_over(self) -> None:
        while self._queue and (self._queue[0].done() or len(self._queue) >= _AHEAD):
            self._queue[0].result()
            self._queue.popleft()
        chunk, self._chunk = self._chunk, []
        self._queue.append(self._thread.submit(self._take, chunk))

    def finish(self) -> list[Path]:
        """The parts written, all work in them; may be called again after a Ctrl-C."""
        self._hand_over()
        for future in [*self._queue, self._thread.submit(self._write)]:
            future.result()
        return self._parts

    def abandon(self) -> None:
        """Lets go of what is not written; what the thread has begun it brings to an end."""
        for future in self._queue:
            future.cancel()

    def _take(self, chunk: list[Predictions]) -> None:
        for answer in chunk:
            uris = answer.rows["uri"]
            self.problems += [f"{uris[i].as_py()}: {reason}" for i, reason in answer.failed.items()]
        chunk = [answer for answer in chunk if len(answer.good)]
        if not chunk:
            return
        rows = pa.concat_tables(
            [answer.rows.take(pa.array(answer.good)) if answer.failed else answer.rows for answer in chunk]
        )
        summary = softlabels.summarize(np.concatenate([answer.probs for answer in chunk]), self._keep)
        ids, splits = rows["image_id"].to_numpy(), rows["split"].to_pylist()
        labels = softlabels.table(summary, ids, self._run.generation, self._run.model, splits)
        for split in dict.fromkeys(splits):
            part = labels if set(splits) == {split} else labels.filter(pc.equal(labels["split"], split))
            self._waiting.setdefault(split, []).append(part)
        self.images += rows.num_rows
        if time.monotonic() - self._since > self._part_seconds:
            self._write()

    def _write(self) -> None:
        for split in list(self._waiting):
            name = f"part-{split}-{self._engine}-{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
            writer = PartWriter(self._run.folder / name, self._classes)
            try:
                writer.write(pa.concat_tables(self._waiting[split]))
                part = writer.finish()
                self._run.store.place.share([part])
                self._run.store.place.release([part])
                self._parts.append(part)
            except BaseException:
                writer.abandon()
                raise
            del self._waiting[split]
        self._since = time.monotonic()


def _engine_of(name: str) -> str:
    """The engine that computed a part, by its name; parts of the first version, which name none, are torch's."""
    fields = name.split("-")
    return fields[2] if len(fields) == 5 else "torch"
