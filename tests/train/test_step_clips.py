"""What a step does to its clips, seen through a front end that does nothing."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.devices import data_mesh
from asdjax.frontend.augment import Augment
from asdjax.models.system import Input, Network
from asdjax.train.batches import Batch
from asdjax.train.step import _augmented, make_front_ends

WAVE = np.random.default_rng(2).integers(1, 1000, (4, 64)).astype(np.int16)
LENGTHS = np.array([64, 64, 40, 16], np.int32)
CLIPS = np.where(np.arange(64)[None] < LENGTHS[:, None], WAVE, 0)
LABELS = np.array([[0, 1], [1, 2], [2, 0], [0, 0]], np.int32)


def front_ends(wave, lengths):
    """Return the wave as a mel of 4 bands, and which of its frames are padding."""
    mel = wave.reshape(len(wave), -1, 4)
    return (Input(mel, jnp.arange(mel.shape[1])[None] >= lengths[:, None] // 4),)


def augmented(how, samples=32, wave=CLIPS, seed=0):
    given = Batch(*map(jnp.asarray, (wave, LENGTHS, LABELS)))
    got = jax.device_get(_augmented(given, front_ends, how, samples, jax.random.key(seed)))
    return SimpleNamespace(**got.inputs[0]._asdict(), label=got.label, weight=got.weight)


def test_by_default_clips_are_only_cut():
    got = augmented(Augment())
    assert got.x.dtype == np.int16  # the front end does the conversion
    np.testing.assert_array_equal(got.x.reshape(4, 32), CLIPS[:, :32])
    np.testing.assert_array_equal(got.padding.sum(1), [0, 0, 0, 4])
    np.testing.assert_array_equal(got.label, LABELS[..., None])
    np.testing.assert_array_equal(got.weight, np.ones((4, 1)))


def test_only_a_mixed_clip_is_as_long_as_the_longer_of_its_two():
    how, seen = Augment(mixup=0.5, mixup_on="wave"), set()
    for seed in range(4):
        got = augmented(how, samples=64, seed=seed)
        mixed = got.weight[:, 1] > 0
        expected = np.where(mixed, np.maximum(LENGTHS, LENGTHS[::-1]), LENGTHS)
        np.testing.assert_array_equal((~got.padding).sum(1), expected // 4)
        seen |= set(zip(mixed.tolist(), (LENGTHS[::-1] > LENGTHS).tolist(), strict=True))
    assert {(True, True), (False, True)} <= seen  # shorter than the partner, mixed and not


def windows(clip):
    """Return every stretch of 32 samples of a clip."""
    return [tuple(clip[i : i + 32]) for i in range(len(clip) - 31)]


def test_random_crops_are_stretches_of_the_clips():
    rows = augmented(Augment(crop="random")).x.reshape(4, 32)
    starts = [windows(CLIPS[i, : LENGTHS[i]]).index(tuple(rows[i])) for i in range(3)]
    assert len(set(starts)) > 1
    np.testing.assert_array_equal(rows[3], CLIPS[3, :32])  # shorter: all of it, with its padding


def test_shifts_turn_the_crop_inside_its_own_length():
    rows = augmented(Augment(shift=True)).x.reshape(4, 32)
    turns = []
    for row, clip, length in zip(rows, CLIPS, np.minimum(LENGTHS, 32), strict=True):
        turned = [tuple(np.roll(clip[:length], -n)) for n in range(length)]
        turns.append(turned.index(tuple(row[:length])))
        assert not row[length:].any()
    assert len(set(turns)) > 1


def test_masks_hide_stretches_of_the_mel():
    got = augmented(Augment(mask=4, mask_probability=1.0), samples=64, wave=WAVE).x
    hidden = got == 0
    np.testing.assert_array_equal(got[~hidden], WAVE.reshape(4, 16, 4)[~hidden])
    assert 0 < hidden.mean() < 1


def test_mixed_clips_are_as_long_as_the_longer_of_the_two():
    got = augmented(Augment(mixup=0.5), samples=64)
    own = got.weight[:, 0, None]
    mixed = own[:, 0] < 1
    assert 0 < mixed.sum() < 4
    both = own * (CLIPS / 32768) + (1 - own) * (CLIPS[::-1] / 32768)
    np.testing.assert_allclose(got.x.reshape(4, 64), both, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(got.label, np.stack([LABELS, LABELS[::-1]], -1))
    np.testing.assert_allclose(got.weight.sum(1), 1)
    longer = np.where(mixed, np.maximum(LENGTHS, LENGTHS[::-1]), LENGTHS)
    np.testing.assert_array_equal((~got.padding).sum(1), longer // 4)


def test_clips_are_masked_before_they_are_mixed():
    """Half a mixed clip shows through the mask of the other half."""
    how = Augment(mask=16, mask_probability=1.0, mixup=1.0)
    got = augmented(how, samples=64, wave=np.ones((4, 64), np.float32))
    own = np.broadcast_to(got.weight[:, :1, None], got.x.shape)
    alone = np.isclose(got.x, own, atol=1e-6), np.isclose(got.x, 1 - own, atol=1e-6)
    assert all(part.any() for part in alone)
    nothing, whole = np.isclose(got.x, 0), np.isclose(got.x, 1)
    assert (alone[0] | alone[1] | nothing | whole).all()


def test_masks_hide_behind_the_mean_of_an_input_that_is_not_centered():
    def own_mean(wave, lengths):
        x = wave.reshape(len(wave), -1, 4).astype(jnp.float32)
        return (Input(x, mean=x.mean((1, 2), keepdims=True)),)

    given = Batch(*map(jnp.asarray, (WAVE, LENGTHS, LABELS)))
    how, plain = Augment(mask=4, mask_probability=1.0), WAVE.reshape(4, 16, 4)
    got = np.asarray(_augmented(given, own_mean, how, 64, jax.random.key(0)).inputs[0].x)
    mean = plain.mean((1, 2), keepdims=True, dtype=np.float32)
    hidden = got != plain
    assert 0 < hidden.mean() < 1
    np.testing.assert_allclose(got, np.where(hidden, mean, plain), rtol=1e-6)


@pytest.mark.parametrize("padded", [True, False])
def test_front_ends_see_no_offset(padded):
    seen = Network(lambda wave, lengths=None: Input(wave), lambda **_: None, 64)
    rows = 8  # of all devices
    sound = np.random.default_rng(0).integers(-99, 99, (rows, 64)).astype(np.int16)
    lengths = np.full(rows, 40 if padded else 64, np.int32)
    inside = np.arange(64)[None] < lengths[:, None]
    with jax.set_mesh(data_mesh()):
        compute = jax.jit(make_front_ends([seen], data_mesh(), padded).apply)
    found = [compute(np.int16(inside * (sound + c)), lengths)[0].x for c in (0, 3000)]
    # 2e-6: sums of 64 float32 values below 0.1.
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.asarray(found[0]).sum(1), 0, atol=2e-6)
    assert not np.asarray(found[1])[~inside].any()
