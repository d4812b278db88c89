"""The floors of the house: imports run one way, and the command line starts without heavy libraries."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bivrec

ROOT = Path(bivrec.__file__).parent
HEAVY = ("torch", "datasets", "transformers", "pyarrow", "accelerate", "matplotlib", "PIL", "scipy", "safetensors")

GROUND = ("errors", "files", "locks", "version", "config", "device", "memory")
MAY_IMPORT = {
    "errors": (),
    "version": (),
    "memory": (),
    "files": ("errors", "locks"),
    "locks": ("errors",),
    "device": (),
    "config": ("errors",),
    "repository": ("errors",),
    "publishing": ("files", "repository"),
    "weights": ("errors", "files"),
    "results": ("errors",),
    "artefact_config": (*GROUND, "results", "data.info", "data.sketch"),
    "data": (*GROUND, "repository", "data"),
    "features": (*GROUND, "repository", "data.domain", "data.feature_rows", "data.images", "data.info", "features"),
    "model": (*GROUND, "model"),
    "evaluation": (*GROUND, "data", "features", "model", "evaluation"),
    "training": (*GROUND, "weights", "results", "data", "features", "model", "evaluation", "baselines", "training"),
    "baselines": (*GROUND, "data", "model", "evaluation", "baselines"),
    "data.info": ("errors", "files"),
    "data.sequences": (),
    "evaluation.metrics": (),
    "evaluation.shortlist": (),
    "training.losses": (),
    "model.attention": ("model.dropout", "model.packing"),
    "model.clustering": (),
    "model.cross_view": (),
    "model.multi_scale": (),
    "model.packing": (),
}
"""Module or package of bivrec -> the others that it may import; a longer name goes before a shorter one.

Stages (every other module at the top) may import all but the command line.
"""


def module_name(path: Path) -> str:
    """The name below bivrec: `model.tower`; `model` for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def lies_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def runs_later(node: ast.AST) -> bool:
    """A function, or what is for type checkers alone."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def statements(tree: ast.AST, *, when_loaded: bool) -> Iterator[ast.stmt]:
    """Import statements; with `when_loaded` only those that run when the module is loaded."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (when_loaded and runs_later(node)):
            yield from statements(node, when_loaded=when_loaded)


@cache
def imports(module: str, *, when_loaded: bool = False) -> frozenset[str]:
    """Full names of the modules that a module imports."""
    found = set()
    for statement in statements(ast.parse(MODULES[module].read_text(encoding="utf-8")), when_loaded=when_loaded):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{module}: relative import"
            origin = str(statement.module)
            for alias in statement.names:
                inner = f"{origin}.{alias.name}"
                found.add(inner if inner.removeprefix("bivrec.") in MODULES else origin)
    return frozenset(found)


def own_imports(module: str, *, when_loaded: bool = False) -> set[str]:
    """Names below bivrec of the modules of ours that a module imports."""
    every = imports(module, when_loaded=when_loaded)
    return {name.removeprefix("bivrec.") for name in every if lies_in(name, "bivrec") and name != "bivrec"}


def allowed_imports(module: str) -> tuple[str, ...]:
    owner = max((name for name in MAY_IMPORT if lies_in(module, name)), key=len, default=None)
    if owner is None:
        stages = tuple(name for name in MODULES if not lies_in(name, "cli"))
        return (*stages, "cli") if lies_in(module, "cli") or module == "__main__" else stages
    return MAY_IMPORT[owner]


def test_the_floors_are_those_of_this_house() -> None:
    assert set(MAY_IMPORT) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    allowed = allowed_imports(module)
    wrong = {name for name in own_imports(module) if not any(lies_in(name, floor) for floor in allowed)}
    assert not wrong, f"bivrec.{module} may not import {sorted(wrong)}"


def test_there_are_no_circles() -> None:
    # Raises CycleError, which names the circle.
    TopologicalSorter({module: own_imports(module) - {module} for module in MODULES}).prepare()


def test_there_are_no_circles_of_packages() -> None:
    packages: dict[str, set[str]] = {}
    for module in MODULES:
        package = module.split(".")[0]
        packages.setdefault(package, set()).update(name.split(".")[0] for name in own_imports(module))
    TopologicalSorter({package: names - {package} for package, names in packages.items()}).prepare()


@pytest.mark.parametrize("module", [name for name in MODULES if lies_in(name, "cli")])
def test_the_command_line_loads_nothing_heavy(module: str) -> None:
    """Through whatever it imports when it is loaded."""
    reached, ahead = set(), [module]
    while ahead:
        current = ahead.pop()
        reached.add(current)
        heavy = {name for name in imports(current, when_loaded=True) if name.split(".")[0] in HEAVY}
        assert not heavy, f"bivrec.{module} imports bivrec.{current}, which imports {sorted(heavy)}"
        ahead += own_imports(current, when_loaded=True) - reached
