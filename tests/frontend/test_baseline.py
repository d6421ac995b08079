"""The baseline's log-mel against librosa, which its code calls (`golden/make_baseline_mel.py`)."""

from pathlib import Path

import numpy as np
import pytest

from asdjax.frontend.baseline import FLOOR, frame_count, log_mel, mel_bank

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "baseline_mel.npz")
ATOL_DB = 1e-4


@pytest.mark.parametrize("samples", [6_000, 5_120, 5_119, 2_048])
def test_it_equals_librosa(samples):
    found = log_mel(GOLDEN[f"{samples}_wave"][None])[0]
    assert found.shape == (frame_count(samples), 128)
    np.testing.assert_allclose(found, GOLDEN[f"{samples}_mel"], rtol=0, atol=ATOL_DB)


def test_a_pure_tone_equals_librosa_down_to_70_db_below_it():
    found, expected = log_mel(GOLDEN["tone_wave"][None])[0], GOLDEN["tone_mel"]
    near = expected > expected.max(1, keepdims=True) - 70
    assert near.sum() > 100
    # float32 has 144 dB: 70 dB below the tone the FFT is exact to 2e-4 of the value.
    np.testing.assert_allclose(found[near], expected[near], rtol=0, atol=1e-3)


def test_mel_filters_equal_librosa():
    np.testing.assert_allclose(mel_bank(), GOLDEN["filters"], rtol=0, atol=1e-8)


def test_a_frame_worked_out_by_hand():
    # The first frame has zeros in its first half, then a click in its middle, where the window is
    # 1: power 1 in each bin, so that each band has the sum of its filter.
    wave = np.zeros((1, 1024), np.float32)
    wave[0, 0] = 1
    expected = 10 * np.log10(mel_bank().sum(0))
    np.testing.assert_allclose(log_mel(wave)[0, 0], expected, rtol=0, atol=ATOL_DB)


def test_silence_is_the_floor():
    np.testing.assert_allclose(log_mel(np.zeros((1, 2048), np.int16)), 10 * np.log10(FLOOR), 1e-6)


def test_int16_and_float_are_the_same_wave():
    wave = GOLDEN["6000_wave"][None]
    np.testing.assert_array_equal(log_mel(wave), log_mel(wave.astype(np.float32) / 32768))


@pytest.mark.parametrize("length", [400, 5_119, 5_120])
def test_a_padded_row_equals_the_clip_alone(length):
    wave = np.stack([GOLDEN["6000_wave"], GOLDEN["6000_wave"][::-1]])
    padded = np.asarray(log_mel(wave, np.int32([length, 6000])))
    alone = np.asarray(log_mel(wave[:1, :length]))
    np.testing.assert_array_equal(padded[0, : frame_count(length)], alone[0])
    assert not padded[0, frame_count(length) :].any()
    np.testing.assert_array_equal(padded[1], log_mel(wave)[1])
