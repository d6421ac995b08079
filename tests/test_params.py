"""One flat dict for everything: splitting and merging modules, and the weight file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from asdjax import params
from asdjax.types import InputError

HEADER = params.Header("beats", {"width": 3, "deep": True}, "ab" * 32, ("dog", "Tür"))


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.norm(x, use_running_average=True)


@pytest.fixture
def pair():
    return Pair(nnx.Rngs(0))


@pytest.fixture
def arrays():
    return {
        "a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(2.5, np.float32),
    }


def test_split_names_by_path_and_merge_gives_the_module_back(pair):
    graph, rest = params.split(pair)
    assert "layers.1.kernel" in rest
    assert rest["layers.1.kernel"] is pair.layers[1].kernel[...]
    x = jnp.ones((4, 3))
    merged = jax.jit(lambda rest, x: params.merge(graph, rest)(x))(rest, x)
    np.testing.assert_allclose(merged, pair(x), rtol=1e-6)


def test_split_by_filter_gives_disjoint_parts(pair):
    graph, statistics, rest = params.split(pair, nnx.BatchStat)
    assert statistics.keys() == {"norm.mean", "norm.var"}
    assert len(rest) == 6
    moved = statistics | {"norm.mean": jnp.full(3, 5.0)}
    x = jnp.ones((4, 3))
    shift = params.merge(graph, moved, rest)(x) - pair(x)
    np.testing.assert_allclose(shift, -5 / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_count(arrays):
    assert params.count(arrays) == 7


def test_misfits_list_every_name(arrays):
    expected = {"a.kernel": np.zeros((3, 2)), "c": np.zeros(1), "d": np.zeros(1)}
    assert params.misfits(arrays, expected).splitlines() == [
        "",
        "in the model but not in the file (2):",
        "  c",
        "  d",
        "in the file but not in the model (1):",
        "  b",
        "wrong shape (1):",
        "  a.kernel: expected (3, 2), got (2, 3)",
    ]
    assert params.misfits(arrays, arrays) == ""


def test_file_keeps_values_and_header(tmp_path, arrays):
    path = tmp_path / "new" / "weights.safetensors"
    transposed = arrays | {"t": arrays["a.kernel"].T, "jax": jnp.arange(3)}
    params.save(path, transposed, HEADER)
    loaded, header = params.load(path)
    assert header == HEADER
    assert loaded.keys() == transposed.keys()
    for name, value in transposed.items():
        np.testing.assert_array_equal(loaded[name], value, strict=True)


def test_other_tools_can_read_the_file(tmp_path, arrays):
    path = tmp_path / "weights.safetensors"
    params.save(path, arrays, HEADER)
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["a.kernel"], arrays["a.kernel"])


def test_failed_write_leaves_the_old_file(tmp_path, arrays):
    path = tmp_path / "weights.safetensors"
    params.save(path, arrays, HEADER)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        params.save(path, arrays, params.Header("beats", {"width": object()}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_unreadable_files_are_named(tmp_path, arrays):
    good = tmp_path / "good.safetensors"
    params.save(good, arrays, HEADER)
    content = good.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["version"] = "99"
    text = json.dumps(header).encode()
    newer = len(text).to_bytes(8, "little") + text + content[8 + size :]
    cases = {
        "not a complete safetensors": content[:-1],
        "not a complete safetensors file": b"hello",
        "got asdjax-params version 99": newer,
        "got no format version": safetensors.numpy.save(arrays),
    }
    for message, data in cases.items():
        path = tmp_path / "bad.safetensors"
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"{path}.*{message}"):
            params.load(path)
    with pytest.raises(InputError, match="no such weight file"):
        params.load(tmp_path / "absent.safetensors")
