"""What `bivrec info` tells of a folder."""

import shutil
from pathlib import Path

import pytest
from stages import bivrec, succeed

from bivrec.data.domain import Domain
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
    told = succeed("info", tower)
    assert "tower" in told
    assert "trained on source" in told
    assert "mm" in told


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
