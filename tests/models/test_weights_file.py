"""One flat dict for everything: splitting and merging modules, and the weight file."""

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from asdjax.files import sha256_file
from asdjax.models import weights_file
from asdjax.models.weights_file import Header, merge, misfits, split
from asdjax.types import InputError

HEADER = Header("beats", {"width": 3, "deep": True}, "ab" * 32, ("dog", "Tür"))


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


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """The files that Python opens, in order; none is remembered from before."""
    found, real = [], io.open

    def counting(path, *args, **kwargs):
        found.append(Path(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(io, "open", counting)
    weights_file._remembered.cache_clear()
    return found


def test_split_names_by_path_and_merge_gives_the_module_back(pair):
    graph, rest = split(pair)
    assert "layers.1.kernel" in rest
    assert rest["layers.1.kernel"] is pair.layers[1].kernel[...]
    x = jnp.ones((4, 3))
    merged = jax.jit(lambda rest, x: merge(graph, rest)(x))(rest, x)
    np.testing.assert_allclose(merged, pair(x), rtol=1e-6)


def test_split_by_filter_gives_disjoint_parts(pair):
    graph, statistics, rest = split(pair, nnx.BatchStat)
    assert statistics.keys() == {"norm.mean", "norm.var"}
    assert len(rest) == 6
    moved = statistics | {"norm.mean": jnp.full(3, 5.0)}
    x = jnp.ones((4, 3))
    shift = merge(graph, moved, rest)(x) - pair(x)
    np.testing.assert_allclose(shift, -5 / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_count(arrays):
    assert weights_file.count(arrays) == 7


def test_misfits_list_every_name(arrays):
    expected = {"a.kernel": np.zeros((3, 2)), "c": np.zeros(1), "d": np.zeros(1)}
    assert misfits(arrays, expected).splitlines() == [
        "",
        "in the model but not in the file (2):",
        "  c",
        "  d",
        "in the file but not in the model (1):",
        "  b",
        "wrong shape (1):",
        "  a.kernel: expected (3, 2), got (2, 3)",
    ]
    assert misfits(arrays, arrays) == ""


def test_file_keeps_values_and_header(tmp_path, arrays):
    path = tmp_path / "new" / "weights.safetensors"
    transposed = arrays | {"t": arrays["a.kernel"].T, "jax": jnp.arange(3)}
    weights_file.save(path, transposed, HEADER)
    loaded, header, _ = weights_file.load(path)
    assert header == HEADER
    assert loaded.keys() == transposed.keys()
    for name, value in transposed.items():
        np.testing.assert_array_equal(loaded[name], value, strict=True)


def test_other_tools_can_read_the_file(tmp_path, arrays):
    path = tmp_path / "weights.safetensors"
    weights_file.save(path, arrays, HEADER)
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["a.kernel"], arrays["a.kernel"])


def test_failed_write_leaves_the_old_file(tmp_path, arrays):
    path = tmp_path / "weights.safetensors"
    weights_file.save(path, arrays, HEADER)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        weights_file.save(path, arrays, Header("beats", {"width": object()}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_opened_file_is_read_once_and_remembered(tmp_path, arrays, opened, monkeypatch):
    monkeypatch.setattr(safetensors, "safe_open", None)  # which would open it outside of Python
    path, link = tmp_path / "weights.safetensors", tmp_path / "link.safetensors"
    weights_file.save(path, arrays, HEADER)
    link.symlink_to(path)
    opened.clear()
    first = weights_file.open_weights(path)
    assert opened == [path]
    assert first.header == HEADER
    assert first.sha256 == sha256_file(path)
    for name, value in arrays.items():
        np.testing.assert_array_equal(first.arrays[name], value, strict=True)
    opened.clear()
    assert weights_file.open_weights(str(path)) is weights_file.open_weights(link) is first
    assert opened == []
    weights_file._remembered.cache_clear()
    assert weights_file.open_weights(path) is not first
    assert opened == [path]


def test_an_opened_file_that_changed_is_read_again(tmp_path, arrays):
    path = tmp_path / "weights.safetensors"
    weights_file.save(path, arrays, HEADER)
    before = weights_file.open_weights(path)
    for change in (1, 2):  # as many bytes, and perhaps in the same tick of the clock
        weights_file.save(path, arrays | {"b": arrays["b"] + np.float32(change)}, HEADER)
        after = weights_file.open_weights(path)
        assert after.arrays["b"] == 2.5 + change
        assert after.sha256 == sha256_file(path) != before.sha256
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a complete safetensors file"):
        weights_file.open_weights(path)
    path.unlink()
    with pytest.raises(InputError, match="no such weight file"):
        weights_file.open_weights(path)


def test_the_last_two_opened_files_are_remembered(tmp_path, arrays, opened):
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path in paths:
        weights_file.save(path, arrays, HEADER)
    opened.clear()
    for path in (*paths[:2], *paths[:2], paths[2], *paths[1:], paths[0]):
        weights_file.open_weights(path)
    assert opened == [*paths, paths[0]]


def test_opened_arrays_cannot_be_changed(tmp_path, arrays):
    path = tmp_path / "weights.safetensors"
    weights_file.save(path, arrays, HEADER)
    shared = weights_file.open_weights(path).arrays
    with pytest.raises(ValueError, match="read-only"):
        shared["b"][...] = 0
    with pytest.raises(TypeError):
        shared["b"] = 0


def test_a_header_is_read_without_the_arrays(tmp_path, arrays, opened):
    path = tmp_path / "weights.safetensors"
    weights_file.save(path, arrays, HEADER)
    opened.clear()
    assert weights_file.read_header(path) == HEADER
    assert opened == []


def test_unreadable_files_are_named(tmp_path, arrays):
    good = tmp_path / "good.safetensors"
    weights_file.save(good, arrays, HEADER)
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
            weights_file.load(path)
    with pytest.raises(InputError, match="no such weight file"):
        weights_file.load(tmp_path / "absent.safetensors")


def flipped(content: bytes, byte: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[byte] ^= 1 << bit
    return bytes(changed)


def test_no_flipped_bit_of_an_array_or_of_the_header_is_taken(tmp_path, arrays):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    weights_file.save(good, arrays, HEADER)
    content = good.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for byte in range(start, len(content)):
        bad.write_bytes(flipped(content, byte, byte % 8))
        with pytest.raises(InputError, match=f"{bad} is damaged: its checksum .* convert"):
            weights_file.load(bad)
    for text in (b"width", b"dog", b"ab", b"a.kernel", b"[2, 3]"):
        bad.write_bytes(flipped(content, content.index(text) + 1, 0))
        with pytest.raises(InputError, match=f"{bad}.*(damaged|not a complete)"):
            weights_file.load(bad)


def test_a_file_of_an_older_version_has_no_checksum(tmp_path, arrays):
    path = tmp_path / "old.safetensors"
    weights_file.save(path, arrays, HEADER)
    header = weights_file.read_header(path)
    assert len(header.checksum) == 32
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    del metadata["checksum"]
    safetensors.numpy.save_file(arrays, path, metadata)
    with pytest.raises(InputError, match="damaged header"):  # a file of today has one
        weights_file.load(path)
    metadata["version"] = "1"
    safetensors.numpy.save_file(arrays, path, metadata)
    file = weights_file.load(path)
    assert file.header == header
    assert file.header.checksum == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arrays_that_are_not_finite_are_named_with_their_file(tmp_path, arrays, value, dtype):
    path = tmp_path / "weights.safetensors"
    for name in ("bad", "worse"):
        arrays[name] = np.array([1, value], dtype)
    weights_file.save(path, arrays, HEADER)
    with pytest.raises(InputError, match=f"{path}: weights .* not finite in bad, worse;"):
        weights_file.load(path)
