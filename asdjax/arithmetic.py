"""XLA's arithmetic on CPUs: two of its fusions are switched off before JAX starts.

jaxlib 0.10.2, the last one for Python 3.11, may sum a fused product wrongly (github.com/jax-ml/jax
issue 39103): one of 32,769 sums of three squares was 0.8 % off. Newer ones do not.

On processors without units for bfloat16 the library that XLA takes for single products (YNNPACK) is
slower than XLA's own: float32 products of the sizes of BEATs took 1.2 to 1.4 times as long on a
Xeon of 2019 with AVX-512, by jaxlib 0.10.2 and by 0.12.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
WRONG_SUMS, SLOW_PRODUCTS = "-reduce", "-individual_dot"
AFFECTED = ("0.10.2",)
BFLOAT16_UNITS = {"amx_bf16", "avx512_bf16", "bf16"}  # flags of processors


def choose_fusions() -> None:
    """Add the flag to XLA_FLAGS, unless it is there; warn where JAX has read them already."""
    try:
        affected = version("jaxlib") in AFFECTED
    except PackageNotFoundError:  # to import jax says what is missing
        return
    units = processor_flags()
    off = [WRONG_SUMS] * affected + [SLOW_PRODUCTS] * bool(units and not units & BFLOAT16_UNITS)
    flags = os.environ.get("XLA_FLAGS", "")
    if not off or FLAG in flags:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}={','.join(off)}".strip()
    bridge = sys.modules.get("jax._src.xla_bridge")
    if affected and bridge is not None and bridge.backends_are_initialized():
        warnings.warn(
            "jaxlib 0.10.2 may compute wrong sums on CPUs (jax issue 39103), and JAX had computed "
            f"when asdjax was imported; import asdjax first, or set XLA_FLAGS={FLAG}={WRONG_SUMS}",
            stacklevel=3,
        )


def processor_flags() -> set[str]:
    """Return the flags of this processor where Linux tells them, else nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    told = (line for line in lines if line.startswith(("flags", "Features")))  # x86, ARM
    return set(next(told, "").partition(":")[2].split())
