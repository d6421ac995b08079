"""The encoder as users call it: from the wave, padded or not, in any of the accepted types."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import tiny_beats

from asdjax.models.backbone import Backbone, abstract, initialize
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.efficientat import EfficientATConfig
from asdjax.types import InputError
from weights_convert import torch_file
from weights_convert.beats import convert

ATOL = 2e-4  # from the wave on: the filter bank is good to 3e-5, the encoder to 1e-4


@pytest.fixture(scope="module")
def backbone(golden):
    checkpoint = torch_file.read(golden / "beats_tiny_finetuned.pt")
    config = BeatsConfig.from_checkpoint(checkpoint["cfg"])
    return Backbone(config, convert(checkpoint["model"], config))


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "beats_tiny_finetuned.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def lengths(arrays):
    return (~arrays["wave_mask"]).sum(1)


def test_features_from_the_wave(backbone, arrays, lengths):
    np.testing.assert_allclose(backbone(arrays["wave"]), arrays["features_nomask"], atol=ATOL)
    padded = backbone(jnp.asarray(arrays["wave"]), jnp.asarray(lengths))
    np.testing.assert_allclose(padded, arrays["features_mask"], atol=ATOL)


def test_probabilities_from_the_wave(backbone, arrays, lengths):
    masked = backbone.classify(arrays["wave"], lengths)
    np.testing.assert_allclose(masked, arrays["probs_mask"], atol=1e-5)


def test_padding_and_shapes_agree(backbone, arrays, lengths):
    wave = arrays["wave"]
    padding = backbone.token_padding(wave.shape[1], jnp.asarray(lengths))
    np.testing.assert_array_equal(padding, arrays["token_mask"])
    assert backbone.token_count(wave.shape[1]) == padding.shape[1] == 144
    assert backbone.frontend(wave, lengths).shape == (2, 298, 128)


def test_int16_and_float_waves_are_the_same(backbone, arrays):
    pcm = np.round(arrays["wave"] * 32767).astype(np.int16)
    as_float = pcm.astype(np.float32) / 32768
    np.testing.assert_array_equal(backbone.frontend(pcm), backbone.frontend(as_float))
    np.testing.assert_array_equal(backbone(pcm, layer=0), backbone(as_float, layer=0))


def test_apply_is_pure_and_takes_other_weights(backbone, arrays):
    wave = arrays["wave"][:1]
    apply = jax.jit(backbone.apply, static_argnums=3)
    np.testing.assert_array_equal(apply(backbone.params, wave, None, 1), backbone(wave, layer=1))
    zeros = jax.tree.map(jnp.zeros_like, backbone.params)
    zeros["pos_conv.direction"] = backbone.params["pos_conv.direction"]  # 0/0 otherwise
    assert not np.any(apply(zeros, wave, None, 1))


def test_same_shapes_compile_once(backbone, arrays):
    backbone(arrays["wave"], layer=0)
    before = backbone._tokens._cache_size()
    backbone(arrays["wave"][::-1].copy(), layer=0)
    assert backbone._tokens._cache_size() == before


def test_shortest_clip_gives_one_patch_of_tokens(backbone):
    assert backbone(np.zeros((1, 2800), np.float32)).shape == (1, 8, 64)


@pytest.mark.parametrize(
    ("wave", "lengths", "message"),
    [
        (np.zeros(4000, np.float32), None, r"expected a wave \[B, N\], got shape \(4000,\)"),
        (np.zeros((0, 4000), np.float32), None, r"got shape \(0, 4000\)"),
        (np.zeros((1, 399), np.float32), None, "at least 2800 samples.*got 399"),
        (np.zeros((1, 2799), np.float32), None, "at least 2800 samples.*got 2799"),
        (np.zeros((1, 4000), np.int32), None, "float samples .* or int16, got int32"),
        (np.zeros((2, 4000), np.float32), np.array([4000]), r"expected lengths \(2,\), got \(1,\)"),
    ],
)
def test_bad_waves_are_refused(backbone, wave, lengths, message):
    for call in (backbone, backbone.frontend, backbone.classify):
        with pytest.raises(InputError, match=message):
            call(wave, lengths)


def test_layers_outside_the_model_are_refused(backbone, arrays):
    for layer in (-1, 4):
        with pytest.raises(InputError, match=rf'expected layer 0\.\.3 or "mean", got {layer}'):
            backbone(arrays["wave"], layer=layer)


def test_patches_of_eat_by_time_and_band():
    config = EatConfig(embed_dim=32, depth=2, num_heads=2, max_length=8)
    eat = Backbone(config, initialize(config, seed=1))
    wave = 0.1 * np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32)
    tokens = np.asarray(eat(wave))
    grid = np.asarray(eat.patches(tokens))
    assert grid.shape == (1, 4, 8, 32)
    np.testing.assert_array_equal(grid[0, 3, 5], tokens[0, 1 + 8 * 3 + 5])


def test_pretrained_model_has_no_classes(backbone):
    config = dataclasses.replace(backbone.config, finetuned_model=False)
    body = {n: x for n, x in backbone.params.items() if not n.startswith("predictor")}
    pretrained = Backbone(config, body)
    with pytest.raises(InputError, match="no class head"):
        pretrained.classify(np.zeros((1, 4000), np.float32))


def test_misfitting_weights_are_refused_with_the_names(backbone):
    with pytest.raises(InputError, match=r"norm\.scale: expected \(64,\), got \(63,\)"):
        Backbone(backbone.config, backbone.params | {"norm.scale": np.zeros(63)})


@pytest.mark.parametrize(
    "structure",
    [tiny_beats(), EatConfig(embed_dim=16, depth=1, num_heads=2), EfficientATConfig(0.4, 0)],
    ids=["beats", "eat", "efficientat"],
)
def test_the_memory_of_a_clip_is_at_most_what_is_said(structure):
    """Of one that is so long that the scores of attention, if there are any, need most of it."""
    samples, shapes = 60 * 16_000, abstract(structure)[1]
    params = {name: np.zeros(value.shape, np.float32) for name, value in shapes.items()}
    wave = jax.ShapeDtypeStruct((1, samples), jnp.int16)
    lowered = jax.jit(Backbone(structure, params).apply).lower(params, wave)
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used <= 50 * samples + structure.clip_bytes(samples) <= 4 * used
