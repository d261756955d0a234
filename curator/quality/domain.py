"""Pool images from elsewhere: sources that the teacher is unsure of, and images that are like no class.

    labels of a generation, images --sql/domain_sources.sql--> shares per source (folders and day)
                                   --sql/domain_images.sql---> images with the most spread probabilities
    table embeddings, of the weights that the model has now --mean of each class of the labeled split--> images far from
                                                                                                        all of them

What is usual is taken from images that are of the domain for sure, the holdout's or else the labeled ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curator import queries
from curator.curation import selection
from curator.curation.parameters import check_confidence
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

_ENOUGH = 20  # images, for one in twenty of them to be one
_BATCH = 50_000

Vectors = npt.NDArray[np.float32]


class Domain(NamedTuple):
    """What was found.

    Attributes:
        generation: Whose labels were looked at.
        usual: The entropy, in nats, above which it is called high.
        usual_of: Where that is from: holdout, labeled, or half the most that there can be.
        sources: Rows of sql/domain_sources.sql.
        images: Rows of sql/domain_images.sql.
        far: image_id, uri and cosine to the nearest class mean, of the images farthest from all; empty where the
            generation's model has no embeddings.
    """

    generation: int
    usual: float
    usual_of: str
    sources: list[dict[str, Any]]
    images: list[dict[str, Any]]
    far: list[dict[str, Any]]


def domain(
    store: Store, generation: int | None = None, depth: int = 1, min_confidence: float = 0.3, limit: int = 20
) -> Domain:
    """Looks for sources and images of another kind than the labeled ones.

    Args:
        store: The store.
        generation: Whose labels; the newest by default.
        depth: Folders of a path that make a source.
        min_confidence: Up to this a confidence is low.
        limit: Most images.

    Raises:
        InputError: The generation is unknown, or there is none, or the confidence is none.
    """
    check_confidence(min_confidence)
    with closing(store.connect()) as con:
        generation = selection.generation(con, generation)
        usual, usual_of = _usual(con, generation)
        values = {"generation": generation, "depth": depth, "min_confidence": min_confidence, "usual": usual}
        sources = queries.rows(con, queries.text("domain_sources"), **values)
        images = queries.rows(con, queries.text("domain_images"), generation=generation, limit=limit)
        return Domain(generation, usual, usual_of, sources, images, _far(con, generation, limit))


def _usual(con: duckdb.DuckDBPyConnection, generation: int) -> tuple[float, str]:
    for row in queries.rows(con, queries.text("domain_usual"), generation=generation):
        if row["images"] >= _ENOUGH:
            return row["entropy"], row["split"]
    classes = queries.rows(con, "select count(*) as n from stored_classes")[0]["n"]
    return math.log(classes) / 2, "half the most that there can be"


def _far(con: duckdb.DuckDBPyConnection, generation: int, limit: int) -> list[dict[str, Any]]:
    """The pool images whose embeddings are farthest from the mean of every class, the farthest first."""
    means = _means(con, generation)
    if means is None:
        return []
    ids, near = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for batch in _embeddings(con, generation, "unlabeled"):
        nearest = (_vectors(batch) @ means.T).max(axis=1)
        ids, near = np.append(ids, batch["image_id"].to_numpy()), np.append(near, nearest)
        first = np.lexsort((ids, near))[:limit]
        ids, near = ids[first], near[first]
    names = "select image_id, uri from stored_images where list_contains($ids, image_id)"
    uris = {row["image_id"]: row["uri"] for row in queries.rows(con, names, ids=ids.tolist())}
    return [
        {"image_id": number, "uri": uris.get(number), "cosine": round(cosine, 4)}
        for number, cosine in zip(ids.tolist(), near.tolist(), strict=True)
    ]


def _means(con: duckdb.DuckDBPyConnection, generation: int) -> Vectors | None:
    """The mean direction [classes, D] of the labeled images of each class that has any; None where there are none."""
    sums: dict[int, npt.NDArray[np.float64]] = {}
    for batch in _embeddings(con, generation, "labeled"):
        vectors, labels = _vectors(batch), batch["label"].to_numpy()
        for label in np.unique(labels):
            sums[int(label)] = sums.get(int(label), 0.0) + vectors[labels == label].sum(axis=0, dtype=np.float64)
    if not sums:
        return None
    return _unit(np.stack([sums[label] for label in sorted(sums)]).astype(np.float32))


def _embeddings(con: duckdb.DuckDBPyConnection, generation: int, split: str) -> Iterator[Any]:
    """Rows of sql/domain_embeddings.sql in tables."""
    query = queries.compose(queries.steps(*queries.TRUSTED), queries.text("domain_embeddings"))
    return queries.batches(con, query, _BATCH, generation=generation, split=split)


def _vectors(batch: Any) -> Vectors:
    """The embeddings [N, D] of a batch, at length 1."""
    values = np.frombuffer(b"".join(batch["vector"].to_pylist()), np.int8)
    return _unit(values.reshape(batch.num_rows, -1).astype(np.float32))


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    return found
