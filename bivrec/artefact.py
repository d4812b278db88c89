"""Published models: a folder, or a repository on the Hugging Face Hub, of JSON and safetensors alone.

config.json         kind, architecture, feature specification, how it was trained
model.safetensors   weights
results.json        view -> metrics on the test users of the Domain of the training
items.json          of a joint model: item ids, in the order of its ID table
README.md           model card, which may show training_curve.png
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from bivrec import repository
from bivrec.artefact_config import (
    JOINT_TYPE,
    TOWER_TYPE,
    ArtefactConfig,
)
from bivrec.artefact_files import (
    CONFIG_FILE,
    ITEMS_FILE,
    MODEL_FOLDER,
    RESULTS_FILE,
    WEIGHTS_FILE,
    ArtefactFiles,
    empty_network,
)
from bivrec.baselines.towers import attach_features, tower_views
from bivrec.cards import model_card
from bivrec.config import ModelConfig
from bivrec.data.domain import Domain
from bivrec.data.feature_rows import FeatureRows
from bivrec.data.info import FeatureSpec
from bivrec.errors import BivrecError
from bivrec.evaluation.scorer import ModelScorer
from bivrec.features.contract import contract_features
from bivrec.files import new_folder, write_json
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.items import IdItems
from bivrec.model.tower import TowerNetwork
from bivrec.repository import PushOptions
from bivrec.weights import write_weights

OUR_FILES = (CONFIG_FILE, WEIGHTS_FILE, RESULTS_FILE, ITEMS_FILE, "training_curve.png")
TOWER_PREFIX = "towers.mm."
"""Names of the weights of a joint model's multimodal tower begin so."""


