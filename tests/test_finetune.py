import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import TINY, interrupt_at, same, tower_weights, weights

from bivrec.artefact import Tower
from bivrec.config import Config
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import FREE_MODEL_SETTINGS, finetune, finetune_config, zero_shot_model
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.pretrain import resume
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)


@pytest.fixture(scope="module")
def artefact(tower: Path) -> Tower:
    return Tower.from_pretrained(str(tower))


def recipe(**training: Any) -> dict[str, Any]:
    return {"training": {**TINY["training"], **training}}


def prepared_model(
    monkeypatch: pytest.MonkeyPatch,
    domain: Domain,
    config: Config,
    artefact: Tower,
    *,
    from_scratch: bool = False,
) -> BiVRecNetwork:
    """The model of a finetuning before any step."""
    found: list[BiVRecNetwork] = []

    def fit(*arguments: Any, **options: Any) -> None:
        found.extend(argument() for argument in arguments if callable(argument))

    monkeypatch.setattr("bivrec.finetune.fit", fit)
    finetune(domain, Path("never"), config, artefact, from_scratch=from_scratch)
    return found[0]


# Before any step


def test_the_multimodal_tower_is_the_published_one_and_the_id_tower_is_fresh(
    monkeypatch: pytest.MonkeyPatch, target: Domain, artefact: Tower, pretrained: Run
) -> None:
    model = prepared_model(monkeypatch, target, finetune_config(recipe(), artefact), artefact)
    assert model.views == ("id", "mm")
    assert same(dict(model.tower("mm").state_dict()), artefact.weights)
    fresh = dict(model.tower("id").sequence.state_dict())
    for prefix in ("towers.id.sequence.", "towers.mm.sequence."):
        assert not same(fresh, weights(pretrained, "best", prefix))
    for view in model.views:
        assert model.tower(view).items.num_items == target.num_items
    # The features are those of the target, in the rows of its items.
    expected = target.features(artefact.config.modalities) @ artefact.weights["items.projection.weight"].T
    vectors = model.tower("mm").items(torch.arange(target.num_items + 1))
    torch.testing.assert_close(vectors.detach(), expected)


def test_an_id_view_with_features_begins_with_the_projection_of_the_tower(
    monkeypatch: pytest.MonkeyPatch, target: Domain, artefact: Tower
) -> None:
    config = finetune_config({**recipe(), "model": {"id_items": "ids+features"}}, artefact)
    model = prepared_model(monkeypatch, target, config, artefact)
    every = torch.arange(target.num_items + 1)
    of_id, of_mm = (model.tower(view).items for view in ("id", "mm"))
    torch.testing.assert_close(of_id(every) - of_id.identity(every), of_mm(every))
    # Its own copy, on features that lie in memory once.
    assert of_id.content.projection.weight.data_ptr() != of_mm.projection.weight.data_ptr()
    assert of_id.content.features is of_mm.features


def test_the_tower_alone(monkeypatch: pytest.MonkeyPatch, target: Domain, artefact: Tower) -> None:
    config = finetune_config(recipe(views=["mm"]), artefact)
    model = prepared_model(monkeypatch, target, config, artefact)
    assert model.views == ("mm",)
    assert same(dict(model.tower("mm").state_dict()), artefact.weights)


def test_from_scratch_has_the_same_architecture_and_other_weights(
    monkeypatch: pytest.MonkeyPatch, target: Domain, artefact: Tower
) -> None:
    config = finetune_config(recipe(), artefact)
    scratch = dict(prepared_model(monkeypatch, target, config, artefact, from_scratch=True).state_dict())
    tuned = dict(prepared_model(monkeypatch, target, config, artefact).state_dict())
    assert {name: value.shape for name, value in scratch.items()} == {
        name: value.shape for name, value in tuned.items()
    }
    tower = {name: value for name, value in scratch.items() if name.startswith("towers.mm.")}
    assert not same({name.removeprefix("towers.mm."): value for name, value in tower.items()}, artefact.weights)


# Configuration


