"""Cards: whole, parsed by the Hub's own client, and equal to what was measured."""

import dataclasses
import json
import math
import re
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, EvalResult, ModelCard
from PIL import Image
from stages import bivrec, config, new_run, untrained

from bivrec.artefact import Tower
from bivrec.card_facts import card_facts, draw_training_curve
from bivrec.cards import FLOOR_NAMES, TEMPLATES, VIEW_NAMES, domain_card, model_card, neutral_command
from bivrec.cli import main
from bivrec.config import FLOORS
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import zero_shot_model
from bivrec.hub import model_of_run, publish, tower_of_run
from bivrec.terms import terms_of
from bivrec.training.checkpoint import Progress, save_checkpoint
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

KINDS = ("tower", "joint")
GAPS = re.compile(r"\bNone\b|\bnan\b|\{\{|\}\}|\{%|Undefined")
READY = sorted((Path(__file__).parent.parent / "model_cards").glob("*/README.md"))

either_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def artefact(tower: Path) -> Tower:
    return Tower.from_pretrained(str(tower))


def render(artefact: Tower, name: str = "org/tower", kind: str = "tower", **changes: Any) -> str:
    training = {**artefact.training, **changes}
    return model_card(kind, name, artefact.config, artefact.features, training, artefact.num_parameters)


