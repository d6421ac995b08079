"""Decoded files that are kept in memory are what the file holds, and stay within their bytes."""

import numpy as np
import pytest
import soundfile

from asdjax.data import decode as module
from asdjax.data.audio import read, read_batch
from asdjax.data.decode import decode, kept_in_memory


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    made = [tmp_path / f"{i}.wav" for i in range(3)]
    for path in made:
        soundfile.write(path, rng.uniform(-0.5, 0.5, 1000), 16000, "PCM_16")
    return made


@pytest.fixture
def opened(monkeypatch):
    """Return the list of files that are really opened."""
    found, original = [], module.opened

    def opening(path):
        found.append(path)
        return original(path)

    monkeypatch.setattr(module, "opened", opening)
    return found


def test_a_file_is_decoded_once(paths, opened):
    plain = [decode(path) for path in paths]
    opened.clear()
    with kept_in_memory(10**6):
        for _ in range(2):
            waves, lengths = read_batch(paths, 1200, "pad", 0)
    assert sorted(opened) == paths
    for wave, (_, samples) in zip(waves, plain, strict=True):
        np.testing.assert_array_equal(wave, np.pad(samples[:, 0], (0, 200)))
    assert list(lengths) == [1000] * 3


def test_afterwards_nothing_is_kept(paths, opened):
    with kept_in_memory(10**6):
        decode(paths[0])
    decode(paths[0])
    assert opened == [paths[0]] * 2


def test_a_file_that_changed_is_decoded_again(paths):
    with kept_in_memory(10**6):
        before = read(paths[0], 0)
        soundfile.write(paths[0], np.full(500, 0.25), 16000, "PCM_16")
        after = read(paths[0], 0)
    assert len(before) == 1000
    np.testing.assert_array_equal(after, np.full(500, 8192))


def test_what_is_kept_cannot_be_changed(paths):
    with kept_in_memory(10**6):
        _, samples = decode(paths[0])
        with pytest.raises(ValueError, match="read-only"):
            samples[0] = 0


def test_no_more_bytes_are_kept_than_asked_for(paths, opened):
    with kept_in_memory(4500):  # two files of 2000 bytes
        for path in paths * 2:
            decode(path)
    assert opened == [*paths, paths[2]]