class _Published:
    """What a tower and a joint model have in common."""

    def __init__(self, config: ArtefactConfig, weights: dict[str, Tensor], source: dict[str, Any]) -> None:
        """`weights` by the names of the network's parameters; they are not copied."""
        self._config = config
        self.weights = weights
        self.source = source
        """Where it came from: name, commit on the Hub (`revision`; None: a folder), and checksum of the weights."""

    def __repr__(self) -> str:
        facts = [" + ".join(self._config.views), f"width {self.config.hidden_size}"]
        facts += [f"{name} {spec.dimension}-d" for name, spec in self.features.items()]
        facts += [f"{self._config.num_items:,} items"] if self._config.num_items else []
        return f"{type(self).__name__}({self.source['name']!r}, {', '.join(facts)}, {self.num_parameters:,} parameters)"

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self._config.model

    @property
    def features(self) -> dict[str, FeatureSpec]:
        """Modality -> how the features that the multimodal tower reads must have been made, in this order."""
        return self._config.features

    @property
    def training(self) -> dict[str, Any]:
        """How the model was trained, and its `results`: view -> metrics on the test users of that Domain."""
        return self._config.training

    @property
    def catalogue(self) -> str:
        """Checksum that identifies the items of the Domain of the training and their order."""
        return self._config.catalogue

    @property
    def item_sketch(self) -> list[str]:
        """Sketch (see `data.sketch`) of the items that the model was trained on."""
        return list(self.training["item_sketch"])

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(value.numel() for value in self.weights.values())

    def to(self, device: str | torch.device) -> Self:
        """Move the weights to a device; returns the model itself."""
        self.weights = {name: value.to(device) for name, value in self.weights.items()}
        return self

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the model and its card as a new folder.

        Raises BivrecError if the folder exists, unless `overwrite`; then it is replaced at the end.
        """
        with new_folder(Path(folder), overwrite, kind=MODEL_FOLDER) as staging:
            self.write(staging, Path(folder).name)

    def push_to_hub(self, name: str, message: str | None = None, **options: Unpack[PushOptions]) -> repository.Pushed:
        """Publish the model and its card to the repository `ORG/NAME` in one commit.

        private: make a new repository private. revision: branch (default: main), made if there is none. create_pr:
        propose it as a pull request. tag: of the new commit. overwrite_card: replace a card that a person edited,
        which otherwise stays: BivrecError, unless it is a pull request.
        Raises BivrecError for whatever keeps the Hub from taking the commit.
        """
        with tempfile.TemporaryDirectory() as staging:
            self.write(Path(staging), name)
            return push_files(Path(staging), name, message, **options)

    def write(self, folder: Path, name: str, picture: str | None = None) -> None:
        """Write the files of the model into a folder; its card, under `name`, shows the `picture` beside it."""
        values = self._config.to_dict()
        results = values["training"].pop("results")
        write_weights(folder / WEIGHTS_FILE, self.weights)
        write_json(folder / CONFIG_FILE, values)
        write_json(folder / RESULTS_FILE, results)
        kind = "tower" if self._config.model_type == TOWER_TYPE else "joint"
        card = model_card(kind, name, self.config, self.features, self.training, self.num_parameters, picture=picture)
        (folder / repository.CARD_FILE).write_text(card, encoding="utf-8")


class Tower(_Published):
    """A published multimodal tower: it reads histories of items that it has never seen by their features."""

    _kept: tuple[dict[str, Tensor], TowerNetwork] | None = None
    """Weights, and the network that shares them."""

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Tower:
        """The tower of a folder, or of the repository `ORG/NAME` on the Hub; of a joint model, its multimodal tower.

        revision: branch, tag or commit. Only JSON and safetensors are read. Raises BivrecError if it cannot be had, is
        of another kind or a newer format, or is damaged.
        """
        return _tower(ArtefactFiles(str(source), revision))

    def clone(self, config: ModelConfig | None = None) -> Tower:
        """A copy with weights of its own, optionally with another choice of what the weights do not depend on."""
        weights = {name: value.clone() for name, value in self.weights.items()}
        return Tower(dataclasses.replace(self._config, model=config or self.config), weights, self.source)

    def item_features(self, domain: Domain) -> Tensor:
        """The features [V + 1, F] of a Domain that the tower reads; row 0 is padding.

        Raises BivrecError, naming both sides and what to run, if they were made in another way.
        """
        rows = self._feature_rows(domain)
        return rows[torch.arange(rows.shape[0])]

    def attach(self, domain: Domain) -> TowerNetwork:
        """The network on the items of a Domain; it shares its weights with this tower.

        Raises BivrecError if the Domain's features were made in another way.
        """
        network = self._new_network()
        network.items.attach(self._feature_rows(domain))
        return network

    @torch.no_grad()
    def encode_items(self, features: Tensor) -> Tensor:
        """Vectors [V, D] of items with features [V, F], those of all modalities side by side in the tower's order.

        Each modality's part of a row is brought to length 1 first, as in the training; zeros stand for a modality that
        an item does not have, and a row of zeros gives a vector of zeros (of UniSRec, what it has learnt for it). Of
        MMSRec, which also reads the modalities, they are longer: [V, (1 + M) D].
        """
        width = self._config.feature_size
        if features.ndim != 2 or features.shape[1] != width:
            sum_of = " + ".join(f"{spec.dimension} ({name})" for name, spec in self.features.items())
            raise BivrecError(f"features {list(features.shape)}: expected [items, {width}], that is {sum_of}")
        if not features.isfinite().all():
            raise BivrecError("features: not finite; expected numbers, and zeros for a modality that an item lacks")
        sizes = [spec.dimension for spec in self.features.values()]
        parts = [functional.normalize(part.float(), dim=1) for part in torch.split(features, sizes, dim=1)]
        # A copy that shares all weights: another thread may encode other items, and none of their features are kept.
        network = self._network()
        reader = copy.deepcopy(network, {id(part): part for part in (network.sequence, *network.parameters())})
        # Index 0 is padding.
        reader.items.attach(functional.pad(torch.cat(parts, dim=1), (0, 0, 1, 0)).to(self._device))
        return reader.encode_items(torch.arange(1, len(features) + 1, device=self._device))

    @torch.no_grad()
    def encode_histories(self, item_vectors: Tensor, histories: Tensor) -> Tensor:
        """Interests [B, K, D] of histories.

        item_vectors [V + 1, D]: of `encode_items`, row 0 being padding. histories int64 [B, L]: rows of them, oldest
        first, padded on the left with 0; of longer histories than the tower reads, the most recent items count.
        """
        parts = 1 + len(self.features) if self.config.system == "mmsrec" else 1
        width = parts * self.config.hidden_size
        if item_vectors.ndim != 2 or item_vectors.shape[1] != width:
            raise BivrecError(f"item vectors {list(item_vectors.shape)}: expected [items + 1, {width}]")
        _check_histories(histories, len(item_vectors))
        recent = histories[:, -self.config.max_history :].to(self._device)
        vectors = functional.embedding(recent, item_vectors.to(self._device))
        return self._network().encode_histories(vectors, recent > 0).vectors[:, -1]

    def score(self, interests: Tensor, item_vectors: Tensor) -> Tensor:
        """Scores [B, V] of items with vectors [V, D] for users with interests [B, K, D]; more is better."""
        network = self._network()
        return network.join_interests(interests @ network.candidates(item_vectors).T)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    def __getstate__(self) -> dict[str, Any]:
        """Without the network, which a copy makes of its own weights."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def _feature_rows(self, domain: Domain) -> FeatureRows:
        return contract_features(self.features, domain, tower=str(self.source["name"]))

    def _network(self) -> TowerNetwork:
        """The network without items, made once for the weights as they are: that takes longer than a history."""
        kept = self._kept
        if kept is None or not _identical(kept[0], self.weights):
            self._kept = kept = dict(self.weights), self._new_network()
        return kept[1]

    def _new_network(self) -> TowerNetwork:
        network = empty_network(self._config).tower("mm")
        network.load_state_dict(self.weights, assign=True)
        return network.eval()