def tables(card: str) -> list[list[list[str]]]:
    """Cells of the tables of a card."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", card, re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()] for table in found]


def sections(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, re.MULTILINE)


# Metadata


@either_kind
def test_the_metadata_are_whole(artefact: Tower, kind: str) -> None:
    data = ModelCard(render(artefact, kind=kind)).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("bivrec", "other", "apache-2.0")
    assert {"arxiv:2402.17334", "sequential-recommendation"} <= set(data.tags)
    assert data.datasets == ["source"]
    assert data.base_model is None


@pytest.mark.parametrize(("kind", "views"), [("tower", ["mm"]), ("joint", ["id", "mm", "both"])])
def test_the_model_index_is_what_the_run_measured(
    artefact: Tower, pretrained: Run, source: Domain, kind: str, views: list[str]
) -> None:
    results = ModelCard(render(artefact, kind=kind)).data.eval_results
    assert all(isinstance(result, EvalResult) for result in results)
    assert {(r.metric_config, r.metric_type): r.metric_value for r in results} == {
        (view, metric): value for view in views for metric, value in pretrained.results()[view].items()
    }
    for result in results:
        assert (result.dataset_name, result.dataset_split) == ("source", "test")
        assert result.dataset_args["test_users"] == source.info.users["test"]
        assert {"targets", "candidates", "seen_items"} <= set(result.dataset_args)


def test_a_tower_from_the_hub_is_the_base_model(artefact: Tower) -> None:
    commit = "0123456789abcdef"
    card = ModelCard(
        render(artefact, started_from={"name": "org/first@v1", "revision": commit, "sha256": "ab"}, stage="finetune")
    )
    assert card.data.base_model == "org/first"
    assert commit in card.text
    local = {"name": "/home/me/towers/first", "revision": None, "sha256": "ab"}
    card = ModelCard(render(artefact, started_from=local, stage="finetune"))
    assert card.data.base_model is None
    assert '"first"' in card.text
    assert "/home/me" not in card.text


def test_a_domain_from_the_hub_is_the_data_set(artefact: Tower) -> None:
    card = ModelCard(render(artefact, dataset="org/shop@0123456789abcdef"))
    assert card.data.datasets == ["org/shop"]
    assert "https://huggingface.co/datasets/org/shop)" in card.text


@either_kind
@pytest.mark.parametrize("name", ["org/tower", "/a path/with: colon", "quote'd\"", "- #1", "ünïcode"])
def test_any_name_gives_metadata_that_parse(artefact: Tower, name: str, kind: str) -> None:
    card = ModelCard(render(artefact, name, kind))
    assert card.data.model_name == name
    assert card.data.eval_results


@pytest.mark.parametrize(
    ("read", "name", "licence"),
    [
        ({"reader": "movielens"}, "films", ("other", "movielens")),
        ({"reader": "tables"}, "ml-1m", ("other", "movielens")),
        (None, "ML-25M", ("other", "movielens")),
        ({"reader": "amazon"}, "baby", ("other", "amazon-reviews")),
        ({"reader": "taobao"}, "clicks", ("other", "taobao-userbehavior")),
        ({"reader": "synthetic"}, "source", ("apache-2.0", None)),
        ({"reader": "tables"}, "shop", ("unknown", None)),
        (None, "shop", ("unknown", None)),
    ],
)
def test_the_terms_are_those_of_the_source(
    artefact: Tower, read: dict[str, Any] | None, name: str, licence: tuple[str, str | None]
) -> None:
    card = ModelCard(render(artefact, source=read, domain={**artefact.training["domain"], "name": name}))
    assert (card.data.license, card.data.license_name) == licence
    terms = terms_of(read, name)
    assert all(text in card.text for text in (terms.text, terms.source, *terms.citations))
    assert ("Harper" in card.text) == (licence[1] == "movielens")


# Text


@either_kind
def test_tables_are_whole(artefact: Tower, kind: str) -> None:
    features, results = tables(render(artefact, kind=kind))
    for table in (features, results):
        assert {len(row) for row in table} == {len(table[0])}
        assert set(table[1]) == {"---"}
    assert [row[0] for row in features[2:]] == list(artefact.features)
    measured = {VIEW_NAMES[view]: metrics for view, metrics in artefact.training["results"].items()}
    measured |= {f"*{FLOOR_NAMES[floor]}*": metrics for floor, metrics in artefact.training["floors"].items()}
    header, *rows = results[:1] + results[2:]
    assert [row[0] for row in rows] == list(measured)
    for name, *cells in rows:
        assert [float(cell) for cell in cells] == [round(measured[name][metric], 4) for metric in header[1:]]


@either_kind
def test_what_a_reader_needs_is_said(artefact: Tower, pretrained: Run, kind: str) -> None:
    card = render(artefact, kind=kind)
    assert "# org/tower" in card
    assert sections(card) == [
        "Use",
        "Data",
        "Frozen encoders",
        "Architecture",
        "Training",
        "Results",
        "Intended use",
        "Limits",
        "Citation",
    ]
    hardware = pretrained.info.hardware
    assert hardware["threads"] == torch.get_num_threads()
    for fact in (
        f"{artefact.num_parameters:,} parameters",
        f"step {artefact.training['best_step']}",
        f"{hardware['processes']} x {hardware['device']}, {hardware['threads']} thread",
        f"each, {hardware['precision']}.",
        *(spec.encoder for spec in artefact.features.values()),
        *(f"{name} {version}" for name, version in pretrained.info.versions.items()),
    ):
        assert fact in card


def test_a_tower_of_texts_alone_does_not_claim_images(artefact: Tower) -> None:
    of_texts = {"text": artefact.features["text"]}
    card = model_card("tower", "tower", artefact.config, of_texts, artefact.training, artefact.num_parameters)
    assert "it turns the frozen text features\nof items" in card
    assert "it turns the frozen text and image features\nof items" in render(artefact)


def test_a_record_that_lacks_something(artefact: Tower) -> None:
    with pytest.raises(BivrecError, match=r"the record of the training lacks.*precision"):
        render(artefact, hardware={"device": "cpu", "processes": 1, "threads": 1})


@pytest.mark.parametrize(
    ("kind", "commands"),
    [("tower", ["finetune", "evaluate"]), ("joint", ["evaluate", "evaluate", "finetune"]), ("domain", None)],
)
def test_the_commands_of_the_card_are_commands(
    artefact: Tower, source: Domain, kind: str, commands: list[str] | None
) -> None:
    card = domain_card("org/tower", source.info) if kind == "domain" else render(artefact, kind=kind)
    block = re.search(r"```bash\n(.*?)```", card, re.DOTALL)
    assert block is not None
    lines = [line.split() for line in block[1].splitlines() if line.startswith("bivrec ")]
    assert [line[1] for line in lines] == (commands or ["evaluate", "pretrain"])
    for _, name, *arguments in lines:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        parameters = command.make_context(name, arguments).params
        assert "org/tower" in str([parameters.get(key) for key in ("source", "sources", "domain")])


def code(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_code_of_a_tower_runs(tower: Path, target: Domain) -> None:
    histories = torch.tensor([[0, 0, 1], [4, 2, 3]])
    names: dict[str, Any] = {"histories": histories}
    example = code((tower / "README.md").read_text()).replace("PATH/TO", str(tower.parent))
    exec(example.replace("MY_DOMAIN", str(target.path)), names)
    scorer = ModelScorer(zero_shot_model(target, Tower.from_pretrained(tower)), "mm")
    expected = scorer.score(scorer.encode(histories), 1, target.num_items + 1)
    torch.testing.assert_close(names["scores"][:, 1:], expected)


def test_the_code_of_a_joint_model_runs(pretrained: Run, source: Domain, tmp_path: Path) -> None:
    folder = Path(publish(pretrained, str(tmp_path / "joint"), "joint"))
    names: dict[str, Any] = {}
    example = code((folder / "README.md").read_text()).replace("PATH/TO", str(tmp_path))
    exec(example.replace("MY_DOMAIN", str(source.path)), names)
    assert set(names["model"].views) == {"id", "mm"}


@either_kind
@pytest.mark.parametrize(
    "key", ["domain", "config", "best_step", "seconds", "command", "versions", "results", "started_from", "stage"]
)
def test_an_undefined_variable_is_an_error(artefact: Tower, key: str, kind: str) -> None:
    training = {name: value for name, value in artefact.training.items() if name != key}
    with pytest.raises((BivrecError, KeyError, TypeError)):
        model_card(kind, "org/tower", artefact.config, artefact.features, training, 1)


@pytest.mark.parametrize(
    "template", [file.name for file in resources.files(TEMPLATES).iterdir() if file.name.endswith(".jinja")]
)
def test_templates_swallow_nothing(template: str) -> None:
    text = (resources.files(TEMPLATES) / template).read_text(encoding="utf-8")
    assert not re.search(r"\|\s*default|is (not )?defined", text)


@either_kind
def test_a_training_that_has_not_ended_has_no_results(artefact: Tower, kind: str) -> None:
    card = ModelCard(render(artefact, kind=kind, results={}))
    assert card.data.eval_results is None
    assert "has not ended yet" in card.text


@either_kind
def test_no_value_is_a_gap(artefact: Tower, kind: str) -> None:
    for unknown in ({}, {"floors": None, "source": None, "dataset": None}):
        assert not GAPS.search(render(artefact, kind=kind, **unknown))
    assert all(math.isfinite(value) for value in artefact.training["results"]["mm"].values())


def test_the_joint_card_says_how_much_each_view_counts(artefact: Tower) -> None:
    assert "rank by 0.7 id + 0.3 mm of their scores" in render(artefact, kind="joint", id_weight=0.7)
    assert "of their scores" not in render(artefact, kind="joint", id_weight=None)
    assert "of their scores" not in render(artefact, kind="tower", id_weight=0.7)


def test_a_joint_model_of_ids_alone(id_only: Run) -> None:
    training = {
        **dataclasses.asdict(id_only.info),
        "best_step": 1,
        "seconds": 1.0,
        "results": id_only.results(),
        "id_weight": id_only.id_weight(),
        **card_facts(id_only, model_of_run(id_only)),
    }
    card = model_card("joint", "org/ids", id_only.config.model, {}, training, 9)
    assert not GAPS.search(card)
    assert "has no multimodal view" in card
    assert "--zero-shot" not in card
    assert {result.metric_config for result in ModelCard(card).data.eval_results} == {"id"}


# What is gathered from a Run


def test_a_run_gives_the_card_of_its_tower(pretrained: Run, tower: Path) -> None:
    run = tower_of_run(pretrained)
    facts = {**run.training, **card_facts(pretrained, run)}
    card = model_card(
        "tower", tower.name, run.config, run.features, facts, run.num_parameters, picture="training_curve.png"
    )
    assert card == (tower / "README.md").read_text(encoding="utf-8")


def test_the_floors_are_those_that_evaluate_prints(artefact: Tower, source: Domain) -> None:
    options = [word for floor in FLOORS for word in ("--floor", floor)]
    printed = bivrec("evaluate", source.path, *options, "--k", 10, "--k", 20, "--k", 50, "--json")
    assert json.loads(printed.stdout)["results"] == artefact.training["floors"]


def test_floors_that_cannot_be_measured_are_not_invented(pretrained: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pretrained.path, tmp_path / "run"))
    info = json.loads((copy / "run.json").read_text())
    info["domain"]["path"] = str(tmp_path / "gone")
    (copy / "run.json").write_text(json.dumps(info))
    info["domain"]["source"] = {"reader": "amazon"}
    (copy / "run.json").write_text(json.dumps(info))
    told = bivrec("publish", copy, "--to", tmp_path / "tower").stderr
    assert told.startswith(f"Warning: the card has no floors, and of a tower no results, to compare with: {tmp_path}")
    card = (tmp_path / "tower" / "README.md").read_text()
    assert "were not measured" in card
    assert "kNN*" not in card
    # Whoever gave the data: what the terms are does not depend on where it lies.
    assert "amazon-reviews" in card


def test_no_path_of_the_machine_is_published(pretrained: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pretrained.path, tmp_path / "run"))
    info = json.loads((copy / "run.json").read_text())
    info["domain"]["source"]["texts"] = f"{tmp_path}/plots.csv"
    info["command"] = f"bivrec pretrain {tmp_path}/shop --to={tmp_path}/run --recipe ~/my.yaml --set model.scales=[4]"
    (copy / "run.json").write_text(json.dumps(info))
    folder = Path(publish(Run.open(copy), str(tmp_path / "tower")))
    for name in ("README.md", "config.json"):
        text = (folder / name).read_text()
        assert str(tmp_path) not in text
        assert str(Path.home()) not in text
    assert (
        "bivrec pretrain shop --to=run --recipe my.yaml --set 'model.scales=[4]'" in (folder / "README.md").read_text()
    )


@pytest.mark.parametrize("command", ["bivrec pretrain domains/shop --to ../runs/shop", "bivrec pretrain hub:org/shop"])
def test_relative_paths_stay(command: str) -> None:
    assert neutral_command(command) == command


def test_the_picture_shows_the_training(pretrained: Run, tower: Path, tmp_path: Path) -> None:
    with Image.open(tower / "training_curve.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 100
        assert len(picture.convert("L").getcolors(256) or []) > 2
    assert "](training_curve.png)" in (tower / "README.md").read_text()


def test_without_matplotlib_there_is_no_picture_and_no_word_of_it(
    pretrained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = Path(publish(pretrained, str(tmp_path / "tower")))
    assert not (folder / "training_curve.png").exists()
    assert "training_curve" not in (folder / "README.md").read_text()


def test_a_run_that_was_never_evaluated_has_no_picture(source: Domain, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", source, config())
    save_checkpoint(run.checkpoint("best"), untrained(source, run.config), Progress(step=1, best_step=1))
    assert draw_training_curve(run, tmp_path) is None


# Data cards


def test_a_data_card_says_what_the_domain_holds(source: Domain) -> None:
    card = DatasetCard(domain_card("org/shop", source.info))
    info = source.info
    assert (card.data.pretty_name, card.data.license) == ("source", "apache-2.0")
    assert card.data.size_categories == ["n<1K"]
    assert not GAPS.search(card.text)
    counts, features = tables(card.text)
    assert counts[2:] == [[split, f"{users:,}", f"{info.interactions[split]:,}"] for split, users in info.users.items()]
    assert [row[:4] for row in features[2:]] == [
        [name, spec.encoder, spec.revision or "-", str(spec.dimension)] for name, spec in info.features.items()
    ]
    assert sections(card.text) == ["Use", "Content", "Preparation and protocol", "Terms", "Limits"]


def test_a_data_card_names_files_that_exist(source: Domain) -> None:
    configs = DatasetCard(domain_card("org/shop", source.info)).data.to_dict()["configs"]
    assert {entry["config_name"]: [f["split"] for f in entry["data_files"]] for entry in configs} == {
        "sequences": ["train", "validation", "test"],
        "items": ["items"],
    }
    assert all((source.path / file["path"]).is_file() for entry in configs for file in entry["data_files"])


def test_a_data_card_in_a_folder_does_not_speak_of_the_hub(source: Domain) -> None:
    assert "hub:" not in domain_card("shop", source.info)
    assert "bivrec evaluate PATH/TO/shop " in domain_card("shop", source.info)


def test_a_data_card_without_features(small_domain: Domain) -> None:
    card = domain_card("small", small_domain.info)
    assert "no item features" in card
    assert not GAPS.search(card)


# The cards of the checkpoints that the project produced


@pytest.mark.parametrize("path", READY, ids=lambda path: path.parent.name)
def test_ready_cards_are_whole(path: Path) -> None:
    card = ModelCard.load(path)
    assert card.data.model_name == path.parent.name
    assert card.data.eval_results
    assert not GAPS.search(card.text)
    assert not re.search(r"(?<![\w.:/])/(tmp|home|work|root|mnt)/", card.content)
    for picture in re.findall(r"!\[.*\]\((.*)\)", card.text):
        assert (path.parent / picture).is_file()
    assert yaml.safe_load(card.data.to_yaml())["model-index"]
