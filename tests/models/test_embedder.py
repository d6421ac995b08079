"""Embedders: what the numbers are, and that padding changes nothing."""

import jax
import numpy as np
import pytest

from asdjax.frontend.fbank import BEATS, fbank
from asdjax.models.backbone import Backbone, initialize
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.embedder import Pretrained, backbone_embedder, logmel_statistics, masked_mean
from asdjax.types import InputError


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal((1, samples)).astype(np.float32) * 0.1


def test_logmel_statistics_are_the_mean_and_deviation_over_frames():
    wave = noise(4000)
    mel = np.asarray(fbank(wave, BEATS))[0].astype(np.float64)
    got = np.asarray(logmel_statistics(wave, np.array([4000])))[0]
    # 1e-5: float32 sums of 23 log energies of about 10.
    np.testing.assert_allclose(got, np.concatenate([mel.mean(0), mel.std(0)]), rtol=0, atol=1e-5)


def test_padding_changes_nothing():
    wave = noise(4000)
    padded = np.pad(wave, ((0, 0), (0, 3000)))
    embed = jax.jit(logmel_statistics)
    # 1e-4: float32, another batch of the FFT and longer sums.
    np.testing.assert_allclose(
        embed(padded, np.array([4000])), embed(wave, np.array([4000])), rtol=0, atol=1e-4
    )


def test_a_clip_without_a_single_frame_inside_is_finite():
    assert np.isfinite(logmel_statistics(noise(800), np.array([100]))).all()


def test_masked_mean_averages_only_what_is_inside():
    x = np.arange(12.0, dtype=np.float32).reshape(2, 3, 2)
    inside = np.array([[True, True, False], [False, False, False]])[..., None]
    np.testing.assert_array_equal(masked_mean(x, inside), [[1, 2], [0, 0]])


# Frozen backbones


@pytest.fixture(scope="module")
def eat():
    config = EatConfig(embed_dim=32, depth=2, num_heads=2, max_length=8)
    return Backbone(config, initialize(config, seed=1))


def embed(backbone, wave, lengths=None, **how):
    made = backbone_embedder(backbone, Pretrained("", **how))
    return jax.jit(made.apply)(made.params, wave, np.array(lengths or [wave.shape[1]]))


def test_the_class_token_is_no_part_of_the_mean(eat):
    tokens = np.float64(eat(noise(8000)))
    assert tokens.shape == (1, 1 + 32, 32)  # 64 frames: 4 patches of time, 8 bands
    # 1e-5: float32 means of tokens of unit scale
    np.testing.assert_allclose(embed(eat, noise(8000)), tokens[:, 1:].mean(1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        embed(eat, noise(8000), pooling="cls"), tokens[:, 0], rtol=0, atol=1e-5
    )
    first = np.float64(eat(noise(8000), layer=1))
    np.testing.assert_allclose(
        embed(eat, noise(8000), layer=1), first[:, 1:].mean(1), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_clip_of_eat_is_the_same_in_a_longer_row(eat, pooling):
    wave = noise(6000)
    longer = np.pad(wave, ((0, 0), (0, 9000)), constant_values=0.5)  # what follows is ignored
    # 1e-5: float32, sums over another number of tokens
    np.testing.assert_allclose(
        embed(eat, longer, [6000], pooling=pooling),
        embed(eat, wave, pooling=pooling),
        rtol=0,
        atol=1e-5,
    )


def test_patches_by_time_and_band(eat):
    tokens = np.asarray(eat(noise(8000)))
    grid = np.asarray(eat.patches(tokens))
    assert grid.shape == (1, 4, 8, 32)
    np.testing.assert_array_equal(grid[0, 3, 5], tokens[0, 1 + 8 * 3 + 5])


def test_beats_has_no_class_token_to_take():
    config = BeatsConfig(
        input_patch_size=16,
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=32,
        encoder_attention_heads=2,
        conv_pos=8,
        conv_pos_groups=2,
        embed_dim=16,
    )
    with pytest.raises(InputError, match='pooling "cls": BEATs has no class token'):
        backbone_embedder(Backbone(config, initialize(config)), Pretrained("", pooling="cls"))
