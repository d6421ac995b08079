"""Imports point one way (the table in asdjax/README.md), and heavy libraries stay where used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERYWHERE = {"types", "files", "version"}
ROOMS = {  # room -> rooms and modules of asdjax it may import
    "types": set(),
    "version": set(),
    "arithmetic": set(),
    "files": {"types"},
    "compiled": {"arithmetic", "files"},
    "devices": {"types"},
    "artifact": {"types", "files", "devices"},
    "frontend": EVERYWHERE,
    "losses": EVERYWHERE,
    "data": EVERYWHERE,
    "scoring": EVERYWHERE,
    "metrics": EVERYWHERE,
    "models": EVERYWHERE | {"arithmetic", "devices", "frontend", "losses"},
    "report": EVERYWHERE | {"data", "frontend", "metrics"},
    "train": EVERYWHERE | {"artifact", "data", "devices", "frontend", "losses", "models", "report"},
    "baseline": EVERYWHERE | {"data", "devices", "frontend", "models", "report", "train"},
    "config": EVERYWHERE | {"baseline", "data", "models", "scoring", "train"},
    "recipes": EVERYWHERE
    | {"baseline", "config", "data", "frontend", "losses", "models", "scoring", "train"},
    "stages": EVERYWHERE
    | {"artifact", "config", "data", "devices", "metrics", "models", "report", "scoring", "train"},
    "detector": EVERYWHERE
    | {"config", "data", "devices", "models", "recipes", "report", "scoring", "stages"},
    "arguments": EVERYWHERE | {"config", "detector", "models", "recipes", "stages", "train"},
}
THIRD_PARTY = {  # what a room may import at module level besides the standard library and numpy
    "frontend": {"jax"},
    "losses": {"jax", "flax"},
    "models": {"jax", "flax"},
    "train": {"jax", "flax", "optax"},
    "baseline": {"jax", "optax"},
    "scoring": {"jax"},
    "devices": {"jax"},
    "stages": {"jax"},
    "arguments": {"tyro"},
    "__main__": {"tyro"},
}


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "asdjax").with_suffix("").parts
    return parts[0]


def imported(tree: ast.AST, everywhere: bool) -> set[str]:
    """Return dotted names imported anywhere, or only at module level (not under functions)."""
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


SOURCES = sorted((ROOT / "asdjax").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_and_third_parties(path):
    name = room(path)
    tree = ast.parse(path.read_text())
    for module in imported(tree, everywhere=True):
        top, _, rest = module.partition(".")
        if top == "asdjax" and name in ROOMS:
            target = rest.split(".")[0]
            assert target in ROOMS[name] | {name}, f"{path}: {name} must not import {module}"
    allowed = {"numpy", "asdjax"} | THIRD_PARTY.get(name, set()) | set(sys.stdlib_module_names)
    tops = {module.split(".")[0] for module in imported(tree, everywhere=False)}
    assert tops <= allowed, f"{path}: import {tops - allowed} inside the function that uses it"


def test_only_a_function_of_the_command_line_imports_the_converters():
    def converters(tree: ast.AST) -> set[str]:
        names = imported(tree, everywhere=True)
        return {name for name in names if name.split(".")[0] == "weights_convert"}

    importing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        importing += [path.relative_to(ROOT)] * bool(converters(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body = []
        assert not converters(tree), f"{path}: import them inside the function that uses them"
    assert importing == [Path("asdjax/__main__.py")]


def test_importing_asdjax_needs_only_jax_flax_optax_numpy():
    heavy = ["grain", "imblearn", "librosa", "matplotlib", "orbax", "safetensors", "sklearn"]
    heavy += ["soundfile", "soxr", "tyro", "xxhash"]
    code = f"import sys, asdjax; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
