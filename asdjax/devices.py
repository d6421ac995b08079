"""Placement: one mesh over all devices, batches split along it, weights on each; many processes."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.types import InputError

WAIT_S = 300  # for the other processes to start
SCORING_S = 7 * 86_400  # that the others wait at their end for the first, which scores alone


def data_mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Return the `("data",)` mesh; the compiler decides on everything but the inputs' placement.

    The devices of a process follow one another, so that its share of the rows is one stretch
    (`jax.make_mesh` may order them by how they are wired).

    Args:
      devices: this process's own by default; `jax.devices()` for those of all processes.
    """
    devices = jax.local_devices() if devices is None else devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return jax.sharding.Mesh(np.array(ordered), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def split(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the placement of a batch: rows spread over the devices."""
    return jax.NamedSharding(mesh, jax.P("data"))


def copied(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the placement of weights: the whole on every device."""
    return jax.NamedSharding(mesh, jax.P())


def over(mesh: jax.sharding.Mesh):
    """Return a context that tells a traced function which devices its batch is split over.

    The compiler splits all that is not computed `by_device`.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def by_device(function: Callable[[Any, Any], Any], rows: Any, whole: Any) -> Any:
    """Return `function(rows, whole)`, which each device computes for its own rows of a batch.

    Its gradients of `whole` are summed over devices once they are made. The devices are those of
    `over`; without them, and inside `jax.shard_map`, the rows are a device's own already. XLA
    cannot split a kernel of Pallas, gathers the whole batch for a grouped convolution (CUDA, jax
    0.10), and sums what a gradient is computed from even where that is larger.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "data" not in mesh.axis_names or "data" in mesh.manual_axes or mesh.size == 1:
        return function(rows, whole)
    spec = jax.P("data")
    return jax.shard_map(
        function, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec, check_vma=False
    )(rows, whole)


def first_row(rows: int) -> jax.Array:
    """Return the number in the batch, uint32, of the first of a device's own `rows`."""
    split = "data" in jax.sharding.get_abstract_mesh().manual_axes
    return jnp.uint32(jax.lax.axis_index("data") * rows if split else 0)


def put_copies(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Put arrays, random keys among them, onto every device; all processes give the same.

    `jax.device_put` refuses keys, and what lies on a device, where there are several processes; and
    it would send every array to all of them to compare.
    """

    def put(x):
        copies = [jax.device_put(x, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(x.shape, copied(mesh), copies)

    return jax.tree.map(put, tree)


def own_share(rows: int, mesh: jax.sharding.Mesh) -> slice:
    """Return which of `rows`, spread over the devices of all processes, are of this process.

    A number that does not divide over the devices is taken as the next larger one that does.
    """
    share = -(-rows // mesh.size) * len(mesh.local_devices)
    return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def alone() -> bool:
    """Return whether there are no other processes."""
    return jax.process_count() == 1


def process_number() -> int:
    """Return which of the processes this is."""
    return jax.process_index()


def leads() -> bool:
    """Tell whether this is the process that writes files and tells of progress."""
    return process_number() == 0


def join_processes() -> None:
    """Make one of this and the processes on other hosts; before anything else of JAX is used.

    Clusters that JAX knows need no settings; elsewhere the environment has
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      InputError: neither, the others are not there in time, or have more or fewer devices.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow every SIGTERM
    failed: list[Exception] = []
    # JAX aborts the process when its own time is up; nothing in it would tell the user why.
    joining = threading.Thread(target=_join, args=(failed,), daemon=True)
    joining.start()
    joining.join(WAIT_S)
    if joining.is_alive():
        raise InputError(
            f"several processes: expected all {os.environ.get('JAX_NUM_PROCESSES', '')} to be "
            f"there within {WAIT_S} s, got not all; start the same command on every host, with the "
            "same JAX_COORDINATOR_ADDRESS, and let the others reach its port"
        )
    if failed:
        raise InputError(
            "several processes: expected a cluster that JAX knows, or JAX_COORDINATOR_ADDRESS "
            "(host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID in the "
            f"environment, got: {failed[0]}"
        ) from failed[0]
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise InputError(
            f"expected as many devices in every process, got {list(counts.values())}; hide some "
            "from JAX, for GPUs with CUDA_VISIBLE_DEVICES"
        )
    agree({"version of jax": jax.__version__})  # Gloo (CPUs) gives the first talk only 30 s


def _join(failed: list[Exception]) -> None:
    count, own = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=count and int(count),
            process_id=own and int(own),
            initialization_timeout=2 * WAIT_S,
            shutdown_timeout_seconds=SCORING_S,
        )
    except Exception as error:
        failed.append(error)


def agree(values: dict[str, str]) -> None:
    """Refuse to go on unless all processes have the same values; waits for all of them.

    Raises:
      InputError: in every process, with the names of what differs; one that does not come.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental.multihost_utils import process_allgather

    digests = [hashlib.sha256(value.encode()).digest() for value in values.values()]
    mine = np.frombuffer(b"".join(digests), np.uint8).reshape(len(values), -1)
    try:
        everyone = process_allgather(mine)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise InputError(
            "several processes: expected all of them here, one is not: see what it printed "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    differ = (everyone != mine[None]).any((0, 2))
    if names := [name for name, other in zip(values, differ, strict=True) if other]:
        raise InputError(
            f"several processes: expected the same {', '.join(names)} on every host, got others; "
            "give the same command everywhere, with --data and --out on disks that all hosts share"
        )


@contextmanager
def together(what: str) -> Iterator[None]:
    """Do something that fails in all processes when it fails in one.

    Otherwise the others would wait for it, and it for them to leave.
    """
    try:
        yield
    except Exception:
        with suppress(InputError):  # its own error says more
            agree({what: "failed"})
        raise
    try:
        agree({what: "done"})
    except InputError as error:
        raise InputError(
            f"several processes: another one failed at {what}: see what it printed ({error})"
        ) from error
