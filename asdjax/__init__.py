"""asdjax: anomalous sound detection for machines, in JAX.

asdjax.load_backbone("beats-iter3")   a pretrained encoder, jitted
asdjax.RECIPES["frozen/logmel"]       named systems
asdjax.run(system, data, out)         train, embed, score, evaluate and plot on a folder
asdjax.evaluate(scores, data=...)     the official numbers of any system's score files
"""

# ruff: noqa: E402
from asdjax.arithmetic import switch_off_wrong_sums

switch_off_wrong_sums()  # before JAX starts

from asdjax.config import SystemConfig
from asdjax.models.checkpoints import load_backbone
from asdjax.recipes import RECIPES
from asdjax.stages.stages import evaluate, run
from asdjax.version import __version__

__all__ = ["RECIPES", "SystemConfig", "__version__", "evaluate", "load_backbone", "run"]
