"""Keys of a recipe that exclude or need each other, what a change takes the place of, and recipes upon recipes."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import RECIPE

from curator.errors import InputError
from curator.networks import recipes
from curator.networks.recipes import Recipe

FINETUNE = "finetune={resolution=24, steps=5, learning_rate=1e-4}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE, "utf-8")
    return path


def mistakes(file: Path, changes: list[str]) -> list[str]:
    """The listed mistakes of the recipe after some changes, each without the place."""
    with pytest.raises(InputError) as caught:
        recipes.load(str(file), changes)
    return [line.strip().partition(": ")[2] for line in caught.value.what.splitlines()[1:]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["schedule.steps=9", "schedule.epochs=1"],
            "of 'schedule.steps' and 'schedule.epochs', both are given: give one",
        ),
        (
            ["schedule.warmup_steps=1", "schedule.warmup_epochs=1"],
            "of 'schedule.warmup_steps' and 'schedule.warmup_epochs', both are given: give one",
        ),
        (
            ["schedule.epochs=5", "schedule.warmup_epochs=5"],
            "'schedule.warmup_epochs' = 5: should be below the 5 epochs of the run",
        ),
        (["schedule.warmup_epochs=-1"], "'schedule.warmup_epochs' = -1: should be at least 0"),
        (["schedule.decay_rate=0.9"], "'schedule.decay_rate' has no effect without 'schedule.decay' = 'exponential'"),
        (["schedule.decay_epochs=2"], "'schedule.decay_epochs' has no effect without 'schedule.decay' = 'exponential'"),
        (["schedule.decay=exponential", "schedule.decay_rate=1.5"], "'schedule.decay_rate' = 1.5: should be at most 1"),
        (["schedule.pretrain=0.5"], "'schedule.pretrain' has no effect without 'schedule.mode' = 'pretrain'"),
        (["schedule.mode=pretrain", "schedule.pretrain=1"], "'schedule.pretrain' = 1: should be below 1"),
        (["schedule.mode=later"], "'schedule.mode' = 'later': should be 'joint' or 'pretrain'"),
        (
            ["schedule.mode=pretrain", "schedule.pseudo_ratio=0"],
            "'schedule.mode' = 'pretrain' does not go with 'schedule.pseudo_ratio' = 0",
        ),
        (
            ["noise.augment=pseudo", "schedule.pseudo_ratio=0"],
            "'noise.augment' = 'pseudo' does not go with 'schedule.pseudo_ratio' = 0",
        ),
        (["noise.mix=0.5"], "'noise.mix' has no effect without 'noise.mixup' or 'noise.cutmix' (0 to switch it off)"),
        (["noise.mixup=-1"], "'noise.mixup' = -1: should be at least 0"),
        (
            ["noise.cutmix=1", "schedule.labeled_batch=1"],
            "'noise.cutmix' mixes the images of a batch: 'schedule.labeled_batch' should be at least 2",
        ),
        (["optimizer.alpha=0.9"], "'optimizer.alpha' has no effect without 'optimizer.name' = 'rmsprop'"),
        (["optimizer.learning_rate=0"], "'optimizer.learning_rate' = 0: should be above 0"),
        (["optimizer.base_batch=0"], "'optimizer.base_batch' = 0: should be at least 1"),
        (["optimizer.clip=0"], "'optimizer.clip' = 0: should be above 0"),
        (["compute.accumulate=7"], "'compute.accumulate' = 7: should be at most 'schedule.labeled_batch' = 6"),
        (["compute.keep_checkpoints=0"], "'compute.keep_checkpoints' = 0: should be at least 1"),
        (
            ["compute.precision=half"],
            "'compute.precision' = 'half': should be 'auto', 'float32', 'bfloat16' or 'float16'",
        ),
        (["network.test_resolution=1"], "'network.test_resolution' = 1: should be at least 8"),
        (["network.arguments.pretrained=true"], "'network.arguments.pretrained': give 'network.pretrained' instead"),
        (
            ["network.architecture=a:b", "network.pretrained=true"],
            "'network.pretrained': only timm's architectures have weights to begin with",
        ),
        (["finetune=3"], "'finetune' = 3: should be a table"),
        (
            [FINETUNE, "finetune.epochs=1", "finetune.steps=1"],
            "of 'finetune.steps' and 'finetune.epochs', both are given: give one",
        ),
        ([FINETUNE, "finetune.learning_rate=-1"], "'finetune.learning_rate' = -1: should be above 0"),
        ([FINETUNE, "finetune.frozen=stem"], "'finetune.frozen' = 'stem': should be a list"),
        ([FINETUNE, "finetune.resolutoin=9"], "unknown key 'finetune.resolutoin'; did you mean 'finetune.resolution'?"),
    ],
)  # fmt: skip
def test_one_contradiction(file: Path, changes: list[str], told: str) -> None:
    assert mistakes(file, changes) == [told]


def test_an_empty_finetune_lacks_everything(file: Path) -> None:
    file.write_text(RECIPE + "[finetune]\n", "utf-8")
    with pytest.raises(InputError) as caught:
        recipes.load(str(file))
    line = len(RECIPE.splitlines()) + 1
    assert caught.value.what.splitlines()[1:] == [
        f"    line {line}: 'finetune.learning_rate' is missing",
        f"    line {line}: 'finetune.resolution' is missing",
        f"    line {line}: of 'finetune.steps' and 'finetune.epochs', neither is given: give one",
    ]


def test_a_base_batch_needs_a_rate(file: Path) -> None:
    file.write_text(RECIPE.replace("learning_rate = 3e-3", "base_batch = 64"), "utf-8")
    assert mistakes(file, []) == ["'optimizer.base_batch' needs the 'optimizer.learning_rate' of that batch"]


def test_a_change_takes_the_place_of_what_it_contradicts() -> None:
    _, recipe = recipes.load(
        "efficientnet-b0-student",
        ["schedule.warmup_steps=9", "schedule.steps=50", "schedule.decay=cosine", "optimizer.name=sgd"],
    )
    assert (recipe.schedule.warmup_epochs, recipe.warmup_steps(10**6)) == (None, 9)
    assert (recipe.schedule.epochs, recipe.steps(10**6)) == (None, 50)
    assert recipe.optimizer.alpha is None
    assert recipe.schedule.decay_rate == recipes.Schedule(labeled_batch=1).decay_rate


def test_finetune_is_switched_off_by_false() -> None:
    with_it = recipes.load("efficientnet-l2-teacher")[1]
    without = recipes.load("efficientnet-l2-teacher", ["finetune=false"])[1]
    assert with_it.finetune is not None
    assert without.finetune is None
    assert (with_it.network.test_resolution, without.network.test_resolution) == (800, 475)
    assert (with_it.test_crop, without.test_crop) == (0.9615, 0.9369)


def test_what_a_recipe_comes_to(file: Path) -> None:
    _, recipe = recipes.load(str(file))
    assert (recipe.learning_rate, recipe.finetune_rate, recipe.finetune_steps(100)) == (3e-3, 0.0, 0)
    assert (recipe.pretrain_steps(100), recipe.network.test_resolution, recipe.test_crop) == (0, 16, 1.0)
    changes = [
        "schedule.epochs=3", "schedule.warmup_epochs=0.5", "schedule.mode=pretrain", "schedule.pretrain=0.25",
        "optimizer.base_batch=24", "finetune={resolution=24, epochs=2, learning_rate=1e-3, labeled_batch=12}",
    ]  # fmt: skip
    _, recipe = recipes.load(str(file), changes)
    assert recipe.steps(60) == 30  # 3 passes of 10 batches of 6
    assert recipe.warmup_steps(60) == 5
    assert recipe.pretrain_steps(60) == 8  # a quarter of 30
    assert recipe.learning_rate == pytest.approx(3e-3 * 6 / 24)
    assert recipe.finetune_batch == 12
    assert recipe.finetune_steps(60) == 10
    assert recipe.finetune_rate == pytest.approx(1e-3 * 12 / 24)
    assert recipe.network.test_resolution == 24


def test_test_resolution_may_be_given(file: Path) -> None:
    assert recipes.load(str(file), [FINETUNE, "network.test_resolution=32"])[1].network.test_resolution == 32


def test_a_recipe_upon_another(file: Path, tmp_path: Path) -> None:
    (tmp_path / "upon.toml").write_text(
        'base = "mine.toml"\ntitle = "x"\n[schedule]\nepochs = 2\n[noise]\nflip = 0.0\n'
    )
    name, recipe = recipes.load(str(tmp_path / "upon.toml"), ["schedule.pseudo_ratio=5"])
    below = recipes.load(str(file))[1]
    assert (name, recipe.title, recipe.schedule.steps, recipe.schedule.epochs) == ("upon", "x", None, 2.0)
    assert (recipe.noise.flip, recipe.noise.crop_scale) == (0.0, below.noise.crop_scale)
    assert (recipe.optimizer, recipe.schedule.pseudo_ratio) == (below.optimizer, 5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('base = "nothing"', "there is no recipe 'nothing' (the base of 'upon.toml')"),
        ("base = 3", "the recipe 'upon.toml': 'base' = 3: should be text"),
        ('base = "upon.toml"', "the recipe 'upon.toml' is a base of itself (upon.toml -> upon.toml)"),
        (
            'base = "tiny-teacher"\n[noise]\nflop = 1',
            "    line 3: unknown key 'noise.flop'; did you mean 'noise.flip'?",
        ),
        (
            'base = "tiny-teacher"\n[schedule]\nsteps = 50',
            "    line 2: 'schedule.warmup_steps' = 60: should be below the 50 steps of the run",
        ),
    ],
)  # fmt: skip
def test_a_wrong_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("upon.toml").write_text(text, "utf-8")
    with pytest.raises(InputError) as caught:
        recipes.load("upon.toml")
    assert caught.value.what.splitlines()[-1] == told


def test_recipes_of_older_versions_are_read() -> None:
    """As the first version stored it, with none of the newer keys."""
    old = (
        '{"title":"t","seed":0,"max_failures":0.001,"network":{"architecture":"test_resnet","resolution":32,'
        '"test_crop":1.0,"arguments":{}},"noise":{"dropout":0.0,"drop_path":0.0,"randaugment_ops":0,'
        '"randaugment_magnitude":0.0,"operations":null,"crop_scale":[0.5,1.0],"crop_ratio":[0.75,1.3333],"flip":0.0,'
        '"cutout":0.0},"schedule":{"steps":600,"epochs":null,"labeled_batch":32,"pseudo_ratio":1,"warmup_steps":60,'
        '"decay":"cosine"},"optimizer":{"name":"adamw","learning_rate":0.003,"weight_decay":0.05,"momentum":0.9},'
        '"loss":{"form":"mean","label_smoothing":0.0},"average":{"decay":0.99,"warmup":true}}'
    )
    recipe = recipes.from_json(old)
    assert (recipe.network.test_resolution, recipe.finetune, recipe.noise.augment) == (32, None, "all")
    assert (recipe.schedule.mode, recipe.warmup_steps(1), recipe.learning_rate) == ("joint", 60, 3e-3)
    assert recipe.compute == recipes.Compute()


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(recipes.shipped()),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=3).filter(lambda key: key != "num_classes"),
        st.recursive(
            st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b c"]), inner, max_size=2)
            ),
            max_leaves=3,
        ),
        max_size=2,
    ),
)
def test_a_recipe_written_out_is_the_same_recipe(name: str, title: str, arguments: dict[str, object]) -> None:
    made = recipes.load(name)[1]
    recipe: Recipe = made.model_copy(
        update={"title": title, "network": made.network.model_copy(update={"arguments": arguments})}
    )
    text = recipes.to_toml(recipe)
    assert recipes.check(tomllib.loads(text), "written", text) == recipe
