"""Time warping against scipy's spline, and what it may not change."""

import jax
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from asdjax.frontend import warp

time_warp = jax.jit(warp.time_warp)

KEY = jax.random.key(4)


def speeds(key, clips, sigma):
    """Return the random numbers of `time_warp`: the second half of its key draws speeds."""
    drawn = np.asarray(jax.random.normal(jax.random.split(key)[1], (clips, warp.KNOTS + 2)))
    return np.maximum(1 + sigma * np.float64(drawn), warp.SLOWEST)


def tau(speed, length):
    """Return where in a clip each of its samples comes from: the speed's integral, scaled."""
    knots = np.linspace(0, length - 1, len(speed))
    path = CubicSpline(knots, speed, bc_type="natural").antiderivative()(np.arange(length))
    return path / path[-1] * (length - 1)


@pytest.mark.parametrize(
    ("dtype", "sigma"), [(np.float32, 0.2), (np.int16, 0.2), (np.float32, 0.3)]
)
def test_it_is_the_integrated_spline_read_by_linear_interpolation(dtype, sigma):
    rng, lengths = np.random.default_rng(0), np.array([400, 257, 30, 2], np.int32)
    wave = rng.uniform(-1, 1, (4, 400))
    wave = (wave * 32767).astype(dtype) if dtype == np.int16 else wave.astype(dtype)
    got = np.asarray(time_warp(wave, lengths, KEY, 1.0, sigma))
    assert got.dtype == np.float32
    full = np.float64(wave) / (32768 if dtype == np.int16 else 1)
    for row, speed, length in zip(range(4), speeds(KEY, 4, sigma), lengths, strict=True):
        clip = full[row, :length]
        want = np.interp(tau(speed, length), np.arange(length), clip)
        # Neighbors differ by up to 2, and tau is right to 400 times the rounding of float32.
        np.testing.assert_allclose(got[row, :length], want, rtol=0, atol=2 * 400 * 2**-22)
        np.testing.assert_array_equal(got[row, length:], np.float32(full[row, length:]))
        assert length == 2 or np.abs(got[row, :length] - clip).max() > 0.1


def test_in_long_clips_samples_are_found_between_the_steps_of_float32():
    """At sample 160,000 float32 has steps of 1/64 sample; noise of such steps would be heard."""
    ramp = (np.arange(160_000) % 2048).astype(np.float32)  # a slope of 1, and small numbers
    (got,) = np.asarray(time_warp(ramp[None], np.array([160_000]), KEY, 1.0, 0.2))
    path = tau(speeds(KEY, 1, 0.2)[0], 160_000)
    inside = (path % 2048 > 1) & (path % 2048 < 2046)
    error = got[inside] - path[inside] % 2048
    # Sums of five pieces of 1/5, float32: 160,000 times 2**-24; from sample to sample far less.
    np.testing.assert_allclose(error, 0, rtol=0, atol=160_000 * 2**-23)
    assert np.diff(error).std() < 0.003
    assert np.abs(path - np.arange(160_000)).max() > 1000  # a warp worth the name


def test_no_knot_is_slower_than_the_slowest():
    clips, length = 1000, 100
    drawn = speeds(KEY, clips, 0.3)
    slow = np.flatnonzero((drawn == warp.SLOWEST).any(1))
    assert len(slow) > 2  # of a normal distribution 0.8 % of the clips
    ramps = np.tile(np.arange(length, dtype=np.float32), (clips, 1))
    got = np.asarray(time_warp(ramps, np.full(clips, length), KEY, 1.0, 0.3))[slow]
    # As above; without the limit the worst differs by more than a hundred times as much.
    want = [tau(speed, length) for speed in drawn[slow]]
    np.testing.assert_allclose(got, want, rtol=0, atol=2 * length * 2**-22)


def test_time_goes_on_and_both_ends_stay():
    ramps = np.tile(np.arange(500, dtype=np.float32), (200, 1))
    lengths = np.random.default_rng(1).integers(100, 501, 200)
    got = np.asarray(time_warp(ramps, lengths, KEY, 1.0, 0.2))
    for row, length in zip(got, lengths, strict=True):
        assert row[0] == 0
        assert row[length - 1] == pytest.approx(length - 1, abs=1e-3)  # rounding of tau
        assert (np.diff(row[:length]) > 0).all()
        np.testing.assert_array_equal(row[length:], np.arange(length, 500))


def test_speeds_are_one_on_average_and_spread_by_sigma():
    """At the inner knots; scaling to the clip's length takes little of the spread."""
    clips, length = 4000, 101  # knots are 20 samples apart
    ramps = np.tile(np.arange(length, dtype=np.float32), (clips, 1))
    got = np.asarray(time_warp(ramps, np.full(clips, length), KEY, 1.0, 0.1))
    speed = (got[:, 41] - got[:, 39]) / 2
    assert speed.mean() == pytest.approx(1, abs=0.01)  # standard error 0.0015; 1/x is convex
    # 1/5 of the mean speed is this knot: (1 - 1/5)^2 + 4 / 25 of the variance is left, 0.089.
    assert speed.std() == pytest.approx(0.1 * np.sqrt(0.8), abs=0.005)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_clips_that_are_not_chosen_stay_as_they_are(dtype):
    wave = np.random.default_rng(0).integers(-30000, 30000, (64, 50)).astype(dtype)
    whole = np.float32(wave) / (32768 if dtype == np.int16 else 1)
    lengths, chances = np.full(64, 50, np.int32), np.tile(np.float32([0, 1]), 32)
    np.testing.assert_array_equal(time_warp(wave, lengths, KEY, 0.0, 0.2), whole)
    changed = (np.asarray(time_warp(wave, lengths, KEY, chances, 0.2)) != whole).any(1)
    np.testing.assert_array_equal(changed, chances == 1)
    some = (np.asarray(time_warp(wave, lengths, KEY, 0.5, 0.2)) != whole).any(1)
    assert 16 <= some.sum() <= 48  # 4 standard errors of 32


def test_clips_too_short_to_warp_stay_as_they_are():
    wave = np.arange(1, 13, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(time_warp(wave, np.array([0, 1]), KEY, 1.0, 0.3), wave)


def test_the_same_on_two_devices_as_on_one():
    wave = np.random.default_rng(0).uniform(-1, 1, (4, 300)).astype(np.float32)
    lengths = np.array([300, 200, 300, 100], np.int32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put((wave, lengths), jax.NamedSharding(mesh, jax.P("data")))
    together = time_warp(*spread, KEY, 0.5, 0.2)
    alone = time_warp(wave, lengths, KEY, 0.5, 0.2)
    # Compilers round tau once or twice: 300 samples of 2**-22, neighbors differ by up to 2.
    np.testing.assert_allclose(together, alone, rtol=0, atol=2 * 300 * 2**-22)
    assert len(together.devices()) == 2
