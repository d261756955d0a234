"""Networks: normalisation inside, mistakes told before anything is trained, weights that are what they were."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import Answer
from pictures import COLOURS, RECIPE, teach, weights_hash, world
from safetensors.torch import load_file
from timm.data import create_transform
from torch import nn

from curator.errors import InputError
from curator.networks import network, recipes
from curator.storage import additions
from curator.storage.store import Store


def recipe(*changes: str, folder: Path) -> recipes.Recipe:
    file = folder / "recipe.toml"
    file.write_text(RECIPE, "utf-8")
    return recipes.load(str(file), list(changes))[1]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A world with a teacher that had one step."""
    store = world(tmp_path_factory.mktemp("taught"), labeled=2, pool=1, holdout=0)
    teach(store, "schedule.steps=1")
    return store


@pytest.fixture
def store(taught: Store, tmp_path: Path) -> Store:
    """A copy of it that a test may spoil."""
    shutil.copytree(taught.root, tmp_path / "copy")
    return Store(tmp_path / "copy" / "store")


@pytest.mark.parametrize("architecture", ["test_resnet", "resnet18", "tf_efficientnet_b0"])
def test_normalisation_is_timms(architecture: str, tmp_path: Path) -> None:
    made = network.build(recipe(f"network.architecture={architecture}", "network.resolution=32", folder=tmp_path), 3)
    made.eval()
    config = timm.create_model(architecture).default_cfg
    theirs = create_transform(32, mean=config["mean"], std=config["std"], crop_pct=1.0, is_training=False)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    from PIL import Image

    with torch.inference_mode():
        expected = made.body(torch.stack([theirs(Image.fromarray(image)) for image in pixels]))
        ours = made(torch.from_numpy(pixels))
    assert ours.shape == (2, 3)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_recipes_noise_reaches_the_network(tmp_path: Path) -> None:
    plain = network.build(recipe(folder=tmp_path), 3)
    noisy = network.build(recipe("noise.dropout=0.3", "noise.drop_path=0.2", folder=tmp_path), 3)
    assert plain.body.drop_rate == 0
    assert noisy.body.drop_rate == 0.3
    drops = [m.drop_prob for m in noisy.modules() if type(m).__name__ == "DropPath"]
    assert drops == sorted(drops)
    assert drops[-1] == pytest.approx(0.2)
    assert not [m for m in plain.modules() if type(m).__name__ == "DropPath"]


