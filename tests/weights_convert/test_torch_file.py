"""The restricted reader: right numbers from good files, one message from bad and hostile ones."""

import os
import pickle
import zipfile

import ml_dtypes  # noqa: F401  (gives NumPy the name bfloat16)
import numpy as np
import pytest

from asdjax.types import InputError
from weights_convert import torch_file


class Hostile:
    """Runs a shell command when a normal unpickler meets it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "bfloat16", "i8", "?"])
def test_reads_values_of_every_dtype(write_checkpoint, tensor, dtype):
    array = np.array([[1.5, -2.0, 0.0], [3.0, 4.0, 5.0]]).astype(dtype)
    found = torch_file.read(write_checkpoint({"a": [tensor(array), 3], "b": tensor(array[0, 0])}))
    np.testing.assert_array_equal(found["a"][0], array, strict=True)
    np.testing.assert_array_equal(found["b"], array[0, 0, ...], strict=True)
    assert found["a"][1] == 3


def test_follows_offsets_strides_and_shared_storage(write_checkpoint):
    storage = write_checkpoint.Storage(np.arange(12, dtype=np.float32))
    transposed = write_checkpoint.Tensor(storage, 0, (3, 4), (1, 3))
    inner = write_checkpoint.Tensor(storage, 5, (2, 2), (4, 1))
    empty = write_checkpoint.Tensor(storage, 12, (0, 3), (3, 1))
    found = torch_file.read(write_checkpoint([transposed, inner, empty]))
    np.testing.assert_array_equal(found[0], np.arange(12).reshape(4, 3).T)
    np.testing.assert_array_equal(found[1], [[5, 6], [9, 10]])
    assert found[2].shape == (0, 3)
    found[0][:] = -1  # own memory
    np.testing.assert_array_equal(found[1], [[5, 6], [9, 10]])


def test_reads_a_file_of_real_pytorch(golden):
    found = torch_file.read(golden / "beats_tiny.pt")
    assert found["cfg"]["max_distance"] == 800
    shape = found["model"]["encoder.pos_conv.0.weight_v"].shape
    assert shape == (64, 4, 128)


@pytest.mark.parametrize("inside", [lambda x: x, lambda x: {"model": {"w": x}}])
def test_hostile_pickle_runs_nothing(write_checkpoint, tmp_path, inside):
    marker = tmp_path / "was_here"
    path = write_checkpoint(inside(Hostile(marker)))
    with pytest.raises(InputError, match=r"checkpoint.pt: asks for '\w+\.system'.*refused"):
        torch_file.read(path)
    assert not marker.exists()
    with zipfile.ZipFile(path) as archive:  # the trap is real: plain pickle steps into it
        pickle.loads(archive.read("any_folder/data.pkl"))
    assert marker.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "numpy.load", "torch.load"])
def test_every_other_global_is_refused_by_name(tmp_path, name):
    module, function = name.rsplit(".", 1)
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", f"c{module}\n{function}\n.")
    with pytest.raises(InputError, match=f"asks for '{name}'"):
        torch_file.read(path)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (9, (2,), (1,)),  # one number too far
        (0, (3, 4), (4, 1)),  # more numbers than there are
        (0, (2, 2), (9, 1)),  # strides too long
        (-1, (2,), (1,)),
        (2, (2,), (-1,)),
        (0, (10**9, 10**9), (0, 0)),  # one number repeated until memory is full
        (0, (2,), (1, 1)),
        ("0", (2,), (1,)),
    ],
)
def test_tensors_that_reach_outside_their_storage_are_refused(
    write_checkpoint, offset, size, stride
):
    storage = write_checkpoint.Storage(np.arange(10, dtype=np.float32))
    path = write_checkpoint({"a": write_checkpoint.Tensor(storage, offset, size, stride)})
    with pytest.raises(InputError, match=r"checkpoint\.pt"):
        torch_file.read(path)


def test_storage_with_fewer_bytes_than_it_says_is_refused(write_checkpoint):
    storage = write_checkpoint.Storage(np.zeros(3, np.float32), numbers=4)
    path = write_checkpoint({"a": write_checkpoint.Tensor(storage, 0, (4,), (1,))})
    with pytest.raises(InputError, match="expected 4 FloatStorage, got 12 bytes"):
        torch_file.read(path)


def test_compressed_members_are_refused(write_checkpoint, tensor):
    saved = {"a": tensor(np.zeros(1000, np.float32))}
    with pytest.raises(InputError, match="compressed"):
        torch_file.read(write_checkpoint(saved, compression=zipfile.ZIP_DEFLATED))


def test_other_files_are_named_for_what_they_are(tmp_path, golden):
    whole = (golden / "beats_tiny.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    cases = {
        "before version 1.6": pickle.dumps({"model": {}}, protocol=2),
        "not a PyTorch checkpoint": b"name,value\n",
        "cut off": whole[: len(whole) // 2],
        "damaged": bytes(flipped),
        "expected a zip archive": b"",
    }
    for message, content in cases.items():
        path = tmp_path / "file.pt"
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as error:
            torch_file.read(path)
        assert str(error.value).startswith(str(path))
    with pytest.raises(InputError, match="no such file"):
        torch_file.read(tmp_path / "absent.pt")
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"no data\.pkl"):
        torch_file.read(tmp_path / "plain.zip")


def test_sizes_that_wrap_around_do_not_escape_the_bounds(write_checkpoint, tensor):
    """A size may itself be a tensor; as int8, 64 * 64 would be 0."""
    storage = write_checkpoint.Storage(np.arange(4, dtype=np.float32))
    size = tensor(np.array(64, dtype="i8"))
    path = write_checkpoint(write_checkpoint.Tensor(storage, 0, (size, size), (64, 1)))
    with pytest.raises(InputError, match=r"shape \(64, 64\) does not fit its 4 values"):
        torch_file.read(path)


def test_copies_far_beyond_the_size_of_the_file_are_refused(write_checkpoint):
    storage = write_checkpoint.Storage(np.zeros(100_000, np.float32))
    copies = [write_checkpoint.Tensor(storage, 0, (100_000,), (1,)) for _ in range(20)]
    with pytest.raises(InputError, match="far larger than the file"):
        torch_file.read(write_checkpoint(copies))


def test_a_memo_index_beyond_the_pickle_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path, "w") as archive:  # PROTO 2, NONE, LONG_BINPUT 2**27, STOP
        archive.writestr("any/data.pkl", b"\x80\x02Nr\x00\x00\x00\x08.")
    with pytest.raises(InputError, match="memo index of 134217728"):
        torch_file.read(path)