def test_the_architecture_is_that_of_the_tower(artefact: Tower) -> None:
    config = finetune_config(recipe(steps=7), artefact)
    assert config.model == artefact.config
    assert config.training.steps == 7
    assert finetune_config({}, artefact).model == artefact.config


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 16), ("num_layers", 3), ("scales", [2]), ("readout", "prefix"), ("modalities", ["text"])],
)
def test_another_architecture_is_refused(artefact: Tower, key: str, value: Any) -> None:
    with pytest.raises(BivrecError, match=f"model.{key}: the tower has .*, the recipe .*; leave these keys") as caught:
        finetune_config({"model": {key: value}}, artefact)
    assert str(artefact.source["name"]) in str(caught.value)
    assert repr(value) in str(caught.value)


def test_the_same_architecture_may_be_named(artefact: Tower) -> None:
    named = json.loads(json.dumps(Config(model=artefact.config).to_dict()))
    assert finetune_config(named, artefact).model == artefact.config


@pytest.mark.parametrize(
    ("key", "value"), [("dropout", 0.5), ("assignment", "softmax-hard"), ("assignment_temperature", 0.3)]
)
def test_what_weights_do_not_depend_on_may_change(artefact: Tower, key: str, value: Any) -> None:
    assert key in FREE_MODEL_SETTINGS
    assert getattr(finetune_config({"model": {key: value}}, artefact).model, key) == value


@pytest.mark.parametrize(
    "values", [{"model": {"hiden_size": 8}}, {"model": [1]}, {"model": "wide"}, {"modle": {}}, {"training": 3}]
)
def test_faulty_recipes(artefact: Tower, values: dict[str, Any]) -> None:
    with pytest.raises(BivrecError, match=r"unknown key|expected keys and values"):
        finetune_config(values, artefact)


