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
    "files": {"types"},
    "devices": EVERYWHERE,
    "params": EVERYWHERE,
    "frontend": EVERYWHERE,
    "losses": EVERYWHERE,
    "data": EVERYWHERE,
    "models": EVERYWHERE | {"frontend", "losses", "params"},
    "train": EVERYWHERE | {"data", "devices", "frontend", "losses", "models", "params", "report"},
    "scoring": EVERYWHERE,
    "metrics": EVERYWHERE,
    "report": EVERYWHERE | {"data", "frontend", "metrics"},
    "config": EVERYWHERE | {"data", "frontend", "losses", "models", "scoring", "train"},
    "runs": EVERYWHERE | {"config"},
    "training": EVERYWHERE
    | {"config", "data", "devices", "models", "params", "report", "runs", "train", "weights"},
    "embedding": EVERYWHERE
    | {"config", "data", "devices", "models", "report", "runs", "training", "weights"},
    "pseudo": EVERYWHERE | {"report", "runs", "scoring"},
    "options": set(),
    "two_stage": EVERYWHERE
    | {"data", "devices", "embedding", "options", "pseudo", "report", "runs", "training"},
    "pipeline": EVERYWHERE
    | {"config", "data", "devices", "embedding", "metrics", "models", "options", "pseudo", "report"}
    | {"runs", "scoring", "training", "two_stage"},
    "members": EVERYWHERE | {"config", "metrics", "runs"},
    "ensemble": EVERYWHERE
    | {"config", "members", "metrics", "pipeline", "report", "runs", "scoring"},
    "arguments": EVERYWHERE | {"config", "options", "params", "recipes", "report", "weights"},
    "recipes": EVERYWHERE | {"config", "data", "frontend", "losses", "models", "scoring", "train"},
    "weights": EVERYWHERE | {"data", "models", "params"},
}
THIRD_PARTY = {  # what a room may import at module level besides the standard library and numpy
    "params": {"jax", "flax"},
    "frontend": {"jax"},
    "losses": {"jax"},
    "train": {"jax", "flax", "optax"},
    "models": {"jax", "flax"},
    "scoring": {"jax"},
    "devices": {"jax"},
    "embedding": {"jax"},
    "runs": {"jax"},
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


def test_importing_asdjax_needs_only_jax_flax_optax_numpy():
    heavy = ["grain", "imblearn", "matplotlib", "orbax", "safetensors", "sklearn", "soundfile"]
    heavy += ["soxr", "tyro"]
    code = f"import sys, asdjax; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
