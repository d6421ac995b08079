"""The encoder with a pretrained backbone: what is pooled, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainings import architecture

from asdjax.models.backbone import Backbone, initialize
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.lora import Lora
from asdjax.models.pooling import Pool
from asdjax.models.pretrained import Pretrained
from asdjax.models.speech import SpeechConfig
from asdjax.types import InputError

BEATS = BeatsConfig(
    input_patch_size=16,
    encoder_layers=1,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=32,
    encoder_attention_heads=2,
    conv_pos=8,
    conv_pos_groups=2,
    embed_dim=16,
)


SPEECH = SpeechConfig(
    kind="wavlm",
    conv_dim=(8, 8),
    conv_kernel=(10, 3),
    conv_stride=(5, 4),
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=2,
)


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal((1, samples)).astype(np.float32) * 0.1


@pytest.fixture(scope="module")
def eat():
    config = EatConfig(embed_dim=32, depth=2, num_heads=2, max_length=8)
    return Backbone(config, initialize(config, seed=1))


@pytest.fixture(scope="module")
def beats():
    return Backbone(BEATS, initialize(BEATS))


def embed(backbone, wave, lengths=None, **how):
    encoder = Pretrained("", **{"pooling": "mean", "embedding": None} | how)
    made = architecture([encoder], [backbone]).embedder({})
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


def test_padding_of_beats_is_no_part_of_the_mean(beats):
    wave, lengths = np.pad(noise(3000), ((0, 0), (0, 5000))), np.array([3000])
    wave[:, :3000] -= wave[:, :3000].mean()  # which an embedder takes off
    tokens = np.float64(beats(wave, lengths))
    inside = ~np.asarray(beats.token_padding(8000, lengths))
    assert 0 < inside.sum() < inside.size
    expected = tokens[inside].mean(0)
    # 1e-5: float32 means of tokens of unit scale
    np.testing.assert_allclose(embed(beats, wave, [3000])[0], expected, rtol=0, atol=1e-5)


def test_the_front_end_masks_tokens_only_where_lengths_are_given(eat):
    network = Pretrained("", pooling="mean").network_of(eat)
    assert network.front_end(noise(8000)).padding is None
    padding = network.front_end(jnp.asarray(noise(8000)), jnp.array([4000])).padding
    np.testing.assert_array_equal(padding, eat.token_padding(8000, np.array([4000])))
    with pytest.raises(InputError, match=r"expected at least \d+ samples"):
        network.front_end(noise(300))


@pytest.mark.parametrize(
    ("how", "width"),
    [
        ({"pooling": "mean", "embedding": None}, 32),
        ({"pooling": "statistics", "embedding": None}, 64),
        ({"embedding": 8}, 8),
    ],
)
def test_the_width_is_that_of_the_dense_layer_or_of_what_is_pooled(eat, how, width):
    assert Pretrained("", **how).network_of(eat).width == width


@pytest.mark.parametrize(
    ("how", "trains"),
    [
        ({"pooling": "mean", "embedding": None}, False),
        ({"pooling": "cls", "embedding": None, "layer": 1}, False),
        ({"pooling": "statistics", "embedding": None}, True),
        ({"pooling": "mean", "embedding": 8}, True),
        ({"pooling": "mean", "embedding": None, "adapter": Lora()}, True),
    ],
)
def test_what_has_weights_of_its_own_needs_training(how, trains):
    assert Pretrained("", **how).needs_training == trains


def test_what_a_backbone_does_not_have_is_refused(beats, eat):
    with pytest.raises(InputError, match='pooling "cls": beats-iter3 has no class token'):
        Pretrained("beats-iter3", pooling="cls").network_of(beats)
    assert Pretrained("eat", pooling="cls").network_of(eat)
    for layer in (-1, 3):
        with pytest.raises(InputError, match=rf'expected layer 0\.\.2 or "mean", got {layer}'):
            Pretrained("", layer=layer).network_of(eat)
    for layer in ((), (1, 3), (1, 1)):
        with pytest.raises(InputError, match=r"expected layers of 0\.\.2, each once"):
            Pretrained("", pooling="mean", layer=layer).network_of(eat)
    speech = Backbone(SPEECH, initialize(SPEECH))
    for how in ({"pools": (Pool(bands=True),)}, {"scored": (Pool(bands=True),)}):
        with pytest.raises(InputError, match="pooling by bands: wavlm-base is given a wave"):
            Pretrained("wavlm-base", **how).network_of(speech)


def test_several_layers_and_poolings_lie_behind_each_other(eat):
    """The vector is [layers, poolings, bands, D], of tokens without the class token."""
    pools = Pool(bands=True), Pool(deviation=4.0, bands=True)
    found = embed(eat, noise(8000), layer=(0, 2), pools=pools)
    assert found.shape == (1, 2 * 2 * 8 * 32)
    assert Pretrained("", pools=pools, embedding=None, layer=(0, 2)).network_of(eat).width == 1024
    expected = []
    for layer in (0, 2):
        patches = eat.patches(eat(noise(8000), layer=layer))  # [1, T, F, D]
        for pool in pools:
            expected += [Pool(pool.deviation)(patches[:, :, band], None, 1) for band in range(8)]
    # 1e-5: float32 means of tokens of unit scale
    np.testing.assert_allclose(found, np.concatenate(expected, -1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        embed(eat, noise(8000), layer=(2,)), embed(eat, noise(8000), layer=2), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("pools", [(Pool(8.0, 3.0, bands=True),), (Pool(bands=True),)], ids=str)
def test_pooled_bands_of_a_clip_are_the_same_in_a_longer_row(eat, pools):
    wave = noise(6000)
    longer = np.pad(wave, ((0, 0), (0, 9000)), constant_values=0.5)  # what follows is ignored
    # 1e-5: float32, sums over another number of tokens
    np.testing.assert_allclose(
        embed(eat, longer, [6000], pools=pools), embed(eat, wave, pools=pools), rtol=0, atol=1e-5
    )


def test_a_trained_backbone_is_scored_by_other_poolings(eat):
    """What training keeps has pooling and dense layer, what embeds has neither."""
    pools = (Pool(deviation=4.0, bands=True),)
    encoder = Pretrained("", adapter=Lora(rank=2), embedding=8, scored=pools)
    system = architecture([encoder], [eat])
    statistics, trainable, _ = system.initialize(0)
    assert any("project" in name for name in trainable)
    made = system.embedder(statistics | trainable)  # B of the adapters is 0
    found = jax.jit(made.apply)(made.params, noise(8000), np.array([8000]))
    expected = embed(eat, noise(8000), pools=pools)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    alone = architecture([Pretrained("", adapter=Lora(rank=2), embedding=8)], [eat])
    assert alone.initialize(0)[1].keys() == trainable.keys()


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="all pools by bands or none"):
        Pretrained(pools=(Pool(), Pool(bands=True)))
    with pytest.raises(InputError, match="one layer for attentive statistics"):
        Pretrained(layer=(1, 2))
    with pytest.raises(InputError, match="embedding: expected >= 2 or none, got 1"):
        Pretrained(embedding=1)
    with pytest.raises(InputError, match=r"pooling: expected 'mean' or .*, got 'max'"):
        Pretrained(pooling="max")
    with pytest.raises(InputError, match=r"dtype: expected 'auto' or .*'bfloat16', got 'int8'"):
        Pretrained(dtype="int8")