def test_from_scratch_no_tower_is_frozen_and_none_is_named(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    config = finetune_config(recipe(steps=1, tower_learning_rate=0.0), artefact)
    run = finetune(target, tmp_path / "run", config, artefact, from_scratch=True)
    assert run.info.started_from is None
    assert run.feature_specs == artefact.features
    assert not same(tower_weights(run), artefact.weights)


def test_the_id_view_alone_only_from_scratch(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    config = finetune_config(recipe(steps=1, views=["id"]), artefact)
    run = finetune(target, tmp_path / "run", config, artefact, from_scratch=True)
    assert set(run.results()) == {"id"}


def test_a_tower_without_the_multimodal_view(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    config = finetune_config(recipe(views=["id"]), artefact)
    with pytest.raises(BivrecError, match="finetuning a tower needs the multimodal view"):
        finetune(target, tmp_path / "run", config, artefact)
    assert list(tmp_path.iterdir()) == []


def test_a_contract_mismatch_leaves_nothing_behind(artefact: Tower, small_domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(BivrecError, match="features differ"):
        finetune(small_domain, tmp_path / "run", finetune_config(recipe(), artefact), artefact)
    assert list(tmp_path.iterdir()) == []


# Training


def test_a_finetuning_ends_as_a_run_on_the_target(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    run = finetune(target, tmp_path / "run", finetune_config(recipe(), artefact), artefact)
    assert run.info.stage == "finetune"
    assert run.info.started_from == artefact.source
    assert set(run.results()) == {"id", "mm", "both"}
    assert not same(tower_weights(run), artefact.weights)
    model = run.load_model(target)
    assert model.num_items == target.num_items
    assert run.open_domain().path == target.path.resolve()


FROZEN = {
    "throughout": {"frozen_tower_steps": -1},
    "all steps": {"frozen_tower_steps": 3},
    "longer": {"frozen_tower_steps": 30},
    "no learning rate": {"tower_learning_rate": 0.0},
    "with its view alone": {"frozen_tower_steps": 3, "views": ["mm"]},
}


@pytest.mark.parametrize("training", FROZEN.values(), ids=FROZEN)
def test_a_frozen_tower_is_not_changed(
    artefact: Tower, target: Domain, tmp_path: Path, training: dict[str, Any]
) -> None:
    config = finetune_config(recipe(steps=3, weight_decay=0.1, **training), artefact)
    run = finetune(target, tmp_path / "run", config, artefact)
    assert same(tower_weights(run), artefact.weights)


def test_the_rest_learns_beside_a_frozen_tower(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    runs = []
    for steps in (1, 3):
        config = finetune_config(recipe(steps=steps, frozen_tower_steps=-1), artefact)
        runs.append(finetune(target, tmp_path / str(steps), config, artefact))
    early, late = (weights(run) for run in runs)
    for part in ("towers.id.", "cross_view."):
        assert all(not torch.equal(early[name], late[name]) for name in early if name.startswith(f"{part}projection"))
        assert any(not torch.equal(early[name], late[name]) for name in early if name.startswith(part))


def test_a_tower_thaws(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    config = finetune_config(recipe(steps=4, frozen_tower_steps=3), artefact)
    assert not same(tower_weights(finetune(target, tmp_path / "run", config, artefact)), artefact.weights)


def test_a_small_learning_rate_changes_the_tower_little(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    changes = []
    for rate in (1e-2, 1e-5):
        config = finetune_config(recipe(tower_learning_rate=rate), artefact)
        moved = tower_weights(finetune(target, tmp_path / str(rate), config, artefact))
        changes.append(max(float((moved[name] - artefact.weights[name]).abs().max()) for name in moved))
    assert 0 < changes[1] < changes[0] / 100


def test_nothing_left_to_train_is_an_error(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    config = finetune_config(recipe(views=["mm"], frozen_tower_steps=-1), artefact)
    with pytest.raises(BivrecError, match="frozen"):
        finetune(target, tmp_path / "run", config, artefact)


@pytest.mark.parametrize("frozen", [0, 3, -1])
def test_a_resumed_finetuning_continues_bit_for_bit(
    artefact: Tower, target: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: int
) -> None:
    config = finetune_config(recipe(steps=6, frozen_tower_steps=frozen, tower_learning_rate=1e-3), artefact)
    straight = finetune(target, tmp_path / "straight", config, artefact)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=1)
        with pytest.raises(BivrecError, match="interrupted at step 2"):
            finetune(target, tmp_path / "broken", config, artefact)
    assert same(weights(straight), weights(resume(tmp_path / "broken")))


def test_a_finetuning_killed_in_its_first_step_starts_again_from_the_tower(
    artefact: Tower, target: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finetune_config(recipe(steps=4, id_init="spectral"), artefact)
    straight = finetune(target, tmp_path / "straight", config, artefact)
    with monkeypatch.context() as patch:
        patch.setattr("bivrec.training.loop.Trainer._step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finetune(target, tmp_path / "broken", config, artefact)
    assert same(weights(straight), weights(resume(tmp_path / "broken")))


def test_the_projection_of_a_tower_is_not_started_anew(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    still = recipe(steps=1, learning_rate=0.0, tower_learning_rate=0.0, projection_init="principal")
    run = finetune(target, tmp_path / "run", finetune_config(still, artefact), artefact)
    assert weights(run)["towers.mm.items.projection.weight"].equal(artefact.weights["items.projection.weight"])


def test_a_run_without_a_checkpoint_does_not_resume(artefact: Tower, target: Domain, tmp_path: Path) -> None:
    run = finetune(target, tmp_path / "run", finetune_config(recipe(steps=1), artefact), artefact)
    run.checkpoint("last").unlink()
    with pytest.raises(BivrecError, match="ended before its first checkpoint; start anew with --overwrite"):
        resume(run.path)


# Zero-shot


def test_zero_shot_needs_no_training_and_no_interactions(artefact: Tower, target: Domain, source: Domain) -> None:
    model = zero_shot_model(target, artefact)
    assert not set(source.item_ids()) & set(target.item_ids())
    assert same(dict(model.tower("mm").state_dict()), artefact.weights)
    users = EvaluationUsers.from_sequences(target.sequences("test"))
    result = evaluate(ModelScorer(model, "mm"), users, (20,))
    assert len(result.per_user["recall@20"]) == len(users)


def test_zero_shot_reads_the_items_of_the_target_by_their_content(
    artefact: Tower, target: Domain, tmp_path: Path
) -> None:
    shutil.copytree(target.path, tmp_path / "copy")
    other = Domain.open(tmp_path / "copy")
    modality = artefact.config.modalities[0]
    flipped = -other.features((modality,))
    changed = other.with_features(
        {modality: flipped},
        {modality: other.has_modality(modality)},
        {modality: other.info.features[modality]},
    )
    vectors = [
        zero_shot_model(domain, artefact).tower("mm").encode_items(torch.tensor([1, 2])) for domain in (target, changed)
    ]
    assert not torch.allclose(*vectors)
