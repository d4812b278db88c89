"""The recipes that ship with bivrec: YAML files of the folders pretrain/ and finetune/, installed as package data."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bivrec.config import apply_overrides
from bivrec.errors import BivrecError

PACKAGES = {"pretrain": "bivrec_pretrain_recipes", "finetune": "bivrec_finetune_recipes"}


def recipe_names() -> list[str]:
    """Names of all recipes, such as `pretrain/ml-1m`."""
    return [
        f"{stage}/{file.name.removesuffix('.yaml')}"
        for stage, package in PACKAGES.items()
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    ]


def launch_configs() -> dict[str, Path]:
    """The launch configurations of Accelerate that ship with bivrec, by name: `gpu-8` and so on."""
    folder = Path(str(resources.files(PACKAGES["pretrain"]) / "launch"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(name: str, stage: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Values of a recipe with `section.key=value` overrides: a YAML file, `stage/name`, or `name` of the given stage.

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
        full = name if "/" in name or stage is None else f"{stage}/{name}"
        if full not in recipe_names():
            if of_stages := [known for known in recipe_names() if known.partition("/")[2] == name]:
                raise BivrecError(f"{name}: a recipe belongs to a stage; say {' or '.join(of_stages)}")
            raise BivrecError(f"recipe {name}: no such recipe; there are {', '.join(recipe_names())}, or a .yaml file")
        folder, _, base = full.partition("/")
        text = (resources.files(PACKAGES[folder]) / f"{base}.yaml").read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as fault:
        raise BivrecError(f"recipe {name}: not valid YAML ({' '.join(str(fault).split())})") from None
    if not isinstance(values, dict):
        raise BivrecError(f"recipe {name}: expected sections such as 'model:' and 'training:', found {values!r}")
    return apply_overrides(values, overrides)
