"""HuBERT, wav2vec 2.0, WavLM and UniSpeech-SAT against the PyTorch reference, stage by stage.

Tolerance of the parity tests: values have unit scale, the reference itself is up to 6.5e-6 away
from a float64 computation, and setting any one parameter to its neutral value moves the output by
4e-3 or more.
"""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from asdjax.models.backbone import Backbone, abstract, initialize
from asdjax.models.checkpoints import load_backbone
from asdjax.models.layers import Key, keys_for
from asdjax.models.speech import RATES, FrameConv, SpeechConfig
from asdjax.models.weights_file import count, load, merge, split
from asdjax.types import InputError
from weights_convert import CONVERTERS, speech

ATOL = 5e-5
MODELS = [
    f"{kind}_tiny{size}"
    for kind in ("hubert", "wav2vec2", "wavlm", "unispeech_sat")
    for size in ("", "_large")
]
SMALL = SpeechConfig(
    kind="wavlm",
    conv_dim=(8, 8),
    conv_kernel=(10, 3),
    conv_stride=(5, 2),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=4,
)


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "speech"


@pytest.fixture(scope="module")
def given(folder):
    with np.load(folder / "input.npz") as file:
        return dict(file)


def kind_of(name):
    return name.partition("_tiny")[0].replace("_", "-")


def read(folder, name):
    """Return the structure, our parameters and the golden arrays of a checkpoint."""
    with np.load(folder / name / "golden.npz") as file:
        arrays = dict(file)
    jsons = (json.loads((folder / name / f"{p}config.json").read_text()) for p in ("", PRE))
    structure = speech._structure(kind_of(name), *jsons)
    state = speech._state(speech._read(folder / name / "model.safetensors"), False)
    return structure, speech.convert(state, structure), arrays


PRE = "preprocessor_"


def stages(model, wave, padding):
    """Return every intermediate that the goldens name."""
    frames = model.frames(wave)
    projected = model.project(frames)
    found = {"conv_features": frames, "projected": projected, "pos_conv": model.pos_conv(projected)}
    found["hidden_0"] = x = model.encoder_input(projected, padding)
    bias = model.position_bias(x.shape[1])
    for i, block in enumerate(model.layers, 1):
        found[f"hidden_{i}"] = x = block(x, bias, padding)
    return found | {"last_hidden_state": model(wave, padding)}


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_equals_the_reference(folder, given, name):
    structure, params, arrays = read(folder, name)
    graph = abstract(structure)[0]
    run = jax.jit(lambda params, wave, padding: stages(merge(graph, params), wave, padding))
    wave = given["input_values"][..., None]
    for case, padding in (("nomask_", None), ("mask_", ~arrays["mask_frame_mask"])):
        found = run(params, wave, padding)
        compared = {name: case + name for name in found if case + name in arrays}
        assert len(compared) == (8 if padding is None else 5)
        for ours, theirs in compared.items():
            small = ours == "conv_features" and structure.feat_extract_norm == "group"  # 0.02
            atol = 2e-6 if small else ATOL
            inside = slice(None) if padding is None else arrays["mask_frame_mask"]
            np.testing.assert_allclose(
                found[ours][inside], arrays[theirs][inside], rtol=0, atol=atol, err_msg=theirs
            )
    np.testing.assert_array_equal(
        structure.token_padding(wave.shape[1], given["valid_samples"]), ~arrays["mask_frame_mask"]
    )


@pytest.mark.parametrize("name", ["hubert_tiny", "wavlm_tiny_large"])
def test_gradient_of_every_parameter_equals_the_reference(folder, given, name):
    structure, params, arrays = read(folder, name)
    graph = abstract(structure)[0]
    theirs = {k.removeprefix("grad/"): x for k, x in arrays.items() if k.startswith("grad/")}
    theirs = speech.convert(speech._state(theirs, False), structure)

    def loss(params):
        tokens = merge(graph, params)(given["input_values"][..., None])
        return (tokens * arrays["grad_projection"]).sum()

    ours = jax.jit(jax.grad(loss))(params)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # a key bias adds a constant to all scores of a query: both gradients are rounding noise
        atol = 1e-4 if name.endswith("attn.k.bias") else 1e-3 * np.abs(gradient).max()
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=atol, err_msg=name)


def test_the_wave_is_normalized_over_its_own_samples(given):
    found = SpeechConfig().frontend(given["wave"], given["valid_samples"])
    # float32 sums over 32,000 samples of unit scale
    np.testing.assert_allclose(found[..., 0], given["input_values"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found[..., 1], given["attention_mask"])
    pcm = np.round(given["wave"][:1] * 32_767).astype(np.int16)
    alone = SpeechConfig().frontend(pcm)
    assert alone.shape == (1, 32_000, 1)
    # 16 bits of a wave of deviation 0.1 or more
    np.testing.assert_allclose(alone[0, :, 0], given["input_values"][0], rtol=0, atol=1e-3)
    plain = dataclasses.replace(SMALL, do_normalize=False)
    np.testing.assert_array_equal(plain.frontend(given["wave"])[..., 0], given["wave"])


@pytest.mark.parametrize("name", ["hubert_tiny", "wav2vec2_tiny_large", "wavlm_tiny"])
def test_a_clip_gives_in_any_row_the_tokens_that_it_gives_alone(folder, given, name):
    structure, params, _ = read(folder, name)
    backbone, samples = Backbone(structure, params), int(given["valid_samples"][1])
    wave = np.where(given["attention_mask"] > 0, given["wave"], 9.0)  # anything behind the end
    tokens = backbone(wave, given["valid_samples"])
    alone = backbone(given["wave"][1:, :samples])
    assert alone.shape[1] == structure.token_count(samples)
    np.testing.assert_allclose(tokens[1:, : alone.shape[1]], alone, rtol=0, atol=ATOL)
    padding = np.asarray(backbone.token_padding(wave.shape[1], given["valid_samples"]))
    assert (~padding).sum(1).tolist() == [99, alone.shape[1]]


def test_hum_is_normalized_as_in_float64():
    """Windows of a tone are nearly alike: what of them is told apart must not be rounding."""
    seconds = np.arange(16_000) / 16_000
    rng = np.random.default_rng(0)
    hum = np.sin(2 * np.pi * 50 * seconds) + 1e-3 * rng.standard_normal(16_000)
    conv = FrameConv(1, 64, 10, 5, bias=False, norm="group", dtype=jnp.float32, rngs=nnx.Rngs(0))
    high = np.diff(rng.standard_normal((11, 1, 64)), axis=0)
    conv.kernel[...] = jnp.asarray(high, jnp.float32)
    windows = np.lib.stride_tricks.sliding_window_view(hum.astype(np.float32).astype(float), 10)[
        ::5
    ]
    y = windows @ np.asarray(conv.kernel[...], float)[:, 0]
    want = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
    want = want * special.ndtr(want)  # GELU
    # float32 products of a wave of 1; a variance from rounded windows was off by 0.16
    found = conv(jnp.asarray(hum[None, :, None], jnp.float32))[0]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-3)


