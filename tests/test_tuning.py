"""`bivrec compare --tune`: every model with the settings that are its best on the validation users."""

import csv
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from stages import bivrec, settings

from bivrec.config import Config, ModelConfig, ObjectiveConfig, TrainingConfig
from bivrec.data.domain import Domain
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

SHORT = settings(training={"steps": 3, "evaluate_every": 1})
RATES = "training.learning_rate=[0.0001,0.05]"


def compare(*arguments: object, ends: int = 0) -> Result:
    result = bivrec("compare", *arguments, *SHORT)
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    assert result.exit_code == ends, result.output
    return result


def lines(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def recall(folder: Path) -> float:
    return 100 * Run.open(folder).progress().best_recall


@pytest.fixture(scope="module")
def tuned(target: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning") / "study"
    models = ("--models", "item-knn,pure-id,comirec-sa", "--seeds", "0,1")
    compare(target.path, *models, "--tune", RATES, "--tune", "model.num_interests=[[1],[2]]", "--to", folder)
    return folder


def test_every_combination_is_tried_with_the_first_seed(tuned: Path) -> None:
    tried = {path.parent.name for path in tuned.glob("runs/target/*/seed-0")}
    rates = ("learning_rate=0.0001", "learning_rate=0.05")
    # That it has four interests makes ComiRec what it is here.
    assert tried == {f"comirec-sa-{rate}" for rate in rates} | {
        f"pure-id-{rate}-num_interests=[{count}]" for rate in rates for count in (1, 2)
    }
    config = Run.open(tuned / "runs/target/pure-id-learning_rate=0.05-num_interests=[1]/seed-0").config
    assert (config.training.learning_rate, config.model.num_interests) == (0.05, (1,))


def test_the_best_on_the_validation_users_is_compared(tuned: Path) -> None:
    for model in ("pure-id", "comirec-sa"):
        runs = {path.parent.name: recall(path) for path in sorted(tuned.glob(f"runs/target/{model}-*/seed-0"))}
        best = max(runs, key=lambda name: runs[name])
        told = {line["validation recall@20"]: line for line in lines(tuned / "tuning.csv") if line["model"] == model}
        assert sorted(map(float, told)) == pytest.approx(sorted(set(runs.values())))
        (chosen,) = (
            line for line in lines(tuned / "tuning.csv") if line["chosen"] == "True" and line["model"] == model
        )
        assert float(chosen["validation recall@20"]) == pytest.approx(runs[best])
        assert {path.parent.name for path in tuned.glob(f"runs/target/{model}-*/seed-1")} == {best}
        (row,) = (line for line in lines(tuned / "comparison.csv") if line["model"] == model and line["seen"] == "kept")
        results = [Run.open(tuned / f"runs/target/{best}/seed-{seed}").results() for seed in (0, 1)]
        expected = sum(result["id"]["recall@20"] for result in results) / 2
        assert float(row["recall@20"]) == pytest.approx(100 * expected)
        assert row["chosen"].startswith(f"learning_rate {chosen['learning_rate']}")


def test_two_views_are_chosen_by_how_they_rank_together(target: Domain, tmp_path: Path) -> None:
    compare(target.path, "--models", "bivrec", "--tune", RATES, "--to", tmp_path / "study")
    users = EvaluationUsers.from_sequences(target.sequences("validation"))
    shares: set[float] = set()
    for line in lines(tmp_path / "study/tuning.csv"):
        run = Run.open(tmp_path / f"study/runs/target/bivrec-learning_rate={line['learning_rate']}/seed-0")
        model = run.load_model(target)
        shares.add(float(model.id_weight))
        expected = evaluate(ModelScorer(model, "both"), users, (20,)).metrics["recall@20"]
        assert float(line["validation recall@20"]) == pytest.approx(100 * expected)
    assert shares != {0.5}


def test_the_table_says_what_was_chosen_and_of_what(tuned: Path) -> None:
    text = (tuned / "comparison.md").read_text()
    assert "| chosen" in text
    assert "of every combination of training.learning_rate 0.0001, 0.05; model.num_interests [1], [2]" in text
    (floor,) = {line["chosen"] for line in lines(tuned / "comparison.csv") if line["model"] == "item-knn"}
    assert floor == ""


def test_again_trains_nothing(tuned: Path, target: Domain) -> None:
    before = {path: path.read_text() for path in (tuned / "tuning.csv", tuned / "comparison.csv")}
    models = ("--models", "item-knn,pure-id,comirec-sa", "--seeds", "0,1")
    grid = ("--tune", RATES, "--tune", "model.num_interests=[[1],[2]]")
    assert "to go" not in compare(target.path, *models, *grid, "--to", tuned).stderr
    assert {path: path.read_text() for path in before} == before


def test_a_refit_is_of_what_was_chosen(tuned: Path, target: Domain, tmp_path: Path) -> None:
    study = shutil.copytree(tuned, tmp_path / "study")
    grid = ("--tune", RATES, "--tune", "model.num_interests=[[1],[2]]")
    compare(target.path, "--models", "pure-id", "--refit", *grid, "--to", study)
    (chosen,) = (line for line in lines(study / "tuning.csv") if line["chosen"] == "True")
    (refit,) = (path.parent.name for path in study.glob("runs/target/*/seed-0-refit"))
    assert refit == f"pure-id-learning_rate={chosen['learning_rate']}-num_interests={chosen['num_interests']}"


def test_different_budgets_are_not_told_to_be_one(tuned: Path, target: Domain, tmp_path: Path) -> None:
    budget = "All train for as many steps of as many sequences."
    assert budget in (tuned / "comparison.md").read_text()
    arguments = ("--models", "pure-id,sasrec", "--tune", "training.batch_size=[8,16]", "--to", tmp_path / "study")
    assert budget not in compare(target.path, *arguments).stdout


def test_of_equals_the_first_is_chosen(target: Domain, tmp_path: Path) -> None:
    equal = ("--tune", "training.learning_rate=[0.01,1e-2,10.0e-3]")
    compare(target.path, "--models", "pure-id", *equal, "--to", tmp_path / "study")
    assert [line["chosen"] for line in lines(tmp_path / "study/tuning.csv")] == ["True", "False"]


def test_a_trial_that_fails_does_not_stop_the_others(target: Domain, tmp_path: Path) -> None:
    arguments = ("--models", "pure-id", "--tune", "training.learning_rate=[1.0e+38,0.01]", "--to", tmp_path / "study")
    told = compare(target.path, *arguments, ends=1).stderr
    assert "it has diverged (train at a lower learning rate)" in told
    assert told.splitlines()[-1].startswith("Error: 1 failed and are not in the tables: ")
    assert {line["chosen"] for line in lines(tmp_path / "study/comparison.csv")} == {"learning_rate 0.01"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["learning_rate=[1,2]"], "expected section.key=value"),
        (["training.learning_rate=0.1"], "expected two values or more, as in training.learning_rate=[0.1,0.2]"),
        (["training.learning_rate=[0.1]"], "expected two values or more"),
        (["training.learning_rate=[0.1"], "is not valid YAML"),
        (["training.learning_rtae=[0.1,0.2]"], "unknown key; did you mean learning_rate?"),
        (["training.learning_rate=[0.1,fast]"], "training.learning_rate: expected float, found 'fast'"),
        (["training.seed=[0,1]"], "give them with --seeds"),
        ([RATES, RATES], "training.learning_rate is given twice"),
    ],
    ids=["no section", "no list", "one value", "no YAML", "no such key", "impossible", "seed", "twice"],
)
def test_impossible_grids(target: Domain, tmp_path: Path, options: list[str], message: str) -> None:
    grid = [word for option in options for word in ("--tune", option)]
    told = compare(target.path, "--models", "pure-id", *grid, "--to", tmp_path / "study", ends=1).stderr
    (line,) = told.splitlines()
    assert message in line
    assert not (tmp_path / "study").exists()


def test_floors_have_nothing_to_tune(target: Domain, tmp_path: Path) -> None:
    arguments = ("--models", "item-knn", "--tune", RATES, "--to", tmp_path / "study")
    assert "none of the models is trained" in compare(target.path, *arguments, ends=1).stderr


def test_a_study_chooses_by_the_validation(target: Domain, tmp_path: Path) -> None:
    arguments = ("--models", "pure-id", "--set", "training.with_validation=true", "--to", tmp_path / "study")
    assert "training.with_validation: a study chooses by" in compare(target.path, *arguments, ends=1).stderr


def test_no_two_sections_have_a_setting_of_one_name() -> None:
    names = [name for part in (ModelConfig, ObjectiveConfig, TrainingConfig) for name in part.__dataclass_fields__]
    assert len(set(names)) == len(names)
    assert Config().settings().keys() == {
        f"{section}.{name}"
        for section, part in (("model", ModelConfig), ("objective", ObjectiveConfig), ("training", TrainingConfig))
        for name in part.__dataclass_fields__
    }
