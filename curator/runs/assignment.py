"""What a run is to train: rows in phases, the network that it begins with, its name, generation and parents.

    recipe, manifest, --init -> network, name, generation, parents
    labeled rows, as the reviews of one version left them (+ rows of a manifest) -> phases
         +-> identity: what a resumed run must have in common with its checkpoint

Nothing is written here, and all mistakes that can be found before the first step are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from curator.curation import manifests
from curator.delivery import packs
from curator.errors import InputError
from curator.loading.rows import Fold, Rows
from curator.names import check_name
from curator.networks import network
from curator.networks.recipes import Recipe
from curator.runs import phases
from curator.runs.phases import Phase
from curator.storage.store import Store, Versions


def expect_usable(store: Store, recipe: Recipe, manifest: str | None) -> int:
    """Makes sure that a store has classes to learn, and the recipe a place for images of the manifest.

    Returns:
        C, how many classes there are.

    Raises:
        InputError: There are none, or the recipe takes none of the manifest.
    """
    classes = len(store.classes())
    if not classes:
        raise InputError("the store has no classes yet", "curator add-images FOLDER --split labeled")
    if manifest is not None and not recipe.schedule.pseudo_ratio and not recipe.untrained:
        raise InputError("the recipe takes no pseudo-labeled images", "--set schedule.pseudo_ratio=1")
    return classes


class Assignment:
    """What a run is to train, see `training.train` for the arguments. `read` gives it the rows.

    Attributes:
        classes: C.
        rows: Labeled ones, then those of the manifest if there is one; none where nothing is learned.
        phases: In their order.
        steps: Of all phases.
        epoch: Steps of a pass over the labeled rows.
        network: The one that the run begins with, on the CPU.
        name: Of the run and the model.
        folder: Of its files.
        generation: Of the model.
        parents: The models that it comes from, its teacher first.
        versions: Table versions that the labeled rows and the holdout are read at, the newest for the others.

    Raises:
        InputError: Recipe, manifest, weights or name are not usable.
    """

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        recipe_name: str,
        manifest: str | None,
        name: str | None,
        init: str | None,
        pack: str | None,
        fold: Fold | None,
    ) -> None:
        self.store, self.recipe, self.manifest, self.init, self.fold = store, recipe, manifest, init, fold
        self.classes = expect_usable(store, recipe, manifest)
        self.pack = packs.chosen(store, pack, max(recipe.network.resolution, recipe.network.test_resolution))
        self.generation, self.parents = 0, list[str]()
        self.network = network.build(recipe, self.classes, recipe.network.pretrained)
        if init is not None:
            begun = network.begin_from(store, init, self.network, recipe)
            if begun is not None:  # trained on without a manifest, a model stays of its generation
                self.generation, self.parents = begun, [init]
        if recipe.schedule.steps == 0:
            self._expect_weights()
        if manifest is not None:
            found = manifests.find(store, manifest)
            self.generation = found.generation + 1
            self.parents = [*dict.fromkeys([found.lineage["model"]["model"], *self.parents])]
        self.name = name or f"g{self.generation}-{recipe_name}"
        check_name("model", self.name)
        self.folder = store.path / "models" / self.name
        if fold is not None:
            self.folder = store.path / "folds" / fold.run / str(fold.number)

    def _expect_weights(self) -> None:
        """Makes sure that a run without steps has weights to register, and nothing to learn from."""
        if self.init is None and not self.recipe.network.pretrained:
            raise InputError(
                "a run of no steps registers weights that are there already, and none are given",
                "--init FILE or MODEL, or --set schedule.steps=1000",
            )
        for option, given in (("--manifest", self.manifest), ("folds", self.fold)):
            if given is not None:
                raise InputError(f"a run of no steps learns nothing from {option}", "--set schedule.steps=1000")

    def read(self, versions: Versions) -> None:
        """Reads the rows; a run that learns nothing has none.

        Args:
            versions: Table versions to read the labeled rows at; the newest for a table that is not named.

        Raises:
            InputError: There is nothing to train on, or the manifest is damaged or has images of the holdout.
        """
        self.versions = dict(versions)
        self.rows, self.phases, self.steps, self.epoch = list[Rows](), list[Phase](), 0, 1.0
        if self.recipe.untrained:
            return
        labeled, pseudo = Rows.labeled(self.store, self.pack, self.fold, versions), None
        if self.manifest is not None:
            pseudo = Rows.manifest(self.store, self.manifest, self.pack)
        self.rows = [labeled, *([] if pseudo is None else [pseudo])]
        self.phases = phases.of(self.recipe, labeled, pseudo)
        self.steps = self.phases[-1].end
        self.epoch = len(labeled) / self.recipe.schedule.labeled_batch

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that wrote the checkpoint, by what to call it."""
        return {
            "recipe": self.recipe.model_dump_json(),
            "manifest": [rows.name for rows in self.rows],
            "set of labeled images": self.rows[0].digest,
            "pack": [self.pack, *(rows.packed for rows in self.rows)],
            "--init": self.init,
        }

    def expect(self, kept: dict[str, Any], more: dict[str, Any]) -> None:
        """Makes sure that a checkpoint is of this run.

        Args:
            kept: The identity that the checkpoint has.
            more: What belongs to the identity besides.

        Raises:
            InputError: It is of another one.
        """
        differ = [what for what, value in (self.identity | more).items() if kept.get(what) != value]
        if differ:
            mend = "give the same options as before, or another --name"
            if differ == ["pack"]:
                pack = kept["pack"][0]
                same = "the pack was extended since; give another --name"
                mend = same if pack == self.pack else f"--pack {pack or 'none'}, as before"
            raise InputError(
                f"the checkpoint of '{self.name}' belongs to a run with another {' and another '.join(differ)}", mend
            )

    def summary(self) -> Iterator[str]:
        """What a user should know of it before it begins, in lines."""
        for each in self.rows:
            yield from each.notes
        if self.pack is not None:
            packed, rows = (sum(of(each) for each in self.rows) for of in (lambda rows: rows.packed, len))
            yield f"{packed} of {rows} images are read from the pack {self.pack}"
