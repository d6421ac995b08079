"""XLA's arithmetic on CPUs: a fusion that can give wrong sums is switched off before JAX starts.

jaxlib 0.10.2, the last one for Python 3.11, may sum a fused product wrongly (github.com/jax-ml/jax
issue 39103): one of 32,769 sums of three squares was 0.8 % off. Newer ones do not.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
AFFECTED = ("0.10.2",)


def switch_off_wrong_sums() -> None:
    """Add the flag to XLA_FLAGS, unless it is there; warn where JAX has read them already."""
    try:
        affected = version("jaxlib") in AFFECTED
    except PackageNotFoundError:  # to import jax says what is missing
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if not affected or FLAG in flags:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        warnings.warn(
            "jaxlib 0.10.2 may compute wrong sums on CPUs (jax issue 39103), and JAX computed "
            f"before asdjax was imported; import asdjax first, or set XLA_FLAGS={FLAG}=-reduce",
            stacklevel=3,
        )
