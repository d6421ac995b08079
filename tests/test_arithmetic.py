"""Sums on CPUs: which are right in this process, and what asdjax does for that."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest

from asdjax import arithmetic


def sum_fused_products():
    """Sum the squares of rows (i, 0, 0), the case of jax issue 39103."""
    row = jnp.arange(32_769, dtype=jnp.float32)
    rows = jnp.stack([row, 0 * row, 0 * row], 1)
    matrix = jnp.eye(3)
    found = jax.jit(jax.vmap(lambda x: jnp.sum((matrix @ x) ** 2)))(rows)
    # One rounding of float32.
    np.testing.assert_allclose(found, np.arange(32_769.0) ** 2, rtol=2**-23)


def test_sums_of_fused_products_are_right_as_users_compute(tmp_path):
    log = tmp_path / "log"
    process = processes.call(sum_fused_products, log, cache=tmp_path, optimized=True)
    process.join(600)
    assert process.exitcode == 0, log.read_text()


@pytest.fixture
def switched(monkeypatch):
    """Return `switched(jaxlib, flags, started, units) -> XLA_FLAGS` after asdjax is imported."""

    def switched(
        jaxlib: str, flags: str | None, started: bool = False, units: str = "amx_bf16"
    ) -> str | None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if flags is not None:
            monkeypatch.setenv("XLA_FLAGS", flags)
        bridge = "jax._src.xla_bridge.backends_are_initialized"
        monkeypatch.setattr(bridge, lambda: started)
        monkeypatch.setattr(arithmetic, "version", lambda _: jaxlib)
        monkeypatch.setattr(arithmetic, "processor_flags", lambda: set(units.split()))
        arithmetic.choose_fusions()
        return os.environ.get("XLA_FLAGS")

    return switched


OFF = "--xla_cpu_experimental_ynn_fusion_type=-reduce"


def test_the_fusion_is_switched_off_where_it_is_wrong(switched):
    assert switched("0.10.2", None) == OFF
    assert switched("0.10.2", "--xla_dump_to=x") == f"--xla_dump_to=x {OFF}"
    assert switched("0.11.0", None) is None
    chosen = "--xla_cpu_experimental_ynn_fusion_type=dot"
    assert switched("0.10.2", chosen) == chosen


def test_it_is_told_when_jax_has_started_before(switched):
    with pytest.warns(UserWarning, match="import asdjax first, or set XLA_FLAGS="):
        switched("0.10.2", None, started=True)
    switched("0.10.2", OFF, started=True)
    switched("0.12.0", None, started=True)


def test_products_of_processors_without_bfloat16_are_xlas_own(switched):
    both = f"{OFF},-individual_dot"
    assert switched("0.10.2", None, units="fpu avx512f") == both
    assert switched("0.12.0", None, units="fpu avx512f") == both.replace("-reduce,", "")
    assert switched("0.12.0", None, units="fpu avx512_bf16") is None
    assert switched("0.12.0", None, units="") is None  # not known
    switched("0.12.0", None, started=True, units="fpu")  # slower is not wrong: no warning
