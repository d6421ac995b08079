#!/usr/bin/env bash
# Flax: the time to build a model for its shapes grows with the square of its layers.
#
# Versions: jax 0.10.2, flax 0.12.8, Python 3.11.
# Input: `nnx.eval_shape` of 50 and of 200 dense layers that take their keys from one `nnx.Rngs`.
# Expected: four times the layers, about four times the work.
# Seen: eight times the work (Python function calls, so no question of the machine). Each draw of a
#   key writes the counter of the stream, `set_value` compares shardings by
#   `getattr(value, "sharding", None)`, and JAX answers for a traced value with an error whose text
#   lists what was traced so far; Flax drops it. With keys counted outside arrays it is four times.
# Exits with 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "flax==0.12.8"
cat > "$folder/count.py" <<'PYTHON'
import sys

import jax
from flax import nnx


class Counted:
    """Keys of one stream, counted by Python."""

    def __init__(self):
        self.count = 0

    def params(self):
        self.count += 1
        return jax.random.fold_in(jax.random.key(0), self.count)


def calls(layers, make_rngs):
    def build():
        rngs = make_rngs()
        return nnx.List([nnx.Linear(8, 8, use_bias=False, rngs=rngs) for _ in range(layers)])

    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    nnx.eval_shape(build)
    sys.setprofile(None)
    return count


calls(2, lambda: nnx.Rngs(0)), calls(2, Counted)  # what is computed once
ratios = {}
for name, make_rngs in {"nnx.Rngs": lambda: nnx.Rngs(0), "counted by Python": Counted}.items():
    few, many = (calls(layers, make_rngs) for layers in (50, 200))
    ratios[name] = many / few
    print(f"{name}: {few} calls for 50 layers, {many} for 200, ratio {ratios[name]:.1f}")
sys.exit(0 if ratios["nnx.Rngs"] > 7 and ratios["counted by Python"] < 5 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/count.py"
