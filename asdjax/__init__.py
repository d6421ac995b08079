"""asdjax: anomalous sound detection for machines, in JAX.

asdjax.Detector.fit(folder)           learn how healthy machines sound; score, save, load
asdjax.load_backbone("beats-iter3")   a pretrained encoder, jitted
asdjax.RECIPES["frozen/logmel"]       named systems
asdjax.run(system, data, out)         train, embed, score, evaluate and plot on a folder
asdjax.evaluate(scores, data=...)     the official numbers of any system's score files
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from asdjax.arithmetic import choose_fusions
from asdjax.version import __version__

if TYPE_CHECKING:
    from asdjax.config import SystemConfig
    from asdjax.detector.detector import Detector
    from asdjax.models.checkpoints import load_backbone
    from asdjax.recipes import RECIPES
    from asdjax.stages.stages import evaluate, run

choose_fusions()  # before JAX starts

_PLACES = {  # of names that are imported when they are first used: JAX alone takes a second
    "Detector": "asdjax.detector.detector",
    "SystemConfig": "asdjax.config",
    "load_backbone": "asdjax.models.checkpoints",
    "RECIPES": "asdjax.recipes",
    "evaluate": "asdjax.stages.stages",
    "run": "asdjax.stages.stages",
}
__all__ = [
    "RECIPES",
    "Detector",
    "SystemConfig",
    "__version__",
    "evaluate",
    "load_backbone",
    "run",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'asdjax' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
