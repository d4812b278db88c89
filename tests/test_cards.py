import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import click
import jinja2
import pytest
from huggingface_hub import EvalResult, ModelCard
from stages import config, new_run, untrained

from bivrec.artefact import Tower
from bivrec.cards import TEMPLATES, tower_card
from bivrec.cli import main
from bivrec.data.domain import Domain
from bivrec.hub import publish, tower_of_run
from bivrec.training.checkpoint import Progress, save_checkpoint
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)


@pytest.fixture(scope="module")
def artefact(tower: Path) -> Tower:
    return Tower.from_pretrained(str(tower))


def render(artefact: Tower, name: str = "org/tower", **changes: Any) -> str:
    training = {**artefact.training, **changes}
    return tower_card(name, artefact.config, artefact.features, training, artefact.num_parameters)


def tables(card: str) -> list[list[list[str]]]:
    """Cells of the tables of a card."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", card, re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()] for table in found]


def test_the_metadata_parses(tower: Path, pretrained: Run) -> None:
    card = ModelCard.load(tower / "README.md")
    assert card.data.library_name == "bivrec"
    assert "arxiv:2402.17334" in card.data.tags
    assert all(isinstance(result, EvalResult) for result in card.data.eval_results)
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == pretrained.results()["mm"]
    assert {result.dataset_name for result in card.data.eval_results} == {"source"}


def test_tables_are_whole(artefact: Tower) -> None:
    features, results = tables(render(artefact))
    for table in (features, results):
        assert {len(row) for row in table} == {len(table[0])}
        assert set(table[1]) == {"---"}
    assert [row[0] for row in features[2:]] == list(artefact.features)
    assert [row[0] for row in results[2:]] == list(artefact.training["results"])
    header, *rows = results[:1] + results[2:]
    for view, *cells in rows:
        measured = artefact.training["results"][view]
        assert [float(cell) for cell in cells] == [round(measured[metric], 4) for metric in header[1:]]


def test_what_a_reader_needs_is_said(artefact: Tower) -> None:
    card = render(artefact)
    assert "# org/tower" in card
    assert f"{artefact.num_parameters:,} parameters" in card
    assert f"step {artefact.training['best_step']}" in card
    for spec in artefact.features.values():
        assert spec.encoder in card


def test_the_commands_of_the_card_are_commands(artefact: Tower) -> None:
    block = re.search(r"```bash\n(.*?)```", render(artefact), re.DOTALL)
    assert block is not None
    commands = [line.split() for line in block[1].splitlines() if line.startswith("bivrec ")]
    assert commands
    for _, name, *arguments in commands:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        parameters = command.make_context(name, arguments).params
        assert "org/tower" in str(parameters.get("source") or parameters.get("sources"))


@pytest.mark.parametrize("key", ["domain", "config", "best_step", "seconds", "command", "versions", "results"])
def test_an_undefined_variable_is_an_error(artefact: Tower, key: str) -> None:
    training = {name: value for name, value in artefact.training.items() if name != key}
    with pytest.raises((jinja2.UndefinedError, KeyError, TypeError)):
        tower_card("org/tower", artefact.config, artefact.features, training, 1)


@pytest.mark.parametrize(
    "template", [file.name for file in resources.files(TEMPLATES).iterdir() if file.name.endswith(".jinja")]
)
def test_templates_swallow_nothing(template: str) -> None:
    text = (resources.files(TEMPLATES) / template).read_text(encoding="utf-8")
    assert not re.search(r"\|\s*default|is (not )?defined", text)


def test_a_training_that_has_not_ended_has_no_results(source: Domain, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", source, config())
    save_checkpoint(run.checkpoint("best"), untrained(source, run.config), Progress(step=1, best_step=1))
    card = ModelCard.load(Path(publish(run, str(tmp_path / "tower"))) / "README.md")
    assert card.data.eval_results is None
    assert "has not ended yet" in card.text


@pytest.mark.parametrize("name", ["org/tower", "/a path/with: colon", "quote'd\"", "- #1", "ünïcode"])
def test_any_name_gives_metadata_that_parse(artefact: Tower, name: str) -> None:
    card = ModelCard(render(artefact, name))
    assert card.data.model_name == name
    assert len(card.data.eval_results) == len(artefact.training["results"]["mm"])


def test_no_value_is_a_gap(artefact: Tower) -> None:
    card = render(artefact)
    assert not re.search(r"\bNone\b|\bnan\b|\{\{|\}\}|\{%|Undefined", card)
    assert all(math.isfinite(value) for value in artefact.training["results"]["mm"].values())


def test_a_run_gives_the_card_of_its_tower(pretrained: Run, tower: Path) -> None:
    run = tower_of_run(pretrained)
    assert render(run, tower.name) == (tower / "README.md").read_text(encoding="utf-8")
