"""BEATs against the PyTorch reference, stage by stage; see tests/golden/README.md.

Tolerance of the parity tests: values have unit scale, the reference itself is up to 3.4e-5 away
from a float64 computation, and setting any one parameter to its neutral value moves the output by
4e-3 or more.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.frontend.fbank import beats_frontend
from asdjax.models import weights_file
from asdjax.models.backbone import abstract, initialize
from asdjax.models.beats import Beats, BeatsConfig, token_padding
from asdjax.models.layers import cut_patches
from asdjax.models.transformer import ACTIVATIONS, Layer, PositionConv, relative_bucket
from asdjax.models.weights_file import merge
from asdjax.types import InputError
from weights_convert import torch_file
from weights_convert.beats import convert

ATOL = 1e-4
SMALL = BeatsConfig(
    input_patch_size=16,
    embed_dim=24,
    encoder_layers=2,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=48,
    encoder_attention_heads=4,
    conv_pos=6,
    conv_pos_groups=4,
)


class Loaded(NamedTuple):
    config: BeatsConfig
    params: dict[str, np.ndarray]
    model: Beats
    features: Callable  # (mel, padding, layers) -> tokens of each layer, jitted
    run: Callable  # (mel, padding=None) -> every stage, jitted


def load(path):
    checkpoint = torch_file.read(path)
    config = BeatsConfig.from_checkpoint(checkpoint["cfg"])
    params = convert(checkpoint["model"], config)
    graph, _ = abstract(config)
    model = merge(graph, params)

    @partial(jax.jit, static_argnames="layers")
    def features(params, mel, padding=None, layers=(None,)):
        model = merge(graph, params)
        return [model(mel, padding, layer) for layer in layers]

    run = jax.jit(lambda params, mel, padding=None: stages(merge(graph, params), mel, padding))
    return Loaded(config, params, model, partial(features, params), partial(run, params))


def stages(model, mel, padding):
    """Return every intermediate that the goldens name."""
    patches = model.patch_embed(cut_patches(mel, model.config.input_patch_size))
    tokens = model.embed_patches(mel)
    visible = tokens if padding is None else jnp.where(padding[..., None], 0.0, tokens)
    x = model.encoder_input(tokens, padding)
    bias = model.position_bias(x.shape[1])
    found = {
        "patch_embed": patches,
        "patch_norm": model.patch_norm(patches),
        "proj": tokens,
        "pos_conv": model.pos_conv(visible),
        "encoder_in": x,
        "attn_0": model.layers[0].attn(x, padding, bias),
        "out": model(mel, padding),
    }
    for index, layer in enumerate(model.layers):
        found[f"layer_{index}"] = x = layer(x, bias, padding)
    return found


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "beats_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tiny(golden):
    return load(golden / "beats_tiny.pt")


@pytest.mark.parametrize("case", ["nomask", "mask", "odd"])
def test_every_stage_equals_the_reference(tiny, arrays, case):
    mel = arrays["odd_fbank" if case == "odd" else "nomask_fbank"]
    found = tiny.run(mel, arrays["mask_token_mask"] if case == "mask" else None)
    compared = {name: f"{case}_{name}" for name in found if f"{case}_{name}" in arrays}
    assert len(compared) == {"nomask": 10, "mask": 6, "odd": 9}[case]
    for name, stored in compared.items():
        np.testing.assert_allclose(found[name], arrays[stored], atol=ATOL, err_msg=name)


@pytest.mark.parametrize("name", ["prenorm", "ungated_samewidth", "norelpos"])
def test_structural_variants_equal_the_reference(golden, name):
    variant = load(golden / f"beats_variant_{name}.pt")
    with np.load(golden / "beats_variants.npz") as file:
        wave, mask, out, out_mask = (
            file[key] for key in ("wave", "wave_mask", f"{name}_out", f"{name}_out_mask")
        )
    mel = beats_frontend(wave)
    padding = token_padding((~mask).sum(1), wave.shape[1], mel.shape[1], out.shape[1])
    # 2e-4: these start from the wave, whose filter bank is only good to 3e-5
    np.testing.assert_allclose(variant.features(mel, padding)[0], out_mask, atol=2e-4)
    nothing_padded = jnp.zeros_like(padding)
    np.testing.assert_allclose(variant.features(mel, nothing_padded)[0], out, atol=2e-4)


def test_gradient_of_every_parameter_equals_the_reference(tiny, arrays):
    graph, _ = abstract(tiny.config)
    names = [key.removeprefix("grad/") for key in arrays if key.startswith("grad/")]
    theirs = convert({name: arrays[f"grad/{name}"] for name in names}, tiny.config)

    def loss(params):
        tokens = merge(graph, params)(arrays["nomask_fbank"])
        return (tokens * arrays["grad_projection"]).sum()

    ours = jax.jit(jax.grad(loss))(tiny.params)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # a key bias adds a constant to all scores of a query: both gradients are rounding noise
        largest = np.abs(gradient).max()
        atol = 1e-4 if name.endswith("attn.k.bias") else 1e-3 * largest
        np.testing.assert_allclose(ours[name], gradient, atol=atol, err_msg=name)


def test_layer_argument_chooses_among_the_stages(tiny, arrays):
    stage = {0: "encoder_in", 1: "layer_0", 3: "layer_2", None: "out"}
    found = tiny.features(arrays["odd_fbank"], None, tuple(stage))
    for layer, tokens in zip(stage, found, strict=True):
        np.testing.assert_allclose(tokens, arrays[f"odd_{stage[layer]}"], atol=ATOL)


def test_prenorm_model_normalizes_only_its_final_features(golden):
    prenorm = load(golden / "beats_variant_prenorm.pt")
    mel = np.random.default_rng(0).normal(size=(1, 40, 128)).astype(np.float32)
    final, raw = prenorm.features(mel, None, (None, 2))
    np.testing.assert_allclose(final, prenorm.model.norm(raw), atol=1e-5)
    assert np.abs(final - raw).max() > 0.1


def test_batch_of_two_equals_two_batches_of_one(tiny, arrays):
    mel, padding = arrays["nomask_fbank"], arrays["mask_token_mask"]
    together = tiny.run(mel, padding)["out"]
    for row in (slice(0, 1), slice(1, 2)):
        (alone,) = tiny.features(mel[row], padding[row])
        np.testing.assert_allclose(together[row], alone, atol=1e-5)  # order of float32 sums


def test_what_lies_in_padding_never_reaches_the_valid_tokens(tiny, arrays):
    padding = arrays["mask_token_mask"]
    mel = arrays["nomask_fbank"].copy()
    first = padding[1].argmax() // 8 + 1  # the first time patch that is padding in all bands
    mel[1, 16 * first :] = 7.0
    changed = tiny.run(mel, padding)["out"][~padding]
    np.testing.assert_allclose(changed, arrays["mask_out"][~padding], atol=ATOL)


def test_bfloat16_stays_close_and_keeps_float32_at_the_borders(tiny, arrays):
    graph, expected = abstract(tiny.config, "bfloat16")
    assert {value.dtype for value in expected.values()} == {jnp.dtype("float32")}
    mel = arrays["nomask_fbank"]
    half = jax.jit(lambda params: merge(graph, params)(mel))(tiny.params)
    error = np.asarray(half - tiny.run(mel)["out"])
    assert half.dtype == jnp.float32
    # bfloat16 rounds to 2^-9 = 0.2 %; some ten roundings in a row add up to about 1 % of unit scale
    assert 1e-3 < np.sqrt(np.square(error).mean()) < 0.03


def test_finetuned_model_gives_the_reference_probabilities(golden):
    model = load(golden / "beats_tiny_finetuned.pt").model
    with np.load(golden / "beats_tiny_finetuned.npz") as file:
        features, masked, padding = (
            file[key] for key in ("features_nomask", "features_mask", "token_mask")
        )
        np.testing.assert_allclose(model.classify(features), file["probs_nomask"], atol=1e-5)
        np.testing.assert_allclose(model.classify(masked, padding), file["probs_mask"], atol=1e-5)


def test_relative_buckets_and_bias_are_exact(tiny, arrays):
    config = tiny.config
    ours = relative_bucket(arrays["bucket_offsets"], config.num_buckets, config.max_distance)
    np.testing.assert_array_equal(ours, arrays["bucket_of_offset"])
    np.testing.assert_array_equal(tiny.model.position_bias(144), arrays["rel_pos_bias"])


def test_position_kernel_equals_the_reference(tiny, arrays):
    kernel = tiny.model.pos_conv.kernel()
    np.testing.assert_allclose(kernel.transpose(2, 1, 0), arrays["pos_conv_weight"], rtol=1e-5)


@pytest.mark.parametrize("case", range(8))
def test_token_padding_equals_the_reference(arrays, case):
    samples, valid = map(int, arrays["maskcase_samples_valid"][case])
    theirs = arrays[f"maskcase{case}_token"]
    frames = len(arrays[f"maskcase{case}_frame"])
    ours = token_padding(jnp.array([valid]), samples, frames, len(theirs))
    np.testing.assert_array_equal(ours[0], theirs)


def test_token_padding_equals_its_description_for_any_length():
    def reduce(mask, parts):  # drop the remainder, cut into chunks, all padding
        return mask[: len(mask) - len(mask) % parts].reshape(parts, -1).all(1)

    rng = np.random.default_rng(0)
    for samples in rng.integers(2800, 40000, 10):
        frames = 1 + (samples - 400) // 160
        tokens = frames // 16 * 8
        lengths = rng.integers(1, samples + 1, 20)
        masks = np.arange(samples) >= lengths[:, None]
        theirs = [reduce(reduce(mask, frames), tokens) for mask in masks]
        ours = token_padding(jnp.asarray(lengths), int(samples), int(frames), int(tokens))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "formula"),
    {
        "gelu": lambda x: x / 2 * (1 + math.erf(x / 2**0.5)),
        "gelu_fast": lambda x: (
            x / 2 * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
        ),
        "relu": lambda x: max(x, 0.0),
        "tanh": math.tanh,
        "linear": lambda x: x,
    }.items(),
)
def test_activation_formulas(name, formula):
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](x), [formula(v) for v in x.tolist()], atol=1e-6)


def test_gated_linear_unit_doubles_the_first_layer():
    config = dataclasses.replace(SMALL, activation_fn="glu")
    layer = Layer(config.without_dropout().transformer, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 3, 32)).astype(np.float32)
    value, gate = np.split(np.asarray(layer.fc1(x), float), 2, axis=-1)
    hidden = value * gate / (1 + np.exp(-gate))
    assert hidden.shape[-1] == SMALL.encoder_ffn_embed_dim
    expected = hidden @ np.asarray(layer.fc2.kernel[...], float)
    np.testing.assert_allclose(layer.feed_forward(x), expected, atol=1e-6)


def test_patch_bias_is_a_flag():
    with_bias = abstract(dataclasses.replace(SMALL, conv_bias=True))[1]
    assert with_bias.keys() - abstract(SMALL)[1].keys() == {"patch_embed.bias"}


def test_base_size_and_names():
    expected = abstract(BeatsConfig.base())[1]
    assert weights_file.count(expected) == 90_311_792  # of the published files
    finetuned = abstract(BeatsConfig.base(finetuned_model=True))[1]
    assert weights_file.count(finetuned) == 90_717_055
    # part of the file format, and what LoRA will look for
    for part in ("attn.q", "attn.k", "attn.v", "attn.out", "attn.gate", "fc1", "fc2"):
        assert {f"layers.11.{part}.kernel", f"layers.11.{part}.bias"} <= expected.keys()


def test_initial_values_follow_deepnorm():
    config = dataclasses.replace(SMALL, encoder_layers=1, encoder_embed_dim=256, deep_norm=True)
    params = initialize(dataclasses.replace(config, relative_position_embedding=True), seed=1)
    xavier, deep = (2 / (256 + 256)) ** 0.5, 8**-0.25
    deviations = {
        "layers.0.attn.q.kernel": xavier,
        "layers.0.attn.v.kernel": xavier * deep,
        "layers.0.fc1.kernel": (2 / (256 + 48)) ** 0.5 * deep,
        "proj.kernel": 0.02,
        "relative_bias": 0.02,
        "pos_conv.direction": (4 / (6 * 256)) ** 0.5,
    }
    for name, deviation in deviations.items():
        standard_error = deviation / (2 * params[name].size) ** 0.5
        assert abs(float(params[name].std()) - deviation) < 5 * standard_error, name
    for name, value in params.items():
        if name.endswith((".bias", ".scale", ".gate_scale")):
            assert set(np.unique(value)) == {0.0 if name.endswith("bias") else 1.0}, name


def test_weight_norm_starts_as_the_identity():
    conv = PositionConv(SMALL.transformer, dtype=jnp.float32, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(conv.kernel(), conv.direction[...], rtol=1e-5)


def test_configuration_of_a_checkpoint_ignores_unknown_fields_and_survives_json():
    config = BeatsConfig.from_checkpoint({"input_patch_size": 16, "deep_norm": 1, "new": object()})
    assert config == BeatsConfig(input_patch_size=16, deep_norm=True)
    assert BeatsConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_configuration_field_of_another_type_is_refused():
    for cfg in ({"conv_pos": None}, {"deep_norm": "False"}, {"activation_fn": 1}):
        with pytest.raises(InputError, match=f"cfg field {next(iter(cfg))}: expected"):
            BeatsConfig.from_checkpoint({"input_patch_size": 16} | cfg)


def test_impossible_configurations_are_refused_with_every_problem():
    with pytest.raises(InputError) as error:
        BeatsConfig(
            encoder_attention_heads=5,
            activation_fn="swish",
            layer_norm_first=True,
            deep_norm=True,
        )
    for problem in ("input_patch_size", "heads", "swish", "layer_norm_first and deep_norm"):
        assert problem in str(error.value)
