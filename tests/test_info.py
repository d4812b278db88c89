"""What `bivrec info` tells of a folder."""

import shutil
from pathlib import Path

import pytest
from stages import bivrec, succeed

from bivrec.artefact import Tower
from bivrec.config import config_from_dict
from bivrec.data.domain import Domain
from bivrec.recipes import read_recipe, recipe_names
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)


def test_info_tells_what_a_folder_holds(source: Domain, pretrained: Run, tower: Path) -> None:
    domain = succeed("info", source.path)
    assert f"{source.num_items:,} items" in domain
    assert "text features: hashing" in domain
    run = succeed("info", pretrained.path)
    assert "pretrain of id + mm on source" in run
    assert f"best weights of step {pretrained.progress().best_step}" in run
    assert "both = " in run
    told = succeed("info", tower).splitlines()
    assert told[0] == f"{tower}: tower, {Tower.from_pretrained(str(tower)).num_parameters:,} parameters"
    assert told[1].startswith("  trained on source: ")


@pytest.mark.parametrize(("users", "sparse"), [(19, True), (20, False)])
def test_info_says_which_recipe_suits_how_often_items_are_had(tmp_path: Path, users: int, sparse: bool) -> None:
    held_out = 2
    rows = [f"{user},{item},{time}" for user in range(users + held_out) for time, item in enumerate("abcde")]
    # An item more, that one training user had many times.
    rows += [f"0,often,{5 + time}" for time in range(70)]
    (tmp_path / "rows.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    split = f"{users}:1:1"
    succeed("prepare", "tables", "--interactions", tmp_path / "rows.csv", "--split", split, "--to", tmp_path / "domain")
    told = succeed("info", tmp_path / "domain", "--verify")
    assert told.endswith("  every file is as its checksum says\n")
    (line,) = (line for line in told.splitlines() if line.startswith("  of an item"))
    counts = Domain.open(tmp_path / "domain").training_counts()[1:]
    most = max(counts)
    assert line == f"  of an item: median {users}, mean {sum(counts) / 6:.1f}, most {most} of these"
    assert ("take the recipe sparse, or for the ID view alone amazon" in told) is sparse
    (tmp_path / "domain" / "sequences" / "dataset_dict.json").write_text(
        '{"splits": ["train", "testing", "validatio"]}'
    )
    damaged = bivrec("info", tmp_path / "domain", "--verify")
    assert (damaged.exit_code, "dataset_dict.json: " in damaged.stderr) == (1, True)


def test_info_says_how_to_train_on_many_items(source: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "full softmax" not in succeed("info", source.path)
    monkeypatch.setattr("bivrec.cli.reports.MANY_ITEMS", source.num_items)
    (line,) = (line for line in succeed("info", source.path).splitlines() if "many for a full softmax" in line)
    recipes = {name: config_from_dict(read_recipe(name)) for name in recipe_names() if "quickstart" not in name}
    full = [name.partition("/")[2] for name, recipe in recipes.items() if recipe.objective.candidates == "full"]
    assert sorted(full) == ["amazon", "default"]
    assert "to default and amazon add --set objective.candidates=uniform" in line


def test_info_of_a_joint_model(pretrained: Run, tmp_path: Path) -> None:
    succeed("publish", pretrained.path, "--model", "joint", "--to", tmp_path / "joint")
    told = succeed("info", tmp_path / "joint")
    assert "joint model" in told
    assert "both = " in told


def test_info_of_anything_else(tmp_path: Path) -> None:
    assert "neither a Domain nor a Run nor a published model" in bivrec("info", tmp_path).stderr
    assert "no such folder" in bivrec("info", tmp_path / "absent").stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"id": {"recall@20": 0.', "not valid JSON"),
        ("[]", "expected metrics by view"),
        ('{"id": 3}', "expected metrics by view"),
        ('{"id": {"recall@20": "high"}}', "'id': 'recall@20': expected a number, found 'high'"),
        ('{"id": {"recall@20": null}}', "'id': 'recall@20': expected a number, found None"),
        ('{"id": {"recall@20": 0.5}, "mm": {"recall@50": 0.5}}', "'mm': has other metrics than the views before it"),
    ],
)
def test_damaged_results_are_told_in_one_line(pretrained: Run, tmp_path: Path, content: str, complaint: str) -> None:
    run = shutil.copytree(pretrained.path, tmp_path / "run")
    (run / "results.json").write_text(content)
    for command in (("info", run), ("publish", run, "--to", tmp_path / "tower")):
        result = bivrec(*command)
        assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
        assert result.stderr.startswith(f"Error: {run}/results.json: {complaint}")
        assert result.stderr.count("\n") == 1
        assert not result.stdout
    (run / "results.json").unlink()
    succeed("pretrain", "--to", run, "--resume")
    assert Run.open(run).results() == pretrained.results()
