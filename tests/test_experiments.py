"""The experiments of the paper: what each would train, and some of them end to end."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stages import bivrec, settings

from bivrec.cli.experiment import EXPERIMENTS as LISTED
from bivrec.config import Config
from bivrec.data.domain import Domain
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import zero_shot_model
from bivrec.hub import tower_of_run
from bivrec.recipes import read_recipe
from bivrec.studies import experiments
from bivrec.studies.experiments import EXPERIMENTS
from bivrec.studies.study import Study, Training
from bivrec.studies.workshop import Workshop
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

SHORT = settings(model={"modalities": []}, training={"steps": 2, "evaluate_every": 1})
RECIPES = ("default", "paper-amazon", "paper-movielens")


def study_of(name: str, recipe: str, *domains: Domain) -> tuple[Study, dict[tuple[str, str], Config]]:
    """A study, and the configuration of each of its trainings by Domain and name."""
    values = read_recipe(recipe, "pretrain")
    study = EXPERIMENTS[name].study(domains, values)
    workshop = Workshop(Path("nowhere"), values, (0,))
    return study, {(t.domain.name, t.name): workshop.config(t, 0) for t in study.trainings}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_two_trainings_are_the_same(name: str, recipe: str, source: Domain, target: Domain) -> None:
    study, configs = study_of(name, recipe, source, target)
    noise = {(t.domain.name, t.name): t.noise for t in study.trainings}
    if name == "sweep":
        # The two grids cross where the recipe itself stands.
        configs = {key: config for key, config in configs.items() if "lambda" not in key[1]}
    for domain in ("source", "target"):
        own = [(str(config.to_dict()), noise[key]) for key, config in configs.items() if key[0] == domain]
        assert max(Counter(own).values(), default=1) == 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_have_names_of_their_own(name: str, source: Domain, target: Domain) -> None:
    study, _ = study_of(name, "default", source, target)
    rows = Counter((entry.domain.name, entry.group, entry.name) for entry in study.entries)
    assert max(rows.values()) == 1
    trainings = {(t.domain.name, t.name): (t.overrides, t.noise) for t in study.trainings}
    for entry in study.entries:
        if isinstance(entry.ranked_by, Training):
            key = (entry.ranked_by.domain.name, entry.ranked_by.name)
            assert trainings[key] == (entry.ranked_by.overrides, entry.ranked_by.noise)


def test_every_experiment_is_listed() -> None:
    assert list(LISTED) == list(EXPERIMENTS)
    printed = bivrec("experiment", "--list")
    assert printed.exit_code == 0
    assert [line.split()[0] for line in printed.stdout.splitlines()] == list(EXPERIMENTS)


def test_the_ablation_takes_away_one_module_each(source: Domain) -> None:
    study, configs = study_of("ablation", "paper-movielens", source)
    full = configs["source", "bivrec"].to_dict()
    changed = {}
    for (_, name), config in configs.items():
        if name.startswith("bivrec-"):
            values = config.to_dict()
            changed[name.removeprefix("bivrec-without-")] = {
                key for part in ("model", "objective") for key in full[part] if values[part][key] != full[part][key]
            }
    assert changed == {
        "multi-scale-embedding": {"scales"},
        "gaussian-attention": {"gaussian"},
        "cluster-attention": {"num_interests"},
        "allocation-loss": {"allocation_weight"},
    }
    groups = list(dict.fromkeys(entry.group for entry in study.entries))
    assert groups == ["single-view id", "single-view mm", "joint id", "joint mm", "joint both"]


def test_what_the_recipe_lacks_already_cannot_be_taken_away(source: Domain) -> None:
    values = {**read_recipe("default", "pretrain"), "objective": {"allocation_weight": 0.0}}
    study = EXPERIMENTS["ablation"].study([source], values)
    assert "w/o allocation loss: left out, the recipe has it so already." in study.notes
    assert not [entry for entry in study.entries if "allocation" in entry.name]


def test_the_papers_figures_stand_beside_ours(source: Domain) -> None:
    import dataclasses

    info = dataclasses.replace(source.info, name="ml-1m")
    study, _ = study_of("ablation", "paper-movielens", Domain(source.path, info))
    found = {(entry.group, entry.name): entry.paper.get("recall@20") for entry in study.entries}
    assert found["joint mm", "full"] == 12.50
    assert found["single-view id", "w/o cluster attention"] == 8.12
    assert found["joint both", "full"] is None


def test_features_that_a_domain_lacks_are_left_out(source: Domain, target: Domain) -> None:
    import dataclasses

    missing = {**target.info.missing, "image": target.num_items}
    blind = Domain(target.path, dataclasses.replace(target.info, missing=missing))
    study, _ = study_of("transfer", "default", source, blind)
    names = [entry.name for entry in study.entries]
    assert "zero-shot bivrec text + image" in names
    assert "zero-shot bivrec image" not in names
    assert "zero-shot bivrec image: left out on target, which has no image features." in study.notes
    study, _ = study_of("modalities", "default", blind)
    assert {entry.name for entry in study.entries} == {"text"}


def test_a_sweep_leaves_the_test_users_alone(source: Domain) -> None:
    study, _ = study_of("sweep", "default", source)
    assert study.split == "validation"


def test_transfer_needs_a_target(source: Domain, tmp_path: Path) -> None:
    result = bivrec("experiment", "transfer", source.path, "--to", tmp_path / "study")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "at least one target" in result.stderr


def test_transfer_to_items_of_the_source_is_refused(source: Domain, target: Domain, tmp_path: Path) -> None:
    again = shutil.copytree(source.path, tmp_path / "again")
    info = json.loads((again / "domain.json").read_text())
    (again / "domain.json").write_text(json.dumps({**info, "name": "again"}))
    result = bivrec("experiment", "transfer", source.path, target.path, again, "--to", tmp_path / "study")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{again}: 100 % of its items are items of {source.path}, so that nothing would be" in result.stderr
    assert not (tmp_path / "study").exists()


# End to end, in one folder, so that trainings are shared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments") / "study"


def carry_out(name: str, folder: Path, *domains: Domain) -> tuple[list[dict[str, str]], int]:
    """Lines of the table with seen items kept, and how many trainings it took."""
    paths = [domain.path for domain in domains]
    result = bivrec("experiment", name, *paths, "--to", folder, *SHORT)
    assert result.exit_code == 0, result.output
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / f"{name}.tex").read_text().count("tabular") > 0
    assert result.stdout == (folder / f"{name}.md").read_text()
    table = list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))
    return [line for line in table if line["seen"] == "kept"], result.stderr.count("to go")


def recall(model: ModelScorer, users: EvaluationUsers) -> float:
    return 100 * evaluate(model, users, (20,)).metrics["recall@20"]


def test_cold_start(folder: Path, target: Domain) -> None:
    table, trained = carry_out("cold-start", folder, target)
    assert trained == 2
    users = EvaluationUsers.from_sequences(target.sequences("test"))
    model = Run.open(folder / "runs/target/bivrec/seed-0").load_model(target)
    for group, asked in (("last 1 of the history", users.cold_start(1)), ("whole histories", users)):
        (line,) = [line for line in table if (line["group"], line["model"]) == (group, "bivrec mm")]
        assert float(line["recall@20"]) == pytest.approx(recall(ModelScorer(model, "mm"), asked))
    assert carry_out("cold-start", folder, target) == (table, 0)


def test_noise(folder: Path, target: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "NOISE", (0.0, 0.5))
    table, trained = carry_out("noise", folder, target)
    # The training without noise is that of the cold start.
    assert trained == 1
    noisy = Run.open(folder / "runs/target/bivrec-noise-0.5/seed-0").open_domain()
    items, before = (domain.sequences("train").items for domain in (noisy, target))
    assert np.mean(items != before) == pytest.approx(0.5, abs=0.1)
    assert [line["model"] for line in table[:3]] == ["0 % noise", "50 % noise", "0 % noise"]


def test_interests(folder: Path, target: Domain) -> None:
    table, trained = carry_out("interests", folder, target)
    assert trained == 1
    assert [line["model"] for line in table] == ["bivrec id", "bivrec mm", "comirec-sa"]
    assert all(-1 <= float(line["silhouette"]) <= 1 for line in table)


def test_transfer(folder: Path, source: Domain, target: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [row for row in experiments._ZERO_SHOT if row[:2] in (("comirec-sa", ""), ("bivrec", "text"))]
    monkeypatch.setattr(experiments, "_ZERO_SHOT", chosen)
    monkeypatch.setattr(experiments, "_SUPERVISED", (("bivrec", ""),))
    table, trained = carry_out("transfer", folder, source, target)
    assert trained == 2
    assert {line["domain"] for line in table} == {"target"}
    recalls = {line["model"]: float(line["recall@20"]) for line in table}
    users = EvaluationUsers.from_sequences(target.sequences("test"))
    run = Run.open(folder / "runs/source/bivrec-transfer-text/seed-0")
    assert list(run.feature_specs) == ["text"]
    model = zero_shot_model(target, tower_of_run(run))
    assert recalls["zero-shot bivrec text"] == pytest.approx(recall(ModelScorer(model, "mm"), users))
    assert set(recalls) == {"popularity", "content-knn", "recent-content-knn", "zero-shot comirec-sa",
                            "zero-shot bivrec text", "supervised bivrec"}  # fmt: skip


def test_sweep(folder: Path, target: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "NUM_INTERESTS", (2,))
    monkeypatch.setattr(experiments, "INTERESTS_PER_ITEM", (1,))
    monkeypatch.setattr(experiments, "LOSS_WEIGHTS", (0.0, 0.5))
    table, trained = carry_out("sweep", folder, target)
    assert trained == len(table) == 5
    assert {line["split"] for line in table} == {"validation"}
    for coarse in (0, 0.5):
        objective = Run.open(folder / f"runs/target/bivrec-lambda-{coarse:g}-0.5/seed-0").config.objective
        assert (objective.contrastive_weight, objective.allocation_weight) == (coarse, 0.5)
