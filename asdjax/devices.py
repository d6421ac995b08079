"""Placement: one mesh over all devices, batches split along it, weights on each device."""

import os
from collections.abc import Sequence

import jax

from asdjax.types import InputError


def data_mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Return the `("data",)` mesh; the compiler decides on everything but the inputs' placement.

    Args:
      devices: this process's own by default; `jax.devices()` for those of all processes.
    """
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )


def split(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the placement of a batch: rows spread over the devices."""
    return jax.NamedSharding(mesh, jax.P("data"))


def copied(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the placement of weights: the whole on every device."""
    return jax.NamedSharding(mesh, jax.P())


def join_processes() -> None:
    """Make one of this and the processes on other hosts; before anything else of JAX is used.

    Clusters that JAX knows need no settings; elsewhere the environment has
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      InputError: neither.
    """
    count, own = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        jax.distributed.initialize(num_processes=count and int(count), process_id=own and int(own))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            "several processes: expected a cluster that JAX knows, or JAX_COORDINATOR_ADDRESS "
            "(host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID in the "
            f"environment, got: {error}"
        ) from error
