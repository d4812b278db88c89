import dataclasses
from pathlib import Path

import pytest
import yaml
from stages import bivrec

from bivrec.config import Config, ModelConfig, config_from_dict
from bivrec.errors import BivrecError
from bivrec.recipes import PACKAGES, full_name, launch_configs, read_recipe, recipe_names

ROOT = Path(__file__).parent.parent
FOLDERS = {"pretrain": ROOT / "pretrain", "finetune": ROOT / "finetune"}


def config_of(name: str) -> Config:
    return config_from_dict(read_recipe(name), name)


def test_every_file_is_a_recipe() -> None:
    files = {f"{stage}/{path.stem}" for stage, folder in FOLDERS.items() for path in folder.glob("*.yaml")}
    assert set(recipe_names()) == files
    assert len(recipe_names()) == len(files)
    assert {f"{stage}/default" for stage in PACKAGES} <= files


@pytest.mark.parametrize("name", recipe_names())
class TestRecipe:
    def test_it_is_a_configuration(self, name: str) -> None:
        assert isinstance(config_of(name), Config)

    def test_it_says_what_it_is_for_in_one_line(self, name: str) -> None:
        description = config_of(name).description
        assert description
        assert "\n" not in description

    def test_it_has_a_line_in_the_list(self, name: str) -> None:
        line = next(line for line in bivrec("recipes").stdout.splitlines() if line.split()[0] == name)
        assert line.endswith(config_of(name).description)

    def test_what_is_shown_reads_back(self, name: str, tmp_path: Path) -> None:
        shown = bivrec("recipes", "show", name)
        assert shown.exit_code == 0, shown.output
        (tmp_path / "mine.yaml").write_text(shown.stdout)
        assert config_of(str(tmp_path / "mine.yaml")) == config_of(name)

    def test_its_stage_may_be_left_out(self, name: str) -> None:
        stage, _, base = name.partition("/")
        assert read_recipe(base, stage) == read_recipe(name)


def test_a_stage_may_be_left_out_where_one_has_the_name() -> None:
    assert bivrec("recipes", "show", "ml-1m").stdout == bivrec("recipes", "show", "pretrain/ml-1m").stdout != ""
    assert full_name("default", "finetune") == "finetune/default"


def test_choices_are_listed_where_the_description_does_not_name_them() -> None:
    shown = {
        line.split(":")[0].strip(): line for line in bivrec("recipes", "show", "pretrain/default").stdout.splitlines()
    }
    assert shown["optimizer"].endswith("# optimiser: adam or adamw")
    assert shown["assignment"].endswith("(Eq. 8-10): gumbel-hard, softmax-hard or softmax-soft")
    assert shown["selection_view"].endswith(": id, mm or both")
    assert shown["modalities"].endswith("that the Domain has); choices: text or image")
    assert "unisrec" in shown["system"]
    assert shown["score"].endswith("# item score: dot product (the paper) or cosine with a learned scale")


def test_the_architecture_of_a_finetuning_is_the_towers() -> None:
    name = "finetune/default"
    shown = bivrec("recipes", "show", name, "--set", "model.dropout=0.1").stdout
    model = yaml.safe_load(shown)["model"]
    assert model == {**read_recipe(name)["model"], "dropout": 0.1}
    for setting in dataclasses.fields(ModelConfig):
        assert (f"  # {setting.name}: from the tower " in shown) == (setting.name not in model)
    assert "from the tower" not in bivrec("recipes", "show", "pretrain/default").stdout


def test_launch_configurations_are_listed_in_whole_sentences() -> None:
    listed = bivrec("recipes", "launch").stdout.splitlines()
    assert len(listed) == len(launch_configs())
    assert all(line.endswith(".") for line in listed)


def test_overrides() -> None:
    shown = bivrec("recipes", "show", "pretrain/default", "--set", "model.scales=[2, 8]", "--set", "training.seed=7")
    config = config_from_dict(yaml.safe_load(shown.stdout))
    assert (config.model.scales, config.training.seed) == ((2, 8), 7)


def fault(name: str, stage: str | None = None) -> str:
    with pytest.raises(BivrecError) as caught:
        read_recipe(name, stage)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "stage"), [("none", "pretrain"), ("none", None), ("elsewhere/default", None)])
def test_no_such_recipe(name: str, stage: str | None) -> None:
    message = fault(name, stage)
    assert message.startswith(f"recipe {name}: no such recipe")
    assert all(known in message for known in recipe_names())


def test_a_recipe_without_its_stage() -> None:
    assert fault("default", None) == "default: a recipe belongs to a stage; say pretrain/default or finetune/default"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "not valid YAML"),
        (b"model:\n\thidden_size: 3", "not valid YAML"),
        (b"model:\n  dropout: 0.1\n  dropout: 0.2", "'dropout' is there twice"),
        (b"- model", "expected sections"),
        (b"just words", "expected sections"),
        (b"\xff\xfe\x00model", "not UTF-8"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    assert message in fault(str(tmp_path / "r.yaml"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    for name in ("none.yaml", "folder.yaml", "none.yml"):
        assert "no such file" in fault(str(tmp_path / name))


def test_a_section_of_comments_alone_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model:\n  # hidden_size: from the tower\ntraining:\n  steps: 7\n")
    assert read_recipe(str(tmp_path / "r.yaml"), None, ["model.dropout=0"]) == {
        "model": {"dropout": 0},
        "training": {"steps": 7},
    }


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("")
    assert config_of(str(tmp_path / "r.yaml")) == Config()