def test_clips_shorter_than_a_window_are_refused_in_any_row():
    backbone = Backbone(SMALL_TAPS, initialize(SMALL_TAPS))
    wave = np.zeros((2, 2000), np.float32)
    with pytest.raises(InputError, match=r"expected at least 400 samples .*, got 399"):
        backbone(wave, lengths=np.array([2000, 399]))
    assert backbone(wave, lengths=[2000, 400]).shape[0] == 2


def test_layer_argument_chooses_among_the_hidden_states(folder, given):
    structure, params, arrays = read(folder, "wavlm_tiny_large")
    model = merge(abstract(structure)[0], params)
    wave = given["input_values"][..., None]
    for layer in (0, 2, 3, None):
        name = "last_hidden_state" if layer is None else f"hidden_{layer}"
        np.testing.assert_allclose(
            model(wave, None, layer), arrays[f"nomask_{name}"], rtol=0, atol=ATOL, err_msg=name
        )
    outputs = [arrays[f"nomask_hidden_{layer}"] for layer in (1, 2, 3)]
    np.testing.assert_allclose(model(wave, None, "mean"), np.mean(outputs, 0), rtol=0, atol=ATOL)


def test_counts_of_frames_are_those_of_the_published_models():
    config = SpeechConfig()
    assert [config.token_count(n) for n in (16_000, 32_000, 160_000)] == [49, 99, 499]
    assert config.shortest_samples == 400
    assert (config.token_count(400), config.token_count(399)) == (1, 0)
    with pytest.raises(InputError, match="expected at least 400 samples"):
        Backbone(SMALL_TAPS, initialize(SMALL_TAPS))(np.zeros((1, 399), np.float32))


SMALL_TAPS = dataclasses.replace(
    SMALL,
    conv_dim=(4,) * 7,
    conv_kernel=SpeechConfig.conv_kernel,
    conv_stride=SpeechConfig.conv_stride,
)


def test_base_sizes_are_those_of_the_published_models():
    # of a model without `masked_spec_embed` (768), which only pre-training uses
    assert count(abstract(SpeechConfig())[1]) == 94_371_712 - 768
    assert count(abstract(SpeechConfig(kind="wavlm"))[1]) == 94_381_936 - 768


def test_training_drops_values_and_layers_and_wavlm_keeps_its_first(given):
    rates = dict.fromkeys(RATES, 0.0) | {"layerdrop": 0.999}
    for kind, kept in (("hubert", 0), ("wavlm", 1)):
        config = dataclasses.replace(SMALL, kind=kind, **rates)
        params = initialize(config)
        graph, keys, _ = split(config.build(train=True, rngs=nnx.Rngs(0)), Key)
        assert len(keys) == config.num_hidden_layers - kept
        wave = config.frontend(given["wave"][:, :2000])
        drawn = keys_for(list(keys), jax.random.key(1))
        found = merge(graph, drawn, params)(wave)
        plain = merge(abstract(config)[0], params)(wave, None, kept)
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-6)


def test_bfloat16_stays_close(folder, given):
    structure, params, arrays = read(folder, "hubert_tiny")
    found = Backbone(structure, params, dtype="bfloat16")(given["wave"])
    assert found.dtype == jnp.float32
    error = np.abs(np.asarray(found) - arrays["nomask_last_hidden_state"])
    assert 1e-4 < error.mean() < 0.03  # 8 bits, of values around 1, through 3 layers


@pytest.mark.parametrize("name", MODELS)
def test_the_command_writes_what_loads_and_gives_the_reference(folder, given, tmp_path, name):
    header = CONVERTERS[kind_of(name)](folder / name, tmp_path / "x.safetensors")
    assert header.kind == kind_of(name)
    tokens = load_backbone(tmp_path / "x.safetensors")(given["wave"][:1])
    with np.load(folder / name / "golden.npz") as file:
        want = file["nomask_last_hidden_state"][:1]
    np.testing.assert_allclose(tokens, want, rtol=0, atol=2e-4)


def test_the_older_form_of_a_file_gives_the_same_weights(folder, tmp_path):
    convert = partial(CONVERTERS["wav2vec2"], folder / "wav2vec2_tiny")
    convert(tmp_path / "new.safetensors")
    old = folder / "wav2vec2_tiny" / "pytorch_model.bin"
    CONVERTERS["wav2vec2"](old, tmp_path / "old.safetensors")
    one, two = (load(tmp_path / f"{name}.safetensors").arrays for name in ("new", "old"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
