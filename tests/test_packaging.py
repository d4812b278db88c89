"""The wheel, installed far from the checkout, in a folder full of other people's files."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from stages import in_subprocess

from bivrec.recipes import recipe_names

ROOT = Path(__file__).parent.parent
SOURCES = ("bivrec", "pretrain", "finetune", "model_cards", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "wheels")
    built = in_subprocess("-m", "pip", "wheel", "--quiet", *options, folder)
    assert built.returncode == 0, built.stderr
    (found,) = (folder / "wheels").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    result = in_subprocess("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory such as many have."""
    for name in ("pretrain.py", "finetune.py", "model_cards.py", "recipes.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')\n")
    return tmp_path


def run_installed(installed: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = in_subprocess(*arguments, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_one_import_package_and_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"bivrec", "bivrec_pretrain_recipes", "bivrec_finetune_recipes", "bivrec_model_cards"}
    assert "bivrec/py.typed" in names
    for folder, package in (("pretrain", "bivrec_pretrain_recipes"), ("finetune", "bivrec_finetune_recipes")):
        for recipe in (ROOT / folder).glob("*.yaml"):
            assert f"{package}/{recipe.name}" in names
    for template in (ROOT / "model_cards").glob("*.jinja"):
        assert f"bivrec_model_cards/{template.name}" in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bivrec").rglob("*.py")}
    assert modules == {name for name in names if name.startswith("bivrec/") and name.endswith(".py")}


def test_the_installed_copy_is_the_one_that_runs(installed: Path, elsewhere: Path) -> None:
    code = (
        "import bivrec.recipes, bivrec.cards; from importlib import resources; "
        "print(bivrec.__file__); print(*[resources.files(p) for p in bivrec.recipes.PACKAGES.values()], sep='\\n'); "
        "print(resources.files(bivrec.cards.TEMPLATES))"
    )
    for line in run_installed(installed, elsewhere, "-c", code).splitlines():
        assert Path(line).is_relative_to(installed)


def test_recipes_by_name(installed: Path, elsewhere: Path) -> None:
    listed = run_installed(installed, elsewhere, "-m", "bivrec", "recipes")
    assert [line.split()[0] for line in listed.splitlines()] == recipe_names()
    for name in recipe_names()[:2]:
        assert "training:" in run_installed(installed, elsewhere, "-m", "bivrec", "recipes", "show", name)


def test_the_script(installed: Path, elsewhere: Path) -> None:
    assert run_installed(installed, elsewhere, str(installed / "bin" / "bivrec"), "--version").startswith("bivrec")


def test_help_of_a_stage_next_to_a_module_of_its_name(installed: Path, elsewhere: Path) -> None:
    assert "Usage: " in run_installed(installed, elsewhere, "-m", "bivrec", "pretrain", "--help")


def test_the_requirements_are_those_of_setup(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    text = archive.read(metadata).decode()
    for needed in ("torch", "accelerate", "datasets", "huggingface-hub", "safetensors", "click", "filelock"):
        assert f"Requires-Dist: {needed}" in text
    assert "Requires-Python: >=3.11" in text


def test_the_figures_of_the_paper_ship(installed: Path, elsewhere: Path) -> None:
    code = "from bivrec.studies.paper import table1; print(table1('SASRec*', 'ml-1m')['recall@20'])"
    assert run_installed(installed, elsewhere, "-c", code).strip() == "7.32"
