"""GPUs and TPUs that programs are compiled for without having one.

Figures are the makers': NVIDIA's H100 and H200 data sheets and the CUDA programming guide (compute
capability 9.0), Google Cloud's pages on TPU v5e, v5p and v6e. `gflop_s` is of bfloat16 products. Of
the H100 it is what its products reach when measured, 790 TFLOP/s; the data sheet says 989. Its
exponentials are those of 16 special function units of a multiprocessor in each cycle; of a TPU one
register of 8 x 128 values a cycle is assumed. Links are NVLink through a switch, and half of the
"bidirectional inter-chip interconnect bandwidth per chip" of a TPU.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

TPU, CUDA = "tpu", "cuda"


class Target(NamedTuple):
    platform: str
    topology: dict[int, str]  # devices -> its name; of a GPU any number can be had
    gflop_s: float
    gb_s: float  # of the device's memory
    gb: float
    ghz: float  # of a TPU's cycles: the published peak over its multipliers
    batch: int  # clips on each chip, by default
    depth: int  # that a product needs to reach `gflop_s`: the side of a TPU's matrix unit
    gexp_s: float  # 10^9 exponentials per second
    link_gb_s: float  # that a device sends to its neighbours, over all of its links
    ringed: int  # devices from which on they form rings; below, links at the edges are missing
    axes: int  # of the grid of devices; 0: a switch between all

    def sent_s(self, size: float, chips: int, *, summed: bool) -> float:
        """Return the seconds of a result of so many bytes gathered, or summed, over devices.

        Each device sends (n - 1) / n of it, twice for a sum; without rings half of the links help
        and the way is twice as long. Assumed: 1 microsecond for each step on a grid, 10 for a way
        through a switch.
        """
        share = 1 if chips >= self.ringed else 0.5
        way = 0.5e-6 / share * self.axes * chips ** (1 / self.axes) if self.axes else 10e-6
        sent = (chips - 1) / chips * size / (share * self.link_gb_s * 1e9)
        return (2 if summed else 1) * (way + sent)


TARGETS = {
    "h100": Target(CUDA, {}, 790e3, 3352.32, 80, 1.98, 64, 16, 16 * 132 * 1.98, 450, 2, 0),
    "h200": Target(CUDA, {}, 790e3, 4800.0, 141, 1.98, 64, 16, 16 * 132 * 1.98, 450, 2, 0),
    "v5e": Target(
        TPU,
        {4: "v5e:2x2", 8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"},
        197e3,
        819.0,
        16,
        1.5,
        16,
        128,
        1024 * 1.5,
        200,
        256,
        2,
    ),
    "v6e": Target(
        TPU,
        {4: "v6e:2x2", 8: "v6e:2x4", 64: "v6e:8x8", 256: "v6e:16x16"},
        918e3,
        1640.0,
        32,
        1.75,
        16,
        256,
        1024 * 1.75,
        400,
        256,
        2,
    ),
    "v5p": Target(
        TPU,
        {4: "v5p:2x2x1", 8: "v5p:2x2x2", 64: "v5p:4x4x4", 256: "v5p:4x8x8"},
        459e3,
        2765.0,
        95,
        1.75,
        16,
        128,
        1024 * 1.75,
        600,
        64,
        3,
    ),
}
PACKAGE = {TPU: "jax[tpu]", CUDA: "jax[cuda13]"}
HOPPER = {  # of each multiprocessor unless it is of a block
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "shared_memory_per_core": 228 * 1024,
    "threads_per_core_limit": 2048,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "l2_cache_size": 50 * 2**20,
    "device_address_bits": 64,
}


def environment(target: str) -> dict[str, str]:
    """Return what has to be in the environment before JAX is imported."""
    found = {"JAX_PLATFORMS": "cpu"}
    if TARGETS[target].platform == TPU:
        host = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": f"{target}-4"}
        return found | host | {"TPU_SKIP_MDS_QUERY": "1"}  # or libtpu looks for its host, and warns
    # Autotuning would need the card: the compiler takes its default for each product.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    return found | {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "XLA_FLAGS": flags}


def mesh(target: str, chips: int):
    """Return a mesh of devices that are not there.

    Raises:
      SystemExit: the compiler is not installed, or in use; there is no topology of so many chips.
    """
    import jax
    from jax.experimental.topologies import get_topology_desc

    how = TARGETS[target]
    try:
        if how.platform == CUDA:
            text = description(target)
            found = get_topology_desc(
                platform="cuda", topology_name="", target_config=text, topology=f"1x1x{chips}"
            )
        else:
            enough = [count for count in how.topology if count >= chips]
            if not enough:
                raise SystemExit(f"--chips: expected at most {max(how.topology)}, got {chips}")
            found = get_topology_desc(platform="tpu", topology_name=how.topology[min(enough)])
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if "lockfile" in str(error):
            raise SystemExit(
                "libtpu compiles in one process at a time; another is at work"
            ) from error
        package = PACKAGE[how.platform]
        raise SystemExit(
            f'the compiler for {target} is not there: pip install "{package}=={jax.__version__}" '
            f"in an environment of its own ({str(error).splitlines()[0]})"
        ) from error
    devices = np.array(found.devices[:chips])
    return jax.sharding.Mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def description(target: str) -> str:
    """Return an H100 or H200 as the fields of XLA's GpuTargetConfigProto, in text form."""
    how = TARGETS[target]
    own = HOPPER | {
        "memory_bandwidth": round(how.gb_s * 1e9),
        "device_memory_size": round(how.gb * 1e9),
        "clock_rate_ghz": how.ghz,
    }
    lines = [f"  {name}: {value}" for name, value in own.items()]
    lines += [
        "  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }",
        '  device_vendor: "NVIDIA Corporation"',
        f'  name: "NVIDIA {target.upper()}"',
        '  driver_version: "13.0.0"',
        '  runtime_version: "13.0.0"',
        '  compile_time_toolkit_version: "13.0.0"',
        '  dnn_version: "9.10.0"',
    ]
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 patch: 0 }",
            f'device_description_str: "NVIDIA {target.upper()}"',
        ]
    )
