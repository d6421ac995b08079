"""An embedding that was interrupted goes on where it was, and gives the same file."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machines import tone_machine

from asdjax.recipes import RECIPES
from asdjax.stages import embed, stages
from asdjax.types import InputError

SYSTEM = replace(RECIPES["frozen/logmel"].config, batch=2)
NAME = "embeddings/fan_section_00.npz"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("machines")
    tone_machine(root, "fan")
    return root


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("whole")
    stages.embed(SYSTEM, data, out)
    return (out / NAME).read_bytes()


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """Return what files batches were made of."""
    from asdjax.data import batches

    original, paths = batches.read_batch, []
    monkeypatch.setattr(
        batches, "read_batch", lambda those, *how: paths.extend(those) or original(those, *how)
    )
    return paths


@pytest.fixture
def interrupted(data, tmp_path, monkeypatch) -> Path:
    """Return the folder of a run that was interrupted behind its third batch."""
    original, calls = embed.Part.put, []

    def put(part, *batch):
        original(part, *batch)
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embed, "SAVED_S", 0)
        patch.setattr(embed.Part, "put", put)
        with pytest.raises(KeyboardInterrupt):
            stages.embed(SYSTEM, data, tmp_path)
    assert (tmp_path / f"{NAME}.part").is_dir()
    assert not (tmp_path / NAME).exists()
    return tmp_path


def clips(data) -> int:
    return len(list(data.rglob("*.wav")))


def test_only_what_is_missing_is_computed(data, whole, interrupted, decoded, capsys):
    stages.embed(SYSTEM, data, interrupted)
    assert (interrupted / NAME).read_bytes() == whole
    assert len(decoded) == len(set(decoded)) == clips(data) - 6
    told = " ".join(capsys.readouterr().err.split())
    assert f"6 of {clips(data)} clips of {NAME} were embedded before" in told
    assert not (interrupted / f"{NAME}.part").exists()


@pytest.mark.parametrize("file", ["values.npy", "done.npy", "key.json"])
def test_a_damaged_part_is_computed_again(data, whole, interrupted, decoded, file):
    path = interrupted / f"{NAME}.part" / file
    path.write_bytes(path.read_bytes()[:-7])
    stages.embed(SYSTEM, data, interrupted)
    assert (interrupted / NAME).read_bytes() == whole
    assert len(decoded) == clips(data)


def test_a_part_of_other_recordings_is_not_used(data, interrupted, decoded, tmp_path_factory):
    other = shutil.copytree(data, tmp_path_factory.mktemp("copied") / "data")
    next(other.rglob("*anomaly*.wav")).unlink()
    stages.embed(SYSTEM, other, interrupted)
    assert len(decoded) == clips(data) - 1
    with np.load(interrupted / NAME) as file:
        assert len(file["values"]) == clips(data) - 1


def test_a_full_disk_is_an_error_before_anything_is_written_into_the_map(
    data, tmp_path, monkeypatch
):
    """A page of a mapped file that finds no room would end the process."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(InputError, match=r"done\.npy is full: free some space"):
        stages.embed(SYSTEM, data, tmp_path)


def test_with_force_nothing_of_a_part_is_used(data, whole, interrupted, decoded):
    stages.embed(SYSTEM, data, interrupted, force=True)
    assert (interrupted / NAME).read_bytes() == whole
    assert len(decoded) == clips(data)


def test_a_part_of_a_machine_that_is_gone_is_removed(data, interrupted, tmp_path_factory):
    other = tmp_path_factory.mktemp("others")
    tone_machine(other, "pump")
    stages.embed(SYSTEM, other, interrupted, force=True)
    assert not (interrupted / f"{NAME}.part").exists()
