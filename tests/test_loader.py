"""The loader: which images a step holds, with what targets, and what happens when one cannot be read."""

import shutil
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import CLASSES, picture, teach, world, write

from curator import manifests, softlabels
from curator.augment import Augmentation, augment
from curator.decode import decode
from curator.errors import CuratorError, InputError
from curator.images import add_images
from curator.labels import import_labels
from curator.loader import Batch, ManifestLoader, Rows
from curator.store import Store

PLAIN = Augmentation(size=16, scale=(1, 1), ratio=(1, 1), flip=0)
NOISY = Augmentation(size=16, scale=(0.3, 1), randaugment_ops=2, magnitude=9, cutout=0.3)
IMAGES, MANIFEST = 15, "m"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A world whose pool is labeled from outside: 9 images for class 0, 3 for class 1, one for class 2."""
    store = world(tmp_path_factory.mktemp("made"), labeled=5, pool=5, holdout=1)
    write_labels(store)
    manifests.build(store, MANIFEST, {"per_class": 12, "min_confidence": 0.3})
    manifests.build(store, "hard", {"per_class": 12, "min_confidence": 0.3, "targets": "hard"})
    return store


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    """A copy of it that a test may spoil."""
    shutil.copytree(made.root, tmp_path / "copy")
    return Store(tmp_path / "copy" / "store")


def write_labels(store: Store) -> dict[str, np.ndarray]:
    uris = [row["uri"] for row in store.rows("select uri from images where split = 'unlabeled' order by uri")]
    probs = {}
    for i, uri in enumerate(uris[:13]):
        label = 0 if i < 9 else 1 if i < 12 else 2
        rest = np.random.default_rng(i).dirichlet(np.ones(3)) * (0.5 - 0.02 * i)
        rest[label] += 1 - rest.sum()
        probs[uri] = rest.astype(np.float32)
    column = pa.array([p.tolist() for p in probs.values()], pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": list(probs), "probs": column}), store.root / "probs.parquet")
    import_labels(store, str(store.root / "probs.parquet"), 0, "outside")
    return probs


def loader(
    store: Store, manifest: str | None = MANIFEST, how: Augmentation = NOISY, **options: object
) -> ManifestLoader:
    streams = [(Rows.labeled(store), 4)]
    if manifest is not None:
        streams.append((Rows.manifest(store, manifest), 8))
    return ManifestLoader(store.root, streams, how, len(CLASSES), **options)  # type: ignore[arg-type]


def kept(batch: Batch) -> tuple[int, bytes, bytes, bytes, int, bytes]:
    """A batch's content, which the loader will overwrite."""
    arrays = (batch.images.numpy(), batch.targets.numpy(), batch.weight.numpy())
    images, targets, weight = (array.tobytes() for array in arrays)
    return batch.step, images, targets, weight, batch.labeled, batch.image_ids.tobytes()


def table(store: Store, name: str = MANIFEST) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(store.path / "manifests" / name).to_pylist()
    return rows


def test_every_row_counts_as_often_as_its_copies_in_one_pass(made: Store) -> None:
    copies = {row["image_id"]: row["copies"] for row in table(made)}
    assert sum(copies.values()) == 36  # type: ignore[arg-type]
    assert sorted(copies.values()) == [1] * 6 + [2] * 3 + [4] * 3 + [12]  # type: ignore[type-var]
    rows = Rows.manifest(made, MANIFEST)
    passes = [rows.at(np.arange(36 * i, 36 * (i + 1)), seed=0) for i in range(3)]
    for chosen in passes:
        assert Counter(rows.image_id[chosen].tolist()) == copies
    assert len({tuple(chosen) for chosen in passes}) == 3  # each pass has its own order
    assert not np.array_equal(passes[0], rows.at(np.arange(36), seed=1))


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


def test_a_batch_is_right_while_it_is_held_and_buffers_are_used_again(made: Store) -> None:
    expected = [kept(batch) for batch in loader(made, threads=1).batches(0, 20)]
    places = set()
    for batch in loader(made, threads=2).batches(0, 20):
        before = kept(batch)
        # the threads have time to run ahead as far as they may
        time.sleep(0.01)
        assert before == kept(batch) == expected[batch.step]
        places.add(batch.images.data_ptr())
    assert 1 < len(places) <= 4


def test_targets_are_the_manifests_soft_labels(made: Store) -> None:
    rows = {row["image_id"]: row for row in table(made)}
    for temperature in (1.0, 0.5, 2.0):
        for batch in loader(made, how=PLAIN, temperature=temperature).batches(0, 5):
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
    for batch in loader(made, "hard", temperature=0.5).batches(0, 5):
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


def test_without_a_manifest_there_are_labeled_rows_only(made: Store) -> None:
    batch = next(iter(loader(made, None).batches(0, 1)))
    assert (batch.labeled, len(batch.image_ids), tuple(batch.images.shape)) == (4, 4, (4, 16, 16, 3))


