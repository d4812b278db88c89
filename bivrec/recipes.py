"""The recipes that ship with bivrec: YAML files of the folders pretrain/ and finetune/, installed as package data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bivrec.config import apply_overrides
from bivrec.errors import BivrecError

PACKAGES = {"pretrain": "bivrec_pretrain_recipes", "finetune": "bivrec_finetune_recipes"}


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As of yaml. Raises ConstructorError for such a key."""
        keys = [key.value for key, _ in node.value]
        for (key, _), value in zip(node.value, keys, strict=True):
            if keys.count(value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{value}' is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def recipe_names() -> list[str]:
    """Names of all recipes, such as `pretrain/ml-1m`."""
    return [
        f"{stage}/{file.name.removesuffix('.yaml')}"
        for stage, package in PACKAGES.items()
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    ]


def full_name(name: str, stage: str | None = None) -> str:
    """`stage/name` of a recipe that ships with bivrec, whose stage may be left out if no other stage has the name.

    stage: whose recipe is meant where `name` does not say so. Raises BivrecError if there is no such recipe, or two.
    """
    of_stages = [known for known in recipe_names() if name in (known, known.partition("/")[2])]
    found = [known for known in of_stages if stage is None or "/" in name or known.startswith(f"{stage}/")]
    if len(found) == 1:
        return found[0]
    if of_stages:
        raise BivrecError(f"{name}: a recipe belongs to a stage; say {' or '.join(of_stages)}")
    raise BivrecError(f"recipe {name}: no such recipe; there are {', '.join(recipe_names())}, or a .yaml file")


def launch_configs() -> dict[str, Path]:
    """The launch configurations of Accelerate that ship with bivrec, by name: `gpu-8` and so on."""
    folder = Path(str(resources.files(PACKAGES["pretrain"]) / "launch"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def launch_summary(path: Path) -> str:
    """The comment at the head of a launch configuration, on one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def read_recipe(name: str, stage: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Values of a recipe with `section.key=value` overrides: a YAML file, or a name that `full_name` knows.

    Raises BivrecError if there is no such recipe, with the names that there are.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise BivrecError(f"recipe {name}: no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as fault:
            raise BivrecError(f"recipe {name}: not UTF-8 text ({fault}); save it as UTF-8") from None
    else:
        folder, _, base = full_name(name, stage).partition("/")
        text = (resources.files(PACKAGES[folder]) / f"{base}.yaml").read_text(encoding="utf-8")
    try:
        values = yaml.load(text, Loader=_Loader) or {}
    except yaml.YAMLError as fault:
        raise BivrecError(f"recipe {name}: not valid YAML ({' '.join(str(fault).split())})") from None
    if not isinstance(values, dict):
        raise BivrecError(f"recipe {name}: expected sections such as 'model:' and 'training:', found {values!r}")
    # A section whose keys are all comments is None.
    return apply_overrides({key: part for key, part in values.items() if part is not None}, overrides)
