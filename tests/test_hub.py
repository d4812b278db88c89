"""What of a Run is published; the wire is tested in test_cli_hub.py."""

import json
import shutil
from pathlib import Path

import pytest
from stages import config, new_run, succeed

from bivrec.artefact import BiVRec, Tower, load
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.finetune import finetune, finetune_config
from bivrec.hub import artefact_of_run, preview, publish
from bivrec.pretrain import pretrain
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

BRIEF = {"training": {"steps": 1, "batch_size": 8, "warmup_steps": 0}}


def test_publishing_again(tower: Path, pretrained: Run, tmp_path: Path) -> None:
    twin = publish(pretrained, str(tmp_path / "twin"))
    for name in ("config.json", "model.safetensors", "results.json"):
        assert (tower / name).read_bytes() == (Path(twin) / name).read_bytes()
    with pytest.raises(BivrecError, match="exists already"):
        publish(pretrained, twin)
    assert publish(pretrained, twin, overwrite=True) == twin


@pytest.mark.parametrize("kind", ["tower", "joint"])
def test_weights_of_another_architecture_are_not_published(pretrained: Run, tmp_path: Path, kind: str) -> None:
    """As of a Run whose description was edited by hand: whoever takes the model could not load it."""
    run = shutil.copytree(pretrained.path, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["config"]["model"]["num_layers"] += 1
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(BivrecError, match=r"best\.safetensors: the weights are of another model"):
        publish(Run.open(run), str(tmp_path / "model"), kind)
    assert not (tmp_path / "model").exists()


def test_a_preview_is_what_is_published(pretrained: Run, tmp_path: Path) -> None:
    for kind in ("tower", "joint"):
        files, card = preview(pretrained, "model", kind)
        folder = Path(publish(pretrained, str(tmp_path / kind / "model"), kind))
        assert files == {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        assert card == (folder / "README.md").read_text(encoding="utf-8")


def test_a_pretraining_gives_a_tower_and_a_finetuning_a_joint_model(
    tower: Path, pretrained: Run, target: Domain, tmp_path: Path
) -> None:
    start = Tower.from_pretrained(tower)
    both = finetune(target, tmp_path / "both", finetune_config(BRIEF, start), start)
    alone = {"training": {**BRIEF["training"], "views": ["mm"], "selection_view": "mm"}}
    mm = finetune(target, tmp_path / "mm", finetune_config(alone, start), start)
    kinds = [type(artefact_of_run(run)) for run in (pretrained, both, mm)]
    assert kinds == [Tower, BiVRec, Tower]
    publish(both, str(tmp_path / "published"))
    assert load(str(tmp_path / "published")).training["started_from"] == {**start.source, "name": tower.name}


def test_a_finetuning_goes_on_from_the_tower_of_a_joint_model(
    tower: Path, pretrained: Run, target: Domain, tmp_path: Path
) -> None:
    joint = Tower.from_pretrained(publish(pretrained, str(tmp_path / "joint"), "joint"))
    alone = Tower.from_pretrained(tower)
    runs = [
        finetune(target, tmp_path / name, finetune_config(BRIEF, start), start)
        for name, start in {"from joint": joint, "from tower": alone}.items()
    ]
    assert runs[0].results() == runs[1].results()
    assert runs[0].info.started_from == joint.source


def test_a_tower_tells_what_it_reaches_without_the_repeat_bias_of_its_run(source: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", config(model={"repeat_bias": True}))
    tower = publish(run, str(tmp_path / "tower"))
    printed = succeed("evaluate", source.path, "--from-hub", tower, "--k", 10, "--k", 20, "--k", 50, "--json")
    measured = json.loads(printed)["results"][f"{tower} mm"]
    assert Tower.from_pretrained(tower).training["results"] == {"mm": pytest.approx(measured)}
    assert measured != run.results()["mm"]
    joint = publish(run, str(tmp_path / "joint"), "joint")
    assert load(joint).training["results"] == run.results()
    assert Tower.from_pretrained(joint).training["results"] == {}


# What cannot be published


def test_a_run_without_the_multimodal_view_has_no_tower(id_only: Run, tmp_path: Path) -> None:
    with pytest.raises(BivrecError, match="trained with the ID view alone"):
        publish(id_only, str(tmp_path / "tower"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_weights(source: Domain, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", source, config())
    with pytest.raises(BivrecError, match=r"best\.safetensors: no such checkpoint"):
        publish(run, str(tmp_path / "tower"))
    assert not (tmp_path / "tower").exists()


def test_a_joint_model_can_be_published_when_its_domain_is_gone(
    pretrained: Run, source: Domain, tmp_path: Path
) -> None:
    info = {**vars(pretrained.info), "domain": {**pretrained.info.domain, "path": str(tmp_path / "gone")}}
    moved = Run(pretrained.path, type(pretrained.info)(**info))
    published = publish(moved, str(tmp_path / "joint"), "joint")
    assert BiVRec.from_pretrained(published, source).item_ids == source.item_ids()