def test_unreadable_images_are_named_and_do_not_count(store: Store) -> None:
    uris = {row["uri"]: row["image_id"] for row in store.rows("select image_id, uri from images")}
    (store.root / "pool" / "0000.png").unlink()
    file = store.root / "labeled" / "disc" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    broken = {uris["pool/0000.png"], uris["labeled/disc/1.png"]}
    reader = loader(store, max_failures=0.1)
    seen = set()
    whole = loader(store_of(store), max_failures=0.1).batches(0, 10)
    for batch, other in zip(reader.batches(0, 10), whole, strict=True):
        assert np.array_equal(batch.image_ids, other.image_ids)
        for i, image_id in enumerate(batch.image_ids.tolist()):
            if image_id in broken:
                seen.add(image_id)
                assert batch.weight[i] == 0
                assert not batch.images[i].any()
            else:
                assert batch.weight[i] == 1
                assert np.array_equal(batch.images[i], other.images[i])
    assert seen == broken == set(reader.statistics.failures)
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
    assert not any(batch.weight.any() for batch in batches)


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


def test_twins_of_the_holdout_and_unreadable_images_never_appear(store: Store) -> None:
    twin = store.root / "labeled" / "bar" / "9.png"
    shutil.copy(store.root / "holdout" / "bar" / "0.png", twin)
    (store.root / "labeled" / "bar" / "8.png").write_bytes(b"\x89PNG no picture")
    done = add_images(store, str(store.root / "labeled"), "labeled")
    assert (done.added, done.unreadable, done.leaks) == (2, 1, 1)
    ids = {row["uri"]: row["image_id"] for row in store.rows("select image_id, uri from images")}
    rows = Rows.labeled(store)
    assert len(rows) == IMAGES
    assert {ids["labeled/bar/9.png"], ids["labeled/bar/8.png"]}.isdisjoint(rows.image_id.tolist())
    assert ids["labeled/bar/0.png"] in rows.image_id


def test_a_manifest_with_an_image_that_came_into_the_holdout_later_is_refused(store: Store) -> None:
    uri = next(row["uri"] for row in table(store) if row["label"] == 2)
    shutil.copy(store.root / str(uri), store.root / "holdout" / "square" / "9.png")
    assert add_images(store, str(store.root / "holdout"), "holdout").leaks == 1
    with pytest.raises(InputError, match=f"1 images of the manifest 'm' have the same bytes .* holdout since: {uri}"):
        Rows.manifest(store, MANIFEST)


def test_a_manifest_whose_files_are_gone_or_damaged(store: Store) -> None:
    folder = store.path / "manifests" / MANIFEST
    file = folder / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="the files of the manifest 'm' cannot be read") as caught:
        Rows.manifest(store, MANIFEST)
    assert "--as-of m" in caught.value.mend
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="the files of the manifest 'm' cannot be read"):
        teach(store, manifest=MANIFEST)
    with pytest.raises(InputError, match="there is no manifest 'mm'"):
        Rows.manifest(store, "mm")


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
    manifests.build(store, "m", {"per_class": 1, "min_confidence": 0.01})
    streams = [(Rows.labeled(store), 1), (Rows.manifest(store, "m"), 1)]
    batch = next(iter(ManifestLoader(store.root, streams, PLAIN, 25).batches(0, 1)))
    assert batch.targets[0].tolist() == [1.0] + [0.0] * 24
    target = batch.targets[1].numpy()
    assert target.sum() == pytest.approx(1, abs=1e-6)
    assert target[:20] == pytest.approx(probs[:20], rel=2**-6)
    assert target[20:] == pytest.approx(np.full(5, probs[20:].sum() / 5), rel=1e-2)


def test_a_row_weighs_what_the_manifest_says(store: Store) -> None:
    """Labeled rows weigh 1; softmatch's weights are spread below that."""
    built = manifests.build(store, "weighed", {"per_class": 3, "min_confidence": 0.0, "policy": "soft-weight"})
    weights = dict(zip(*pq.read_table(built.path, columns=["image_id", "weight"]).to_pydict().values(), strict=True))
    assert len(set(weights.values())) > 1
    streams = [(Rows.labeled(store), 2), (Rows.manifest(store, "weighed"), 6)]
    for batch in ManifestLoader(store.root, streams, PLAIN, len(store.classes())).batches(0, 3):
        assert batch.weight[:2].tolist() == [1, 1]
        assert batch.weight[2:].tolist() == [weights[int(i)] for i in batch.image_ids[2:]]


def test_nothing_to_train_on(tmp_path: Path) -> None:
    store = world(tmp_path, labeled=1, pool=1, holdout=1)
    empty = Store.create(tmp_path / "empty", CLASSES)
    assert len(Rows.labeled(store)) == 3
    with pytest.raises(InputError, match="there are no labeled images to train on"):
        Rows.labeled(empty)


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
    assert min(figures.read, figures.decode, figures.augment, figures.wait) > 0
