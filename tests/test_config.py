import dataclasses
import math
from typing import Any

import pytest
import yaml

from bivrec.config import (
    Config,
    ModelConfig,
    ObjectiveConfig,
    TrainingConfig,
    apply_overrides,
    config_from_dict,
    describe,
    model_config_from_dict,
)
from bivrec.errors import BivrecError

SECTIONS = {"model": ModelConfig, "objective": ObjectiveConfig, "training": TrainingConfig}
UNUSUAL = Config(
    description="Two views: 100 % # not a comment\nand a second line, \"quoted\", with 'more' and é",
    model=ModelConfig(scales=tuple(range(2, 60)), num_interests=(24, 4), modalities=("image",)),
    objective=ObjectiveConfig(candidates="popularity", contrastive_weight=0.0, negatives_scored_by="best-interest"),
    training=TrainingConfig(learning_rate=1e-5, tower_learning_rate=3e-7, targets_per_sequence=3, views=("mm",)),
)


def fault(values: Any) -> str:
    with pytest.raises(BivrecError) as caught:
        config_from_dict(values, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message


# The ways in and out


@pytest.mark.parametrize("config", [Config(), UNUSUAL], ids=["default", "unusual"])
class TestRoundTrip:
    def test_dictionary(self, config: Config) -> None:
        assert config_from_dict(config.to_dict()) == config

    def test_yaml(self, config: Config) -> None:
        assert config_from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config

    def test_description_of_every_key(self, config: Config) -> None:
        text = describe(config)
        assert config_from_dict(yaml.safe_load(text)) == config
        for section in SECTIONS.values():
            for item in dataclasses.fields(section):
                assert item.metadata["help"]
                assert f"# {item.metadata['help']}" in text

    def test_model(self, config: Config) -> None:
        assert model_config_from_dict(config.to_dict()["model"], "tower") == config.model


def test_what_is_not_set_has_its_default() -> None:
    assert config_from_dict({}) == Config()
    changed = config_from_dict({"model": {"hidden_size": 32}})
    assert changed == Config(model=ModelConfig(hidden_size=32))


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_possible_values(section: str) -> None:
    assert config_from_dict({section: dataclasses.asdict(SECTIONS[section]())}) == Config()


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.hidden_size = 3  # type: ignore[misc]


@pytest.mark.parametrize("value", [2, "2e-3", 0.002, "1"])
def test_numbers_may_be_written_in_any_way(value: Any) -> None:
    rate = config_from_dict({"training": {"learning_rate": value}}).training.learning_rate
    assert isinstance(rate, float)
    assert rate == float(value)


# Faults


def test_all_faults_are_reported_at_once() -> None:
    message = fault(
        {
            "modle": {},
            "model": {
                "hidden": 3,
                "dropout": 2.0,
                "gaussian": "none at all",
                "scales": [4, "x"],
                "num_layers": -1,
                "repeat_bias": "maybe",
            },
            "objective": {"candidates": 7, "contrastive_weight": -0.5},
            "training": {"steps": "many", "views": ["id", "audio"], "patience": 1.5, "seed": None},
        }
    )
    for expected in (
        "modle: unknown key; did you mean model? allowed: description, model, objective, training",
        "model.hidden: unknown key; did you mean hidden_size? allowed: system, hidden_size, num_layers",
        "model.dropout: 2.0 is above the greatest allowed value 0.95",
        "model.gaussian: 'none at all' is not one of product, bias, none",
        "model.scales: expected int, found 'x'",
        "model.num_layers: -1 is below the least allowed value 0",
        "objective.candidates: expected str, found 7",
        "objective.contrastive_weight: -0.5 is below",
        "model.repeat_bias: expected bool, found 'maybe'",
        "training.steps: expected int, found 'many'",
        "training.views: 'audio' is not one of id, mm",
        "training.patience: expected int, found 1.5",
        "training.seed: expected int, found None",
    ):
        assert expected in message


def test_an_unknown_key_names_the_allowed_ones() -> None:
    message = fault({"training": {"zzz": 1}})
    assert all(item.name in message for item in dataclasses.fields(TrainingConfig))
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("model", "hidden_size", True, "expected int"),
        ("model", "scales", 4, "a list such as [4, 8], found 4"),
        ("training", "views", "id", "a list such as [id, mm], found 'id'"),
        ("model", "scales", [1], "below"),
        ("objective", "num_negatives", 1 << 64, "above the greatest allowed value"),
        ("training", "seed", 1 << 32, "above the greatest allowed value 4294967295"),
        ("model", "scales", [4, 4], "twice"),
        ("model", "num_interests", [], "at least one"),
        ("model", "num_interests", [4, 0], "below"),
        ("model", "num_heads", 3, "does not divide"),
        ("model", "interests_per_item", 5, "fewest interests"),
        ("model", "modalities", [], None),
        ("model", "modalities", ["text", "text"], "twice"),
        ("model", "modalities", ["audio"], "text, image"),
        ("model", "assignment_temperature", 0, "below"),
        ("objective", "num_negatives", 0, "below"),
        ("objective", "allocation_weight", math.nan, "expected"),
        ("training", "learning_rate", math.inf, "expected"),
        ("training", "learning_rate", "fast", "expected float"),
        ("training", "tower_learning_rate", "fast", "expected float"),
        ("training", "targets_per_sequence", 0, "below"),
        ("training", "frozen_tower_steps", -2, "below"),
        ("training", "accumulate", 3, "does not divide"),
        ("training", "views", ["id"], None),
        ("training", "views", [], "one or more"),
        ("training", "views", ["mm", "mm"], "twice"),
        ("training", "selection_view", "all", "id, mm, both"),
        ("training", "targets_per_sequence", None, None),
        ("training", "frozen_tower_steps", -1, None),
    ],
)
def test_values(section: str, key: str, value: Any, expected: str | None) -> None:
    values = {section: {key: value}}
    if expected is None:
        config_from_dict(values)
    else:
        message = fault(values)
        assert f"{section}.{key}" in message
        assert expected in message