LEAST_KNOWN = 0.5
"""Share of a catalogue's items that a joint model must have been trained on to rank it."""


class BiVRec(_Published):
    """A published joint model: an ID tower and a multimodal tower on the catalogue that it was trained on.

    The catalogue may have changed since: items that are gone are left out, and items that are new have no ID vector.
    The ID view knows them by their content alone (`id_items: ids+features`), or not at all.
    """

    def __init__(
        self, config: ArtefactConfig, weights: dict[str, Tensor], source: dict[str, Any], item_ids: Sequence[str]
    ) -> None:
        """item_ids: of the catalogue; entry k is item index k + 1."""
        super().__init__(config, weights, source)
        self.item_ids = list(item_ids)
        self._attached: BiVRecNetwork | None = None
        self._rows: Tensor | None = None

    @classmethod
    def from_pretrained(cls, source: str | Path, domain: Domain, revision: str | None = None) -> BiVRec:
        """The joint model of a folder, or of the repository `ORG/NAME` on the Hub, on the Domain of its catalogue.

        revision: branch, tag or commit. Only JSON and safetensors are read. Raises BivrecError if it cannot be had, is
        of another kind or a newer format, is damaged, or was trained on other items or features.
        """
        model = _joint_model(ArtefactFiles(str(source), revision))
        model.attach(domain)
        return model

    @property
    def views(self) -> tuple[str, ...]:
        """The views that the model has: `id`, `mm`, or both."""
        return self._config.views

    def attach(self, domain: Domain) -> BiVRecNetwork:
        """The network on the Domain of its catalogue, which `scorer` uses.

        It shares its weights with this model, but for ID tables whose rows are arranged anew for another catalogue.
        Raises BivrecError if the Domain's items are other ones, or its features were made in another way.
        """
        self._rows = self._rows_of(domain)
        network = empty_network(dataclasses.replace(self._config, num_items=domain.num_items))
        network.load_state_dict(self._arranged(network), assign=True)
        if "mm" in self.views:
            features = contract_features(self.features, domain, tower=str(self.source["name"]))
            attach_features({view: network.tower(view) for view in network.views}, features)
        self._attached = network.eval()
        return self._attached

    def to(self, device: str | torch.device) -> Self:
        """Move the weights to a device, those of the attached network too; returns the model itself."""
        super().to(device)
        if self._attached is not None:
            self._attached.load_state_dict(self._arranged(self._attached), assign=True)
        return self

    @property
    def num_new_items(self) -> int:
        """Items of the attached Domain that the model was not trained on."""
        return 0 if self._rows is None else int((self._rows[1:] == 0).sum())

    def scorer(self, view: str = "both") -> ModelScorer:
        """What ranks the catalogue of the attached Domain with `id`, `mm` or `both`."""
        if self._attached is None:
            raise BivrecError(f"{self.source['name']}: no Domain yet; attach the one of its catalogue first")
        return ModelScorer(self._attached, view)

    @property
    def tower(self) -> Tower:
        """The multimodal tower alone, which transfers; it shares its weights. BivrecError if the model has none.

        Each access makes another Tower, and each Tower a network at its first use.
        """
        check_transferable(str(self.source["name"]), self.config, self.views)
        weights = {
            name.removeprefix(TOWER_PREFIX): value
            for name, value in self.weights.items()
            if name.startswith(TOWER_PREFIX)
        }
        return Tower(tower_config(self._config), weights, self.source)

    def write(self, folder: Path, name: str, picture: str | None = None) -> None:
        """Write the files of the model into a folder; its card, under `name`, shows the `picture` beside it."""
        super().write(folder, name, picture)
        write_json(folder / ITEMS_FILE, self.item_ids)

    def _rows_of(self, domain: Domain) -> Tensor | None:
        """[V + 1]: row of the ID table for each item of the Domain, 0 for new ones; None: the catalogue is its own."""
        items = domain.item_ids()
        if items == self.item_ids:
            return None
        known = {item: row for row, item in enumerate(self.item_ids, start=1)}
        rows = torch.tensor([0, *(known.get(item, 0) for item in items)])
        if (count := int((rows > 0).sum())) < LEAST_KNOWN * len(items):
            raise BivrecError(
                f"{self.source['name']}: trained on {count:,} of the {len(items):,} items of {domain.path}, too few to "
                "rank them; to use its tower there, give --zero-shot or finetune from it"
            )
        return rows

    def _arranged(self, network: BiVRecNetwork) -> dict[str, Tensor]:
        """The weights for a network on the attached catalogue."""
        if self._rows is None:
            return self.weights
        tables = {f"{name}.table.weight" for name, part in network.named_modules() if isinstance(part, IdItems)}
        # Row 0 is padding, a zero vector that is not trusted, and so what a new item has.
        of_items = {*tables, "id_trust"}
        return {name: value[self._rows] if name in of_items else value for name, value in self.weights.items()}


