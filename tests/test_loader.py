"""The loader: which images a step holds, with what targets, and what happens when one cannot be read."""

import json
import shutil
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import CLASSES, judged, picture, world, write

from curator.curation import building
from curator.delivery import packing
from curator.delivery.shards import Form
from curator.errors import CuratorError, InputError
from curator.generations import softlabels
from curator.generations.labels import import_labels
from curator.loading.batches import Batch
from curator.loading.loader import ManifestLoader
from curator.loading.rows import Rows
from curator.noise.augment import Augmentation, augment
from curator.pictures.decode import decode
from curator.pictures.images import add_images
from curator.pictures.reading import read_bytes
from curator.storage.store import Store

PLAIN = Augmentation(size=16, scale=(1, 1), ratio=(1, 1), flip=0)
NOISY = Augmentation(size=16, scale=(0.3, 1), randaugment_ops=2, magnitude=9, cutout=0.3)
IMAGES, MANIFEST = 15, "m"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return judged(tmp_path_factory.mktemp("made"))


def loader(
    store: Store, manifest: str | None = MANIFEST, how: Augmentation = NOISY, **options: object
) -> ManifestLoader:
    streams = [(Rows.labeled(store), 4)]
    if manifest is not None:
        streams.append((Rows.manifest(store, manifest), 8))
    return ManifestLoader(store.root, streams, how, len(CLASSES), **options)  # type: ignore[arg-type]


def kept(batch: Batch) -> tuple[int, bytes, bytes, bytes, int, bytes]:
    """A batch's content."""
    arrays = (batch.images.numpy(), batch.targets.numpy(), batch.weight.numpy())
    images, targets, weight = (array.tobytes() for array in arrays)
    return batch.step, images, targets, weight, batch.labeled, batch.image_ids.tobytes()


def table(store: Store, name: str = MANIFEST) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(store.path / "manifests" / name).to_pylist()
    return rows


def test_two_passes_of_batches_hold_every_row_exactly(made: Store) -> None:
    # 9 steps of 4 and 8 rows: 36 of 15 labeled images, which is 2 passes and 6 more, and 72 = 2 passes of the manifest
    labeled: Counter[int] = Counter()
    pseudo: Counter[int] = Counter()
    for batch in loader(made, threads=2).batches(0, 9):
        assert batch.labeled == 4
        labeled.update(batch.image_ids[:4].tolist())
        pseudo.update(batch.image_ids[4:].tolist())
    assert pseudo == {row["image_id"]: 2 * row["copies"] for row in table(made)}  # type: ignore[operator]
    ids = {row["image_id"] for row in made.rows("select image_id from images where split = 'labeled'")}
    assert set(labeled) == ids
    assert sorted(Counter(labeled.values()).items()) == [(2, 9), (3, 6)]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_batches_are_the_same_bit_for_bit(made: Store, threads: int) -> None:
    expected = [kept(batch) for batch in loader(made, threads=3).batches(0, 12)]
    assert [kept(batch) for batch in loader(made, threads=threads).batches(0, 12)] == expected
    assert [kept(batch) for batch in loader(made, threads=threads).batches(7, 12)] == expected[7:]
    assert [kept(batch) for batch in loader(made, threads=threads, cache_bytes=0).batches(0, 12)] == expected
    assert [kept(batch) for batch in loader(made, threads=threads, cache_bytes=5000).batches(0, 12)] == expected
    assert [kept(batch) for batch in loader(made, threads=threads, seed=1).batches(0, 12)] != expected
    assert len({images for _, images, *_ in expected}) == 12


def test_a_batch_stays_right_while_it_is_held_and_memory_is_used_again(made: Store) -> None:
    expected = [kept(batch) for batch in loader(made, threads=1).batches(0, 30)]
    places, held = set(), []
    for batch in loader(made, threads=2).batches(0, 30):
        before = kept(batch)
        time.sleep(0.005)  # the threads have time to run ahead as far as they may
        assert before == kept(batch) == expected[batch.step]
        places.add(batch.images.data_ptr())
        if batch.step in (3, 7):  # a view of a part is enough to keep the memory of a batch
            held.append((batch.step, batch.images[2:4]))
    assert 1 < len(places) < 10
    for step, view in held:
        assert view.numpy().tobytes() == expected[step][1][2 * 768 : 4 * 768]
    everything = list(loader(made, threads=2).batches(0, 30))
    assert [kept(batch) for batch in everything] == expected


