#!/usr/bin/env bash
# JAX: a grouped convolution of a batch that is split over devices is computed whole on each of them.
#
# Versions: jax 0.10.2, Python 3.11; the same with 0.12.0.1.
# Input: `lax.conv_general_dilated` under `jit`, of `[B, N, C]` split over two devices by clips, with
#   one and with four groups of channels; the kernel is on both devices.
# Expected: clips do not see each other, so each device convolves its own.
# Seen: so it is with one group. With more, the compiled program gathers the whole batch on every
#   device (`all-gather`), and every device convolves all of it; time and memory do not fall with
#   the number of devices, and nothing says so. Inside `jax.shard_map` each device has its own.
# Exits with 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2"
cat > "$folder/gathers.py" <<'PYTHON'
import sys

import jax
from jax import lax

jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows, whole = jax.P("data"), jax.P()


def shape(sizes, spec):
    return jax.ShapeDtypeStruct(sizes, "float32", sharding=jax.NamedSharding(mesh, spec))


def gathers(groups, own):
    def convolve(x, kernel):
        layout = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    if own:
        convolve = jax.shard_map(convolve, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    x, kernel = shape((8, 96, 64), rows), shape((5, 64 // groups, 64), whole)
    return "all-gather" in jax.jit(convolve).lower(x, kernel).compile().as_text()


found = {}
for groups in (1, 4):
    for own in (False, True):
        found[groups, own] = gathers(groups, own)
        where = "in shard_map" if own else "under jit"
        print(f"{groups} groups, {where}: the batch is gathered: {found[groups, own]}")
sys.exit(0 if [key for key, gathered in found.items() if gathered] == [(4, False)] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/gathers.py"
