"""Augmentation by meaning: what may change, by how much, how often, and what may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from asdjax.frontend import augment
from asdjax.frontend.augment import Augment
from asdjax.types import InputError

# As a training step has them; one compilation is also faster than one per operation.
spec_augment = jax.jit(augment.spec_augment, static_argnums=2)
mixup = jax.jit(augment.mixup, static_argnames="alpha")
random_crop = jax.jit(augment.random_crop, static_argnums=2)
time_shift = jax.jit(augment.time_shift)
add_noise = jax.jit(augment.add_noise, static_argnames="snr_db")

KEYS = [jax.random.key(seed) for seed in range(3)]
# Frequencies over 4,096 clips are checked to 0.04: 5 standard errors of a fair coin (0.0078 each).
CLIPS, WITHIN = 4096, 0.04


def numbered(batch, samples, dtype=np.float32):
    """Waves whose every sample is another number, so that a sample tells where it came from."""
    return np.arange(1, batch * samples + 1).reshape(batch, samples).astype(dtype)


def hidden(batch, frames, bands, key, width, probability):
    """Which frames `[B, T]` and bands `[B, F]` of an input without zeros are hidden."""
    zero = np.asarray(spec_augment(jnp.ones((batch, frames, bands)), key, width, probability)) == 0
    in_time, in_frequency = zero.all(2), zero.all(1)
    np.testing.assert_array_equal(zero, in_time[:, :, None] | in_frequency[:, None])  # whole lines
    return in_time, in_frequency


def runs(masked):
    """Return the number of separate True stretches in each row."""
    return np.diff(np.pad(masked, ((0, 0), (1, 0))).astype(int), axis=1).clip(0).sum(1)


def test_masks_are_one_stretch_of_each_axis_of_every_width_and_place():
    in_time, in_frequency = hidden(CLIPS, 9, 6, KEYS[0], 3, 1.0)
    for masked in (in_time, in_frequency):
        assert runs(masked).max() == 1
        widths = np.bincount(masked.sum(1), minlength=4)
        assert len(widths) == 4  # none wider than 3
        np.testing.assert_allclose(widths / CLIPS, 0.25, atol=WITHIN)
        size = masked.shape[1]
        for width in (1, 2, 3):  # every start that fits, equally often, the ends too
            starts = np.bincount(masked[masked.sum(1) == width].argmax(1), minlength=size)
            assert (starts[: size - width + 1] > 0).all()
            assert (starts[size - width + 1 :] == 0).all()
            share = starts[: size - width + 1] / starts.sum()
            # About 1,000 clips of a width: the standard error is at most 0.014.
            np.testing.assert_allclose(share, 1 / (size - width + 1), atol=5 * 0.014)


def test_the_axes_and_the_clips_are_drawn_independently():
    in_time, in_frequency = hidden(CLIPS, 9, 6, KEYS[1], 3, 0.5)
    time, frequency = in_time.any(1), in_frequency.any(1)
    one = 0.5 * 0.75  # masked, and of a width that is not 0
    assert time.mean() == pytest.approx(one, abs=WITHIN)
    assert frequency.mean() == pytest.approx(one, abs=WITHIN)
    assert (time & frequency).mean() == pytest.approx(one**2, abs=WITHIN)
    assert (time[1:] & time[:-1]).mean() == pytest.approx(one**2, abs=WITHIN)


def test_masks_hide_behind_the_mean_that_is_given():
    mel = np.random.default_rng(0).normal(-2.3, 1, (64, 9, 6)).astype(np.float32)
    mean = mel.mean((1, 2), keepdims=True)
    plain, got = (spec_augment(mel, KEYS[0], 3, 1.0, m) for m in (99.0, mean))
    masked = np.asarray(plain) == 99
    assert 0.1 < masked.mean() < 0.9
    np.testing.assert_array_equal(got, np.where(masked, mean, mel))


def test_a_mask_is_no_wider_than_the_axis():
    in_time, in_frequency = hidden(500, 5, 3, KEYS[0], 80, 1.0)
    assert set(in_time.sum(1)) == set(range(6))
    assert set(in_frequency.sum(1)) == set(range(4))


@pytest.mark.parametrize(("width", "probability"), [(0, 1.0), (80, 0.0)])
def test_no_width_or_no_probability_masks_nothing(width, probability):
    mel = np.random.default_rng(0).normal(size=(64, 7, 5)).astype(np.float32)
    np.testing.assert_array_equal(spec_augment(mel, KEYS[0], width, probability), mel)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_not_masked_is_untouched(dtype):
    mel = jnp.asarray(np.random.default_rng(0).normal(size=(64, 7, 5)), dtype)
    masked = spec_augment(mel, KEYS[0], 80, 1.0)
    assert masked.dtype == dtype
    assert bool((masked == 0).any())
    assert bool(((masked == mel) | (masked == 0)).all())


def test_mixup_is_the_convex_combination_with_the_reversed_batch():
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    label = np.array([[3], [1], [4], [1], [5]], np.int32)
    mixed, both, weight = map(np.asarray, mixup(x, label, KEYS[0], 1.0))
    np.testing.assert_array_equal(both, [[3, 5], [1, 1], [4, 4], [1, 1], [5, 3]])
    np.testing.assert_allclose(weight.sum(1), 1, rtol=0, atol=1e-7)  # 1 - r is rounded once
    assert ((weight > 0) & (weight < 1)).all()
    assert len(set(weight[:, 0])) == 5  # each clip has its own share
    for row in range(5):
        want = np.float64(weight[row, 0]) * x[row] + np.float64(weight[row, 1]) * x[4 - row]
        np.testing.assert_allclose(mixed[row], want, rtol=0, atol=1e-6)  # float32 of about 3
    assert both.dtype == np.int32


def test_mixup_takes_part_of_the_clips_and_leaves_the_others():
    x = numbered(CLIPS, 2)
    mixed, _, weight = map(np.asarray, mixup(x, np.zeros((CLIPS, 1), np.int32), KEYS[0], 0.3))
    alone = weight[:, 0] == 1
    assert alone.mean() == pytest.approx(0.7, abs=WITHIN)
    np.testing.assert_array_equal(mixed[alone], x[alone])
    np.testing.assert_array_equal(weight[alone], [[1, 0]] * alone.sum())
    share = weight[~alone, 0]  # uniform: 10 parts of the unit interval hold the same number
    np.testing.assert_allclose(np.histogram(share, 10, (0, 1))[0] / len(share), 0.1, atol=WITHIN)


@pytest.mark.parametrize("alpha", [0.5, 4.0])
def test_shares_of_mixup_are_of_the_beta_distribution(alpha):
    x, label = np.ones((CLIPS, 1), np.float32), np.zeros((CLIPS, 1), np.int32)
    mixed, _, weight = mixup(x, label, KEYS[0], 0.6, alpha=alpha)
    np.testing.assert_allclose(mixed, 1, rtol=0, atol=2**-22)  # r and 1 - r are rounded
    chance, share = map(np.asarray, jax.random.uniform(KEYS[0], (2, CLIPS)))
    own, chosen = np.asarray(weight)[:, 0], chance < 0.6  # the same clips for every alpha
    np.testing.assert_array_equal(own == 1, ~chosen)
    # Kolmogorov and Smirnov: of about 2,458 right draws one set in 1,000 is farther off than 0.04.
    assert scipy.stats.kstest(own[chosen], scipy.stats.beta(alpha, alpha).cdf).statistic < 0.04
    assert abs(np.corrcoef(own[chosen], chance[chosen])[0, 1]) < 0.07  # 3.5 standard errors
    plain = mixup(x, label, KEYS[0], 0.6, alpha=1.0)[2]
    np.testing.assert_array_equal(plain[:, 0], np.where(chosen, share, 1))  # uniform


def test_mixup_of_probability_zero_returns_the_input():
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    mixed, _, weight = mixup(x, np.zeros((5, 1), np.int32), KEYS[0], 0.0)
    np.testing.assert_array_equal(mixed, x)
    np.testing.assert_array_equal(weight, [[1, 0]] * 5)


def test_mixup_pairs_the_labels_of_several_heads():
    x, label = np.zeros((3, 2), np.float32), np.arange(6, dtype=np.int32).reshape(3, 2, 1)
    both = augment.mixup(x, label, KEYS[0], 1.0)[1]
    np.testing.assert_array_equal(both, [[[0, 4], [1, 5]], [[2, 2], [3, 3]], [[4, 0], [5, 1]]])


def test_mixup_of_16_bit_waves_is_that_of_their_float_form():
    wave, label = numbered(4, 8, np.int16), np.zeros((4, 1), np.int32)
    mixed = mixup(wave, label, KEYS[0], 1.0)[0]
    assert mixed.dtype == jnp.float32
    np.testing.assert_array_equal(mixed, mixup(wave / np.float32(32768), label, KEYS[0], 1.0)[0])


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_crop_is_a_contiguous_part_of_the_clip(dtype):
    wave, lengths = numbered(50, 12, dtype), np.tile(np.array([12, 9, 5, 3, 7], np.int32), 10)
    cropped, left = map(np.asarray, random_crop(wave, lengths, 5, KEYS[0]))
    assert (cropped.dtype, cropped.shape) == (dtype, (50, 5))
    np.testing.assert_array_equal(left, np.minimum(lengths, 5))
    for row in range(50):
        start = list(wave[row]).index(cropped[row, 0])
        np.testing.assert_array_equal(cropped[row], wave[row, start : start + 5])
        assert start <= max(lengths[row] - 5, 0)  # no padding enters a clip that is long enough


def test_a_crop_starts_anywhere_including_both_ends():
    wave, lengths = np.tile(np.arange(8, dtype=np.int16), (CLIPS, 1)), np.full(CLIPS, 7, np.int32)
    starts = np.asarray(random_crop(wave, lengths, 4, KEYS[0])[0])[:, 0]
    share = np.bincount(starts, minlength=5) / CLIPS
    np.testing.assert_allclose(share, [0.25, 0.25, 0.25, 0.25, 0], atol=WITHIN)
    assert share[4] == 0


def test_a_crop_of_the_whole_is_the_input_and_of_more_is_refused():
    wave, lengths = numbered(3, 6), np.full(3, 6, np.int32)
    np.testing.assert_array_equal(random_crop(wave, lengths, 6, KEYS[0])[0], wave)
    with pytest.raises(ValueError, match=r"at least 7 samples, got \(3, 6\)"):
        random_crop(wave, lengths, 7, KEYS[0])


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_shift_turns_the_clip_in_a_circle_and_leaves_its_padding(dtype):
    wave, lengths = numbered(40, 10, dtype), np.tile(np.array([10, 7, 1, 0], np.int32), 10)
    shifted = np.asarray(time_shift(wave, lengths, KEYS[0]))
    assert shifted.dtype == dtype
    for before, after, length in zip(wave, shifted, lengths, strict=True):
        turns = [np.roll(before[:length], by) for by in range(max(length, 1))]
        assert any((after[:length] == turn).all() for turn in turns)
        np.testing.assert_array_equal(after[length:], before[length:])


def test_every_shift_is_equally_likely():
    wave, lengths = np.tile(np.arange(6), (CLIPS, 1)), np.full(CLIPS, 5, np.int32)
    first = np.asarray(time_shift(wave, lengths, KEYS[0]))[:, 0]
    share = np.bincount(first, minlength=6) / CLIPS
    np.testing.assert_allclose(share, [0.2] * 5 + [0], atol=WITHIN)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_noise_is_added_at_the_ratio_of_powers_asked_for(dtype):
    rng, lengths = np.random.default_rng(0), np.array([400, 300, 400, 2], np.int32)
    wave = rng.normal(0, [[20], [3000], [500], [500]], (4, 400))
    noise = rng.normal(0, [[5000], [30], [500], [500]], (4, 400))
    wave *= np.arange(400)[None] < lengths[:, None]
    if dtype == np.float32:
        wave, noise = wave / 32768, noise / 32768
    wave, noise = wave.astype(dtype), noise.astype(dtype)
    scale = 32768 if dtype == np.int16 else 1
    for low, high in ((0.0, 20.0), (-5.0, -5.0)):
        got = np.asarray(add_noise(wave, noise, lengths, KEYS[0], snr_db=(low, high)))
        assert got.dtype == np.float32
        for row, length in enumerate(lengths):
            clip = wave[row, :length] / np.float64(scale)
            added = got[row, :length] - clip
            ratio = 10 * np.log10(clip.var() / added.var())  # an offset has no power
            assert low - 1e-2 <= ratio <= high + 1e-2  # the noise is a difference of float32
            beside = noise[row, :length] / np.float64(scale)
            only = (added @ beside) / (beside @ beside) * beside  # nothing else was added
            np.testing.assert_allclose(added, only, rtol=0, atol=2**-22)  # of waves below 1
            assert not got[row, length:].any()


def test_ratios_are_uniform_in_decibels():
    wave, noise = np.float32([1, -1, 1, -1]) * np.ones((2, CLIPS, 1), np.float32)
    got = add_noise(wave, noise, np.full(CLIPS, 4), KEYS[0], snr_db=(0.0, 20.0))
    ratio = -20 * np.log10(np.asarray(got)[:, 0] - 1)
    # Kolmogorov and Smirnov: one right draw in 1,000 is farther off than 0.0305.
    assert scipy.stats.kstest(ratio, scipy.stats.uniform(0, 20).cdf).statistic < 0.0305


def test_silence_is_safe_on_both_sides():
    loud, silent = np.int16([[7, -7, 7, 0, 0]] * 2), np.zeros((2, 5), np.int16)
    lengths = np.array([5, 3])
    for wave, noise in ((loud, silent), (silent, loud), (silent, silent)):
        got = add_noise(wave, noise, lengths, KEYS[0], snr_db=(0.0, 0.0))
        np.testing.assert_array_equal(got, wave / np.float32(32768))


def masks(key, x, numbers):
    return [spec_augment(x[:, :, None] * jnp.ones((1, 1, 6)), key, 4, 0.5)]


def mixes(key, x, numbers):
    return mixup(x, numbers[:, None], key, 0.5)


def crops(key, x, numbers):
    return random_crop(x, numbers, 4, key)


def shifts(key, x, numbers):
    return [time_shift(x, numbers, key)]


def noises(key, x, numbers):
    return [augment.add_noise(x, x[::-1], numbers, key, (0.0, 20.0))]


ALL = [masks, mixes, crops, shifts, noises]
X, NUMBERS = numbered(16, 20), np.arange(5, 21, dtype=np.int32)  # lengths, or labels


@pytest.mark.parametrize("change", ALL)
def test_a_key_decides_all(change):
    first, same, other = (change(key, X, NUMBERS) for key in (KEYS[0], KEYS[0], KEYS[1]))
    for one, two in zip(first, same, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("change", ALL)
def test_the_same_on_two_devices_as_on_one(change):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put((X, NUMBERS), jax.NamedSharding(mesh, jax.P("data")))
    alone, together = change(KEYS[0], X, NUMBERS), jax.jit(change)(KEYS[0], *spread)
    for part, (one, two) in enumerate(zip(alone, together, strict=True)):
        # Exact, but for sums: compilers round r x + (1 - r) y once or twice, and powers often.
        rounding = 2**-20 if change in (mixes, noises) and part == 0 else 0
        np.testing.assert_allclose(one, two, rtol=rounding, atol=0)
        assert len(two.devices()) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask": -1},
        {"mask_probability": 1.5},
        {"mixup": -0.1},
        {"mixup": float("nan")},
        {"mixup_alpha": 0.0},
        {"mixup_alpha": float("inf")},
        {"mixup_on": "spectrum"},
        {"warp": 1.1},
        {"warp_sigma": 0.0},
        {"warp_sigma": 0.31},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}.*{next(iter(wrong.values()))}"):
        Augment(**wrong)