@pytest.mark.parametrize("world", [2, 3, 5, 8])
def test_the_ranks_share_each_batch(made: Store, world: int) -> None:
    streams = [(Rows.labeled(made), 4), (Rows.manifest(made, MANIFEST), 8)]

    def part(rank: int, world: int) -> list[Batch]:
        reader = ManifestLoader(made.root, streams, NOISY, len(CLASSES), threads=2, rank=rank, world=world)
        return list(reader.batches(0, 7))

    whole = part(0, 1)
    parts = [part(rank, world) for rank in range(world)]
    for batch in whole:
        mine = [part[batch.step] for part in parts]
        assert sum(part.labeled for part in mine) == batch.labeled
        for stream in (slice(None, 4), slice(4, None)):
            for name in ("images", "targets", "weight", "image_ids"):
                cut = [getattr(p, name)[: p.labeled] if stream.stop else getattr(p, name)[p.labeled :] for p in mine]
                assert np.array_equal(np.concatenate(cut), getattr(batch, name)[stream])


@pytest.mark.parametrize(("batch_size", "labeled_batch"), [(8, 0), (7, 0), (10, 3), (36, 5), (50, 1)])
def test_a_pass_holds_every_copy_and_labeled_rows_at_their_ratio(
    made: Store, batch_size: int, labeled_batch: int
) -> None:
    copies = {row["image_id"]: row["copies"] for row in table(made)}
    reader = ManifestLoader.open(
        made, MANIFEST, size=16, batch_size=batch_size, labeled_batch=labeled_batch, augmentation=NOISY
    )
    labeled = 0
    for epoch in range(3):
        assert (reader.epoch, reader.position) == (epoch, 0)
        pseudo: Counter[int] = Counter()
        batches = 0
        for batches, batch in enumerate(reader, start=1):
            assert batch.step == batches - 1
            labeled += batch.labeled
            pseudo.update(batch.image_ids[batch.labeled :].tolist())
        assert pseudo == copies
        assert batches == len(reader) == -(-36 // batch_size)
    assert labeled == 3 * 36 * labeled_batch // batch_size


def test_stopping_anywhere_changes_nothing(made: Store) -> None:
    """After any batch, with other numbers of threads and ranks."""

    streams = [(Rows.labeled(made), 2), (Rows.manifest(made, MANIFEST), 7)]

    def begin(**options: int) -> ManifestLoader:
        return ManifestLoader(made.root, streams, NOISY, len(CLASSES), **options)  # type: ignore[arg-type]

    never = begin(threads=2)
    expected = [kept(batch)[1:] for _ in range(2) for batch in never]
    assert len(expected) == 12
    for stop in range(12):
        first = begin(threads=1)
        done = []
        while len(done) < stop:
            for batch in first:
                done.append(kept(batch)[1:])
                if len(done) == stop:
                    break
        state = json.loads(json.dumps(first.state_dict()))
        parts = []
        for rank in range(2):
            second = begin(threads=3, rank=rank, world=2)
            second.load_state_dict(state)
            parts.append([batch for _ in range(2 - state["epoch"]) for batch in second])
        rest = [join(*pair) for pair in zip(*parts, strict=True)]
        assert done + rest == expected


def join(*parts: Batch) -> tuple[object, ...]:
    """The content of a batch that ranks made in parts, but for its number."""
    joined = []
    for name in ("images", "targets", "weight", "image_ids"):
        front = [np.asarray(getattr(part, name))[: part.labeled] for part in parts]
        joined.append(np.concatenate(front + [np.asarray(getattr(part, name))[part.labeled :] for part in parts]))
    images, targets, weight, ids = (array.tobytes() for array in joined)
    return images, targets, weight, sum(part.labeled for part in parts), ids


def test_a_state_belongs_to_its_rows_and_seed(made: Store) -> None:
    state = ManifestLoader.open(made, MANIFEST, size=16, batch_size=7).state_dict()
    for other in (
        ManifestLoader.open(made, "hard", size=16, batch_size=7),
        ManifestLoader.open(made, MANIFEST, size=16, batch_size=7, seed=1),
    ):
        with pytest.raises(InputError, match="same manifest and seed"):
            other.load_state_dict(state)


def test_options_that_make_no_sense(made: Store) -> None:
    with pytest.raises(InputError, match="there is no rank 2 among 2"):
        loader(made, rank=2, world=2)
    for options, what in (
        ({"batch_size": 0}, "batches of 0 rows for 1 ranks"),
        ({"batch_size": 2, "world": 4}, "batches of 2 rows for 4 ranks"),
        ({"batch_size": -1}, "batch size 1 is -1"),
        ({"batch_size": 2.5}, r"batch size 1 is 2\.5"),
        ({"batch_size": "16"}, "batch size 1 is '16'"),
        ({"batch_size": 8, "labeled_batch": -3}, "batch size 1 is -3"),
        ({"batch_size": 8, "threads": 0}, "threads are 0"),
        ({"batch_size": 8, "threads": -1}, "threads is -1"),
        ({"batch_size": 8, "max_failures": float("nan")}, "max_failures is nan"),
        ({"batch_size": 8, "max_failures": None}, "max_failures is None"),
        ({"batch_size": 8, "augmentation": Augmentation(17)}, "images of 17 px, not 16"),
    ):
        with pytest.raises(InputError, match=what):
            ManifestLoader.open(made, MANIFEST, size=16, **options)  # type: ignore[arg-type]


def test_targets_are_the_manifests_soft_labels(made: Store) -> None:
    rows = {row["image_id"]: row for row in table(made)}
    for temperature in (1.0, 0.5, 2.0):
        streams = [(Rows.labeled(made), 4), (replace(Rows.manifest(made, MANIFEST), temperature=temperature), 8)]
        for batch in ManifestLoader(made.root, streams, PLAIN, 3).batches(0, 5):
            for image_id, target in zip(batch.image_ids[4:].tolist(), batch.targets.numpy()[4:], strict=True):
                row = rows[image_id]
                classes, probs = np.array([row["top_classes"]]), np.array([row["top_probs"]], np.float32)
                tail = np.array([row["tail"]], np.float32)
                expected = softlabels.expand(classes, probs, tail, 3, temperature)[0]
                assert np.array_equal(target, expected)
                powers = np.zeros(3)
                powers[row["top_classes"]] = np.array(row["top_probs"]) ** (1 / temperature)
                assert target == pytest.approx(powers / powers.sum(), abs=1e-6)


def test_labeled_and_hard_targets_are_one_hot(made: Store) -> None:
    truth = {row["image_id"]: row["label"] for row in made.rows("select image_id, label from images")}
    chosen = {row["image_id"]: row["label"] for row in table(made, "hard")}
    for batch in loader(made, "hard").batches(0, 5):
        for i, (image_id, target) in enumerate(zip(batch.image_ids.tolist(), batch.targets.tolist(), strict=True)):
            label = truth[image_id] if i < 4 else chosen[image_id]
            assert target == [float(c == label) for c in range(3)]


def test_images_are_the_augmented_files(made: Store) -> None:
    uris = {row["image_id"]: row["uri"] for row in made.rows("select image_id, uri from images")}
    out = np.empty((16, 16, 3), np.uint8)
    for batch in loader(made, how=PLAIN).batches(0, 3):
        for image_id, image in zip(batch.image_ids.tolist(), batch.images.numpy(), strict=True):
            augment(decode((made.root / uris[image_id]).read_bytes()), PLAIN, np.zeros(37), out)
            assert np.array_equal(image, out)


def test_packed_pictures_are_read_where_they_are(store: Store) -> None:
    packing.pack(store, MANIFEST, Form(16, 90))
    packed = {row["image_id"]: row for row in store.rows("select * from packed")}
    out = np.empty((16, 16, 3), np.uint8)

    def first(**options: object) -> Batch:
        sizes = {"size": 16, "batch_size": 8, "labeled_batch": 4, "augmentation": PLAIN}
        return next(iter(ManifestLoader.open(store, MANIFEST, **sizes, **options)))  # type: ignore[arg-type]

    batch = first()
    for image_id, image in zip(batch.image_ids.tolist(), batch.images.numpy(), strict=True):
        row = packed[image_id]
        data = read_bytes(store.path, row["shard"], row["shard"], row["byte_offset"], row["byte_length"])
        augment(decode(data), PLAIN, np.zeros(37), out)
        assert np.array_equal(image, out)
    originals = first(pack=None)
    assert np.array_equal(originals.image_ids, batch.image_ids)
    assert not np.array_equal(originals.images, batch.images)
    assert np.array_equal(first(pack="16-q90").images, batch.images)
    with pytest.raises(InputError, match="there is no pack '16-q91'; did you mean '16-q90'"):
        first(pack="16-q91")
    shutil.rmtree(store.path / "packs")
    assert np.array_equal(first().images, originals.images)


def test_without_a_manifest_there_are_labeled_rows_only(made: Store) -> None:
    batch = next(iter(loader(made, None).batches(0, 1)))
    assert (batch.labeled, len(batch.image_ids), tuple(batch.images.shape)) == (4, 4, (4, 16, 16, 3))


def test_an_unreadable_image_is_named_and_leaves_its_batch(store: Store) -> None:
    uris = {row["uri"]: row["image_id"] for row in store.rows("select image_id, uri from images")}
    (store.root / "pool" / "0000.png").unlink()
    file = store.root / "labeled" / "disc" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    broken = {uris["pool/0000.png"], uris["labeled/disc/1.png"]}
    reader = loader(store, max_failures=0.1)
    seen, images = set(), 0
    whole = loader(store_of(store), max_failures=0.1).batches(0, 10)
    for batch, other in zip(reader.batches(0, 10), whole, strict=True):
        left = [i for i, image_id in enumerate(other.image_ids.tolist()) if image_id not in broken]
        seen |= {*other.image_ids.tolist()} & broken
        assert batch.image_ids.tolist() == other.image_ids[left].tolist()
        assert batch.labeled == sum(i < other.labeled for i in left)
        for name in ("images", "targets", "weight"):
            assert np.array_equal(getattr(batch, name), getattr(other, name)[left])
        images += len(batch.images)
    assert seen == broken == set(reader.statistics.failures)
    assert reader.statistics.images == images
    assert reader.statistics.failures[uris["pool/0000.png"]] == "pool/0000.png: No such file or directory"
    assert reader.statistics.failures[uris["labeled/disc/1.png"]].startswith("labeled/disc/1.png: ")


def store_of(store: Store) -> Store:
    """The same store before a test broke its pictures: they are made anew from their seeds in another root."""
    root = store.root.with_name("whole")
    shutil.copytree(store.root, root)
    write(root / "pool" / "0000.png", picture(0, 2000))
    write(root / "labeled" / "disc" / "1.png", picture(1, 1))
    return Store(root / "store")


def test_too_many_unreadable_images_stop_the_run(store: Store) -> None:
    shutil.rmtree(store.root / "pool")
    with pytest.raises(CuratorError, match=r"more than the budget of 2: pool/\d+\.png: No such file") as caught:
        list(loader(store, max_failures=0.1).batches(0, 10))  # 10 % of 28 rows
    assert "max_failures" in caught.value.mend


def test_one_unreadable_image_is_within_any_budget(store: Store) -> None:
    (store.root / "pool" / "0000.png").unlink()
    assert len([batch.step for batch in loader(store, max_failures=0.0).batches(0, 10)]) == 10


def test_a_batch_of_unreadable_images_only(store: Store) -> None:
    for folder in ("pool", "labeled"):
        shutil.rmtree(store.root / folder)
    batches = list(loader(store, max_failures=1.0).batches(0, 2))
    assert [(len(batch.images), batch.labeled) for batch in batches] == [(0, 0)] * 2


def test_pictures_in_shards(tmp_path: Path) -> None:
    """The same pictures as files and in tars give the same batches, but for their ids."""
    files = world(tmp_path / "a", labeled=3, pool=0, holdout=0)
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "pictures.tar", "w") as tar:
        for file in sorted((tmp_path / "a" / "labeled").rglob("*.png")):
            tar.add(file, file.relative_to(tmp_path / "a" / "labeled").as_posix())
    shards = Store.create(tmp_path / "b" / "store")
    assert add_images(shards, str(tmp_path / "b" / "pictures.tar"), "labeled").added == 9

    def pictures(store: Store) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        reader = loader(store, None, PLAIN)
        for batch in reader.batches(0, 9):
            assert batch.weight.all()
            for image, target in zip(batch.images.numpy(), batch.targets.numpy(), strict=True):
                found[image.tobytes()] = int(target.argmax())
        assert not reader.statistics.failures
        return found

    assert len(pictures(files)) == 9
    assert pictures(files) == pictures(shards)


