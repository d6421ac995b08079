"""Placement: one mesh over all local devices, batches split along it, weights on each device."""

import jax


def data_mesh() -> jax.sharding.Mesh:
    """Return the `("data",)` mesh; the compiler decides on everything but the inputs' placement."""
    devices = jax.local_devices()
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )


def split(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the placement of a batch: rows spread over the devices."""
    return jax.NamedSharding(mesh, jax.P("data"))


def copied(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the placement of weights: the whole on every device."""
    return jax.NamedSharding(mesh, jax.P())
