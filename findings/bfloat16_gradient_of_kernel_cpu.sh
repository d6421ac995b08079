#!/usr/bin/env bash
# JAX on a CPU: a product of bfloat16 summed in float32 runs, but not if its result is transposed.
#
# Versions: jax 0.10.2, Python 3.11; the same with 0.12.0.1.
# Input: x `[4, 10, 32]` and slopes `[4, 10, 48]`, both bfloat16; the gradient of a dense layer's
#   kernel, a sum over the first two axes with `preferred_element_type=float32`, once as x^T slope
#   `[32, 48]`, once as (slope^T x)^T, which is the same.
# Expected: both run and agree.
# Seen: the first runs. The second compiles and then fails when it runs: "Unsupported element type
#   for DotThunk::Execute: BF16 x BF16 = F32".
# Exits with 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2"
cat > "$folder/gradient.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax import lax

x, slope = (jnp.ones((4, 10, width), "bfloat16") for width in (32, 48))


def summed(x, y, axes_x, axes_y):
    axes = (axes_x, axes_y), ((), ())
    return lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


ways = {
    "x^T slope": lambda x, slope: summed(x, slope, (0, 1), (0, 1)),
    "(slope^T x)^T": lambda x, slope: summed(slope, x, (0, 1), (0, 1)).T,
}
failed = []
for name, way in ways.items():
    compiled = jax.jit(way).lower(x, slope).compile()
    try:
        print(f"{name}: {float(compiled(x, slope)[0, 0])}")
    except jax.errors.JaxRuntimeError as error:
        failed.append(name)
        print(f"{name}: {str(error).splitlines()[0]}")
sys.exit(0 if failed == ["(slope^T x)^T"] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/gradient.py"