def test_the_tail_is_spread_over_the_classes_that_were_cut(tmp_path: Path) -> None:
    """25 classes, of which 20 are kept: the other five share the rest."""
    write(tmp_path / "pool" / "0.png", picture(0, 0))
    write(tmp_path / "labeled" / "c00" / "0.png", picture(1, 0))
    names = [f"c{i:02d}" for i in range(25)]
    store = Store.create(tmp_path / "store", names)
    add_images(store, str(tmp_path / "labeled"), "labeled")
    add_images(store, str(tmp_path / "pool"), "unlabeled")
    probs = np.arange(25, 0, -1) ** 2.0
    probs = (probs / probs.sum()).astype(np.float32)
    column = pa.array([probs.tolist()], pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": ["pool/0.png"], "probs": column}), tmp_path / "probs.parquet")
    import_labels(store, str(tmp_path / "probs.parquet"), 0, "outside")
    building.build(store, "m", {"per_class": 1, "min_confidence": 0.01})
    streams = [(Rows.labeled(store), 1), (Rows.manifest(store, "m"), 1)]
    batch = next(iter(ManifestLoader(store.root, streams, PLAIN, 25).batches(0, 1)))
    assert batch.targets[0].tolist() == [1.0] + [0.0] * 24
    target = batch.targets[1].numpy()
    assert target.sum() == pytest.approx(1, abs=1e-6)
    assert target[:20] == pytest.approx(probs[:20], rel=2**-6)
    assert target[20:] == pytest.approx(np.full(5, probs[20:].sum() / 5), rel=1e-2)


def test_a_row_weighs_what_the_manifest_says(store: Store) -> None:
    """Labeled rows weigh 1; softmatch's weights are spread below that."""
    built = building.build(store, "weighed", {"per_class": 3, "min_confidence": 0.0, "policy": "soft-weight"})
    weights = dict(zip(*pq.read_table(built.path, columns=["image_id", "weight"]).to_pydict().values(), strict=True))
    assert len(set(weights.values())) > 1
    streams = [(Rows.labeled(store), 2), (Rows.manifest(store, "weighed"), 6)]
    for batch in ManifestLoader(store.root, streams, PLAIN, len(store.classes())).batches(0, 3):
        assert batch.weight[:2].tolist() == [1, 1]
        assert batch.weight[2:].tolist() == [weights[int(i)] for i in batch.image_ids[2:]]


def test_leaving_in_the_middle_ends_the_threads(made: Store) -> None:
    import threading

    batches = loader(made, threads=2).batches(0, 1000)
    next(batches)
    assert any(thread.name.startswith("loader") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("loader") for thread in threading.enumerate())


def test_statistics_count_what_was_made(made: Store) -> None:
    reader = loader(made, threads=2)
    assert len([batch.step for batch in reader.batches(0, 30)]) == 30
    figures = reader.statistics
    assert figures.images == 30 * 12
    assert min(figures.read, figures.decode, figures.augment, figures.collate, figures.wait) > 0
    assert sum(figures.shares.values()) == pytest.approx(1)
