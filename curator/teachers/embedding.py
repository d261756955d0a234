"""Embeddings: what a model's last layer reads of each image, stored to find pictures that look alike.

    images without one, in batches --rank r takes every world-th--> features --8 bits--> one commit every half minute

It is a pass of its own behind labeling, so that images which are labeled already get theirs, whatever labeled them. A
run that is killed loses the work since its last commit; the next one goes on behind it.
"""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from curator import progress, queries
from curator.errors import InputError, suggestion
from curator.lock import alone
from curator.networks.inference import decoded
from curator.networks.network import Network, leave_a_core, load
from curator.ranks import join
from curator.schema import EMBEDDINGS, SPLITS
from curator.storage import additions
from curator.storage.store import Store

COMMIT_SECONDS = 30.0


class Embedded(NamedTuple):
    """What a run did, all ranks together."""

    model: str
    images: int
    already_there: int
    failed: int
    dimensions: int
    images_per_second: float


def embed(
    store: Store,
    model: str,
    splits: list[str] | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    device: str = "auto",
    commit_seconds: float = COMMIT_SECONDS,
) -> Embedded:
    """Stores the embedding of every image of the splits that has none of this model's weights.

    Args:
        store: The store.
        model: A registered model with weights.
        splits: All of them by default.
        batch_size: Images of a forward pass.
        threads: Threads that read and decode; one a core by default.
        device: Name of the device; "auto" is a GPU where there is one.
        commit_seconds: Work that a kill can lose at most, in seconds.

    Raises:
        InputError: The model or a split is unknown, or the network has no last linear layer.
        StoreError: Another run embeds with this model.
    """
    wanted = splits or list(SPLITS)
    for split in wanted:
        if split not in SPLITS:
            raise InputError(f"the split '{split}' is unknown{suggestion(split, SPLITS)}", ", ".join(SPLITS))
    with join(device) as ranks, ExitStack() as held:
        network, recipe, row = load(store, model)
        features = Features(network.to(ranks.device))
        leave_a_core()
        if ranks.first:
            additions.make(store, "embeddings")
            held.enter_context(alone(store.path / "embeddings" / f"by-{model}", f"embedding with '{model}'"))
        versions = ranks.gather(store.versions() if ranks.first else {})[0]
        key = {"model": model, "weights_hash": row["weights_hash"]}
        done = failed = 0
        began = since = time.monotonic()
        waiting: list[pa.Table] = []
        with closing(store.connect(versions)) as con:
            query = queries.text("unembedded")
            total = queries.rows(con, f"select count(*) as n from ({query})", splits=wanted, **key)[0]["n"]
            there = queries.rows(
                con,
                "select count(*) as n from stored_embeddings as e join stored_images as i on i.image_id = e.image_id"
                " where model = $model and weights_hash = $weights_hash and list_contains($splits, split)",
                splits=wanted,
                **key,
            )[0]["n"]
            tables = queries.batches(con, query, batch_size, splits=wanted, **key)
            share = itertools.islice(tables, ranks.rank, None, ranks.world)
            with (
                progress.progress(f"embedding with {model}", total) as advance,
                closing(decoded(recipe, store.root, share, threads)) as batches,
            ):
                for seen in batches:
                    failed += len(seen.failed)
                    if len(seen.good):
                        ids = seen.rows["image_id"].take(pa.array(seen.good))
                        waiting.append(_rows(ids, packed(features(seen.pixels)), key))
                        done += len(seen.good)
                    advance(seen.rows.num_rows * ranks.world)
                    if time.monotonic() - since > commit_seconds:
                        _commit(store, waiting)
                        waiting, since = [], time.monotonic()
                _commit(store, waiting)
        counts = ranks.gather((done, failed, features.dimensions))
        seconds = max(time.monotonic() - began, 1e-9)
        images = sum(count[0] for count in counts)
        return Embedded(
            model, images, there, sum(c[1] for c in counts), max(c[2] for c in counts), round(images / seconds, 1)
        )


class Features:
    """What a network's last linear layer reads.

    Args:
        network: In eval mode.

    Raises:
        InputError: It has no such layer.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self.dimensions = 0
        self._seen = torch.empty(0)
        layers = [layer for layer in network.body.modules() if isinstance(layer, nn.Linear)]
        if not layers:
            raise InputError(
                "the network has no linear layer, whose input would be the embedding", "leave --embeddings out"
            )
        layers[-1].register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, read: tuple[Any, ...]) -> None:
        self._seen = read[0]

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features float32 [B, D] of images uint8 [B, H, W, 3]."""
        with torch.inference_mode():
            self._network(torch.from_numpy(images).to(self._network.scale.device))
        found: npt.NDArray[np.float32] = self._seen.flatten(1).float().cpu().numpy()
        self.dimensions = found.shape[1]
        return found


def packed(features: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """Features of 8 bits [B, D]; a cosine of two changes by about 0.001."""
    largest = np.abs(features).max(axis=1, keepdims=True)
    return np.rint(features * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)


def _rows(ids: pa.ChunkedArray, vectors: npt.NDArray[np.int8], key: dict[str, str]) -> pa.Table:
    columns = {"image_id": ids, **{name: pa.repeat(value, len(vectors)) for name, value in key.items()}}
    columns["vector"] = pa.array([vector.tobytes() for vector in vectors], pa.binary())
    return pa.table(columns, EMBEDDINGS.schema)


def _commit(store: Store, waiting: list[pa.Table]) -> None:
    if waiting:
        additions.append(store, "embeddings", pa.concat_tables(waiting))