def test_the_seed_gives_the_weights(tmp_path: Path) -> None:
    def weights(*changes: str) -> torch.Tensor:
        return torch.cat([p.flatten() for p in network.build(recipe(*changes, folder=tmp_path), 3).parameters()])

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights("seed=1"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["network.architecture=test_resnt"], "'test_resnt' is unknown; did you mean 'test_resnet'?"),
        (["network.architecture=test_resnet.nothing"], "Invalid pretrained tag"),
        (["network.arguments.colour=3"], "{'colour': 3} (ResNet.__init__() got an unexpected keyword argument"),
        (["network.arguments.block=3"], "'test_resnet' cannot be made"),
        (["network.architecture=test_vit", "network.resolution=33"], "at 33 pixels and with no arguments (Input"),
        (["network.architecture=no.such:thing"], "No module named 'no'"),
        (["network.architecture=collections:thing"], "has no attribute 'thing'"),
        (["network.architecture=collections:Counter"], "'collections:Counter' cannot be made"),
        (["network.architecture=:x"], "Empty module name"),
        (["network.architecture=own_networks:wrong_count"], "it answers two pictures with (2, 7) and not (2, 3)"),
    ],
)
def test_networks_that_cannot_be_made(
    changes: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_networks(tmp_path, monkeypatch)
    with pytest.raises(InputError) as caught:
        network.build(recipe(*changes, folder=tmp_path), 3)
    assert told in caught.value.what
    assert caught.value.mend


def test_the_command_line_suggests_an_architecture(store: Store, curator: Callable[..., Answer]) -> None:
    file = store.root / "recipe.toml"
    answer = curator("train", "--recipe", file, "--set", "network.architecture=resnet81", "--store", store.path)
    assert answer.code == 2
    assert answer.out == ""
    assert "the architecture 'resnet81' is unknown; did you mean 'resnet18'?" in answer.err
    assert "mend: " in answer.err
    assert not (store.path / "models" / "g0-recipe").exists()


def own_networks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's own with architectures."""
    (folder / "own_networks.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes, width, tied=False, drop_rate=0.0):\n"
        "        super().__init__()\n"
        "        self.a, self.drop = torch.nn.Linear(3, width), torch.nn.Dropout(drop_rate)\n"
        "        self.b = torch.nn.Linear(width, num_classes)\n"
        "        if tied:\n"
        "            self.c = self.a\n"
        "    def forward(self, x):\n"
        "        return self.b(self.drop(torch.relu(self.a(x.mean(dim=(2, 3))))))\n"
        "def small(num_classes, **arguments):\n"
        "    return Net(num_classes, **{'width': 8} | arguments)\n"
        "def wrong_count(num_classes):\n"
        "    return Net(7, 8)\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(folder)


def test_an_architecture_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_networks(tmp_path, monkeypatch)
    changes = ["network.architecture=own_networks:small", "network.arguments.width=5", "noise.dropout=0.4"]
    made = network.build(recipe(*changes, folder=tmp_path), 3)
    assert made.body.a.out_features == 5
    assert made.body.drop.p == 0.4
    images = torch.full((1, 16, 16, 3), 255, dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    made.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made(images)
    assert torch.allclose(seen[0], torch.ones(1, 3, 16, 16))  # mean and std are 0.5


def test_an_own_architecture_trains_and_loads_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    own_networks(store.root, monkeypatch)
    teach(
        store, "schedule.steps=2", "network.architecture=own_networks:small", "network.arguments.tied=true", name="own"
    )
    loaded, _, row = network.load(store, "own")
    assert row["generation"] == 0
    assert torch.equal(loaded.body.a.weight, loaded.body.c.weight)


def test_save_and_load(store: Store) -> None:
    loaded, plan, row = network.load(store, "teacher")
    assert not loaded.training
    assert plan.network.architecture == "test_resnet"
    path = store.path / row["weights"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["weights_hash"] == weights_hash(store, "teacher")
    again = store.root / "again.safetensors"
    assert network.save(loaded, again) == row["weights_hash"]
    assert path.stat().st_mode & 0o777 == 0o644
    kept = load_file(path)
    state = loaded.state_dict()
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], state[name]) for name in kept)
    assert isinstance(loaded, nn.Module)
    colours = torch.tensor(COLOURS, dtype=torch.uint8)[:, None, None].expand(-1, 16, 16, -1)
    with torch.inference_mode():
        assert torch.equal(loaded(colours), network.load(store, "teacher")[0](colours))


def test_weights_that_changed_on_the_disk_are_refused(store: Store, curator: Callable[..., Answer]) -> None:
    path = store.path / "models" / "teacher" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="are not those that 'teacher' was registered with"):
        network.load(store, "teacher")
    answer = curator("label", "--model", "teacher", "--store", store.path)
    assert answer.code == 2
    assert "sha256" in answer.err
    path.unlink()
    with pytest.raises(InputError, match="are missing at"):
        network.load(store, "teacher")


def test_models_without_weights_and_unknown_ones(curator: Callable[..., Answer], store: Store) -> None:
    import datetime as dt

    import pyarrow as pa

    from curator.schema import MODELS

    row = {"model": "outside", "generation": 3, "parents": [], "created_at": dt.datetime.now(dt.UTC)}
    additions.append(store, "models", pa.Table.from_pylist([row], MODELS.schema))
    for command in ("label", "evaluate"):
        answer = curator(command, "--model", "outside", "--store", store.path)
        assert answer.code == 2
        assert "'outside' was named by an import and has no weights" in answer.err
        answer = curator(command, "--model", "techer", "--store", store.path)
        assert answer.code == 2
        assert "there is no model 'techer'; did you mean 'teacher'?" in answer.err