def test_settings_that_contradict_each_other() -> None:
    message = fault(
        {
            "model": {"hidden_size": 10, "num_heads": 4, "num_interests": [8, 2], "interests_per_item": 3},
            "training": {"views": ["id"], "selection_view": "mm", "batch_size": 1},
            "objective": {"candidates": "in-batch"},
        }
    )
    for name in ("model.num_heads", "model.interests_per_item", "training.selection_view", "training.batch_size"):
        assert name in message


@pytest.mark.parametrize("system", ["nova", "dif-sr"])
def test_systems_that_work_within_their_layers_need_one(system: str) -> None:
    model = {"system": system, "num_layers": 0, "readout": "prefix"}
    assert f"model.num_layers: the system {system}" in fault({"model": model})
    config_from_dict({"model": {**model, "num_layers": 1}})


@pytest.mark.parametrize("values", [None, [], "text", {"model": None}, {"training": [1]}, {1: 2}, {"description": 3}])
def test_what_is_no_recipe_is_refused(values: Any) -> None:
    fault(values)


# Overrides


def test_overrides_are_read_as_yaml() -> None:
    values = {"model": {"hidden_size": 32, "dropout": 0.1}}
    result = apply_overrides(
        values,
        [
            "model.scales=[4, 8]",
            "model.dropout = 0.5",
            "training.learning_rate=1e-4",
            "training.targets_per_sequence=null",
            "objective.candidates=in-batch",
            "training.views=[mm]",
            "training.seed=1",
            "training.seed=2",
        ],
    )
    config = config_from_dict(result)
    assert config.model == ModelConfig(hidden_size=32, dropout=0.5, scales=(4, 8))
    assert config.objective.candidates == "in-batch"
    assert config.training == TrainingConfig(learning_rate=1e-4, views=("mm",), seed=2)
    assert values == {"model": {"hidden_size": 32, "dropout": 0.1}}, "the given values are left as they were"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.dropout", "section.key=value"),
        ("dropout=1", "section.key=value"),
        ("model.=1", "section.key=value"),
        ("description.x=1", "model, objective, training"),
        ("model.scales=[4", "not valid YAML"),
    ],
)
def test_overrides_that_cannot_be_read(override: str, expected: str) -> None:
    with pytest.raises(BivrecError, match="--set") as caught:
        apply_overrides({"description": "x"}, [override])
    assert override in str(caught.value)
    assert expected in str(caught.value)


def test_an_unknown_key_of_an_override_is_a_fault_of_the_configuration() -> None:
    assert "model.hidden_sizes" in fault(apply_overrides({}, ["model.hidden_sizes=3"]))


def test_the_order_in_which_views_are_named_does_not_matter():
    assert config_from_dict({"training": {"views": ["mm", "id"]}}) == config_from_dict({})
    assert dataclasses.replace(TrainingConfig(), views=("mm", "id")) == TrainingConfig()
