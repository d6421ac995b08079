"""Shared fixtures. The real clips are not part of the project (non-commercial licence)."""

from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)  # every test runs on two devices
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")  # parity on accelerators too

REAL_MACHINES = Path(__file__).parents[2] / "shared" / "data" / "real_machines"


@pytest.fixture(scope="session")
def real_machines() -> Path:
    if not REAL_MACHINES.is_dir():
        pytest.skip(f"no real recordings at {REAL_MACHINES} (they may not be redistributed)")
    return REAL_MACHINES


@pytest.fixture(scope="session")
def golden() -> Path:
    """Small reference outputs; `tests/golden/README.md` says where each came from."""
    return Path(__file__).parent / "golden"