def load(source: str) -> Tower | BiVRec:
    """The model of a folder, or of `ORG/NAME[@revision]` on the Hub, whatever its kind; see `from_pretrained`."""
    files = ArtefactFiles(source)
    return _tower(files) if files.config.model_type == TOWER_TYPE else _joint_model(files)


def _tower(files: ArtefactFiles) -> Tower:
    """The multimodal tower. Raises BivrecError if the model has none."""
    check_transferable(files.name, files.config.model, files.config.views)
    prefix = "" if files.config.model_type == TOWER_TYPE else TOWER_PREFIX
    return Tower(tower_config(files.config), *files.weights(prefix))


def _joint_model(files: ArtefactFiles) -> BiVRec:
    """The joint model. Raises BivrecError if it is a tower alone."""
    if files.config.model_type != JOINT_TYPE:
        raise BivrecError(f"{files.name}: a tower alone, not a joint model; use Tower.from_pretrained")
    item_ids = files.item_ids()
    return BiVRec(files.config, *files.weights(), item_ids)


def push_files(folder: Path, name: str, message: str | None, **options: Unpack[PushOptions]) -> repository.Pushed:
    """Push the files of a model in place of those of the model that was there; options as of `push_to_hub`."""
    message = message or "Publish a model of bivrec"
    return repository.push(folder, name, message=message, delete_patterns=OUR_FILES, **options)


def check_transferable(name: str, config: ModelConfig, views: Sequence[str]) -> None:
    """Raise BivrecError if a model that was trained with these views has no multimodal tower."""
    if "mm" not in views:
        raise BivrecError(f"{name}: trained with the ID view alone, which cannot transfer to another Domain")
    if "mm" not in tower_views(config, views):
        raise BivrecError(
            f"{name}: {config.system} was trained with IDs and features in one model, which cannot "
            "transfer to another Domain; train it with --views mm"
        )


def tower_config(config: ArtefactConfig) -> ArtefactConfig:
    """The configuration of a model's multimodal tower alone.

    Without the results of the model, if they rest on a repeat bias, which a tower does not have.
    """
    training = dict(config.training)
    if config.model_type == JOINT_TYPE and config.model.repeat_bias:
        training["results"] = {}
    return dataclasses.replace(config, model_type=TOWER_TYPE, views=("mm",), num_items=0, training=training)


def _identical(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are the same objects; what is written into them is seen by all who share them."""
    return one.keys() == other.keys() and all(value is other[name] for name, value in one.items())


def _check_histories(histories: Tensor, rows: int) -> None:
    if histories.ndim != 2 or histories.dtype != torch.int64:
        raise BivrecError(f"histories {histories.dtype} {list(histories.shape)}: expected int64 [users, items]")
    if histories.numel() and not 0 <= int(histories.min()) <= int(histories.max()) < rows:
        raise BivrecError(
            f"histories: items {int(histories.min())} to {int(histories.max())}, expected 0 to {rows - 1}"
        )
    real = histories > 0
    faulty = ~real.any(1) | (real[:, :-1] > real[:, 1:]).any(1)
    if faulty.any():
        row = int(faulty.nonzero()[0])
        raise BivrecError(f"histories: row {row} is empty or not padded on the left; expected zeros before all items")
