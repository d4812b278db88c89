"""What `bivrec info` tells of a folder."""

from pathlib import Path

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
