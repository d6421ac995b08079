#!/usr/bin/env bash
# JAX on a CPU: a depthwise convolution takes ten times as long as its definition, written out.
#
# Versions: jax 0.10.2, Python 3.11; the same with 0.12.0.1.
# Input: x `[8, 63, 8, 272]` and filters `[5, 5, 272]`, float32, sizes of a MobileNet: once
#   `lax.conv_general_dilated` with as many groups as channels, once the sum of 25 shifted slices of
#   x, each times its tap, under `jax.jit` both.
# Expected: the convolution is at least as fast.
# Seen: the same numbers to 1e-5; the convolution takes 12 times as long (two cores with AVX-512;
#   with other sizes of a MobileNet 3 to 90 times).
# Exits with 1 when it takes less than 4 times as long, or the numbers differ.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2"
cat > "$folder/depthwise.py" <<'PYTHON'
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

rng = np.random.default_rng(0)
x = rng.standard_normal((8, 63, 8, 272), dtype=np.float32)
filters = rng.standard_normal((5, 5, 272), dtype=np.float32)


@jax.jit
def convolution(x, filters):
    axes = "NHWC", "HWIO", "NHWC"
    return lax.conv_general_dilated(
        x, filters[:, :, None], (1, 1), "SAME", dimension_numbers=axes, feature_group_count=272
    )


@jax.jit
def definition(x, filters):
    wide = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    taps = np.ndindex(5, 5)
    return sum(wide[:, i : i + 63, j : j + 8] * filters[i, j] for i, j in taps)


def seconds(way):
    start = time.perf_counter()
    jax.block_until_ready(way(x, filters))
    return time.perf_counter() - start


apart = float(jnp.abs(convolution(x, filters) - definition(x, filters)).max())
ratios = [seconds(convolution) / seconds(definition) for _ in range(7)]
print(f"largest difference {apart:.0e}; convolution / definition {statistics.median(ratios):.0f}")
sys.exit(0 if apart < 1e-3 and statistics.median(ratios) > 4 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/depthwise.py"
