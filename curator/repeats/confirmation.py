"""Which pairs of pictures that a hash or an embedding puts near each other are copies: a look at both pictures.

    pairs, those of a group together --read, decoded, shrunk--> thumbnails --likeness--> copies, others, unseen

Only pictures of such pairs are read, most of them once: thumbnails are kept until so many others were needed since.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from curator import progress
from curator.pictures.decode import UnreadableImage
from curator.pictures.reading import Asked, Reader, place_of
from curator.repeats import likeness
from curator.repeats.likeness import Thumbnail
from curator.storage.roots import Root

BATCH = 1000  # pairs
SHOWN = 20
_KEPT = 2000  # thumbnails of 36 KB; while a batch is looked at, up to two more for each of its pairs
_NONE = pa.table(
    {
        "node": pa.array([], pa.int64()),
        "other": pa.array([], pa.int64()),
        "kind": pa.array([], pa.string()),
        "distance": pa.array([], pa.float32()),
    }
)


class Looked(NamedTuple):
    """What the looks showed.

    Attributes:
        kept: Pairs that are copies, and pairs of which a picture cannot be read: node, other, kind, distance.
        compared: Pairs of which both pictures were looked at.
        rejected: Of these, those that are no copies.
        unconfirmed: Pairs of which a picture cannot be read.
        problems: The first SHOWN of these pictures: image_id, uri, problem.
    """

    kept: pa.Table
    compared: int
    rejected: int
    unconfirmed: int
    problems: list[dict[str, Any]]


def look(pairs: Iterable[pa.Table], total: int, root: Root) -> Looked:
    """Looks at both pictures of each pair.

    Args:
        pairs: The answer of sql/duplicate_places.sql in tables of BATCH rows.
        total: How many pairs there are, for the progress.
        root: The folder that relative uris start from.
    """
    seen: OrderedDict[int, Thumbnail | str] = OrderedDict()  # the one used last at the end; text says why there is none
    kept: list[pa.Table] = []
    problems: dict[int, dict[str, Any]] = {}
    compared = rejected = unconfirmed = 0

    def read(asked: Asked, number: int) -> Thumbnail | str:
        try:
            return likeness.thumbnail(asked.take(number))
        except UnreadableImage as error:
            return str(error)

    def same(node: int, other: int, kind: str) -> bool | None:
        a, b = seen[node], seen[other]
        if isinstance(a, str) or isinstance(b, str):
            return None
        return likeness.are_copies(a, b, None if kind == "embedding" else kind == "mirror")

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        Reader(root) as reader,
        progress.progress("looking at pairs", total, "pairs") as advance,
    ):
        try:
            for table in pairs:
                nodes, others = table["node"].to_pylist(), table["other"].to_pylist()
                places = dict(zip(nodes, table["here"].to_pylist(), strict=True))
                places |= dict(zip(others, table["there"].to_pylist(), strict=True))
                new = [image_id for image_id in places if image_id not in seen]
                asked = reader.ask(place_of(places[image_id]) for image_id in new)
                seen.update(zip(new, pool.map(partial(read, asked), range(len(new))), strict=True))
                for image_id, place in places.items():
                    seen.move_to_end(image_id)
                    if isinstance(problem := seen[image_id], str) and len(problems) < SHOWN:
                        problems[image_id] = {"image_id": image_id, "uri": place["uri"], "problem": problem}
                verdicts = list(pool.map(same, nodes, others, table["kind"].to_pylist()))
                rejected += verdicts.count(False)
                unconfirmed += verdicts.count(None)
                compared += len(verdicts) - verdicts.count(None)
                table = table.drop_columns(["here", "there"])
                kept.append(table.filter(pa.array([verdict is not False for verdict in verdicts])))
                while len(seen) > _KEPT:
                    seen.popitem(last=False)
                advance(len(verdicts))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else Ctrl-C would wait for the whole batch
            raise
    rows = pa.concat_tables([_NONE, *kept])
    return Looked(rows, compared, rejected, unconfirmed, list(problems.values()))
