"""EfficientAT against its reference with real weights, and against the formulas in float64."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from machines import golden_wave

from asdjax.frontend.log_mel_32k import log_mel_32k
from asdjax.models import efficientat as efficient
from asdjax.models.backbone import Backbone, abstract, initialize
from asdjax.models.efficientat import EfficientATConfig, _by_taps, _by_xla
from asdjax.models.weights_file import merge
from asdjax.types import InputError
from weights_convert import efficientat, torch_file

WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "weights" / "mn04_as_mAP_432.pt"
TINY = EfficientATConfig(0.1, 5)
KINDS = 0, 1, 3, 4, 6, 12, 13  # of the 15 blocks: each another one not in its channels alone


@pytest.fixture
def few_blocks(monkeypatch):
    """A block of each kind, which is compiled in half the time."""
    monkeypatch.setattr(efficient, "SETTINGS", tuple(efficient.SETTINGS[i] for i in KINDS))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(config, seed=0):
    """Return parameters of about unit effect, statistics included."""
    rng, params = np.random.default_rng(seed), {}
    for name, value in initialize(config).items():
        kind = name.rpartition(".")[2]
        values = rng.standard_normal(np.shape(value))
        if kind in ("scale", "var"):
            values = np.exp(0.2 * values)
        elif kind == "kernel":
            values = values / np.sqrt(np.prod(values.shape[:-1]) if values.ndim != 3 else 9)
        else:
            values = 0.3 * values
        params[name] = values.astype(np.float32)
    return params


def stages(model, mel):
    """Return the output of each of the reference's feature layers, and of all."""
    x = jax.nn.hard_swish(model.stem(mel[..., None]))
    found = {0: x}
    for i, block in enumerate(model.blocks, 1):
        found[i] = x = block(x)
    found[16] = jax.nn.hard_swish(model.last(x))
    tokens = model(mel)
    return found, tokens, model.classify(tokens)


def test_every_stage_equals_the_reference_with_its_weights(golden):
    if not WEIGHTS.is_file():
        pytest.skip(f"no weights at {WEIGHTS} (they are fetched, not part of the project)")
    tensors = torch_file.read(WEIGHTS)
    config = efficientat.structure_of(tensors)
    assert config == EfficientATConfig(0.4, 527)
    params, graph = efficientat.convert(tensors, config), abstract(config)[0]
    mel = log_mel_32k(golden_wave()[None])
    run = jax.jit(lambda params, mel: stages(merge(graph, params), mel))
    found, tokens, probabilities = run(params, mel)
    with np.load(golden / "efficientat_mn04.npz") as arrays:
        compared = [i for i in found if f"features_{i}" in arrays]
        assert compared == [0, 1, 5, 10, 16]
        for i in compared:  # means over time `[C, F]`, up to 5; those of float32 differ by 4e-6
            ours = np.asarray(found[i][0]).mean(0).T
            np.testing.assert_allclose(ours, arrays[f"features_{i}"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(tokens[0].mean(0), arrays["embedding"], rtol=0, atol=1e-4)
        expected = 1 / (1 + np.exp(-arrays["logits"]))
        np.testing.assert_allclose(probabilities[0], expected, rtol=0, atol=1e-5)


def convolved(x, kernel, stride):
    """Return `[T', F', O]` in float64 from `[T, F, I]`, by the definition."""
    if kernel.ndim == 2:
        return x @ kernel
    taps = len(kernel)
    x = np.pad(x, ((taps // 2,) * 2, (taps // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (taps, taps), (0, 1))
    windows = windows[::stride, ::stride]  # [T', F', I, taps, taps], I = O or 1
    return (windows * kernel.transpose(2, 0, 1)).sum((-2, -1))


def plain(config, params, mel):
    """Return tokens `[L, D]` of one clip by the formulas of the papers, in float64."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}

    def hard_swish(x):
        return x * np.clip(x + 3, 0, 6) / 6

    def norm_of(x, name, stride=1):
        of = {part: params[f"{name}.{part}"] for part in ("kernel", "scale", "bias", "mean", "var")}
        y = convolved(x, of["kernel"], stride)
        return (y - of["mean"]) / np.sqrt(of["var"] + 1e-3) * of["scale"] + of["bias"]

    x = hard_swish(norm_of(np.asarray(mel, np.float64)[..., None], "stem", 2))
    for i, block in enumerate(config.blocks):
        activation = hard_swish if block.hard_swish else lambda x: np.maximum(x, 0)
        y = x
        if block.hidden != block.inputs:
            y = activation(norm_of(y, f"blocks.{i}.expand"))
        y = activation(norm_of(y, f"blocks.{i}.depthwise", block.stride))
        if block.squeeze:
            gate = y.mean((0, 1))
            for layer in ("fc1", "fc2"):
                kernel, bias = (params[f"blocks.{i}.{layer}.{part}"] for part in ("kernel", "bias"))
                gate = gate @ kernel + bias
                gate = np.maximum(gate, 0) if layer == "fc1" else 1 / (1 + np.exp(-gate))
            y = y * gate
        y = norm_of(y, f"blocks.{i}.project")
        x = x + y if block.stride == 1 and block.inputs == block.outputs else y
    return hard_swish(norm_of(x, "last")).reshape(-1, config.width)


def test_tokens_equal_the_formulas():
    assert_agrees(63)


@pytest.mark.parametrize("frames", [1, 100])
@pytest.mark.usefixtures("few_blocks")
def test_any_number_of_frames(frames):
    assert_agrees(frames)


def assert_agrees(frames):
    params, graph = drawn(TINY), abstract(TINY)[0]
    mel = noise(2, frames, 128)
    found = jax.jit(lambda params, mel: merge(graph, params)(mel))(params, mel)
    assert found.shape == (2, -(-frames // 32) * 4, TINY.width)
    for ours, one in zip(found, mel, strict=True):
        expected = plain(TINY, params, one)
        # fifty float32 sums in a row
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


@pytest.mark.usefixtures("few_blocks")
def test_a_clip_gives_in_any_row_the_tokens_that_it_gives_alone():
    backbone = Backbone(TINY, drawn(TINY))
    wave, lengths = 0.1 * noise(2, 12_000), np.array([12_000, 7_777])
    found, padding = backbone(wave, lengths), np.asarray(backbone.token_padding(12_000, lengths))
    alone = np.asarray(backbone(wave[1:, :7_777])[0])
    assert list((~padding).sum(1)) == [backbone.token_count(12_000), len(alone)]
    limit = 1e-4 * np.abs(alone).max()  # programs of other shapes sum otherwise
    np.testing.assert_allclose(found[1, ~padding[1]], alone, rtol=0, atol=limit)
    chances = backbone.classify(wave, lengths)
    np.testing.assert_allclose(chances[1:], backbone.classify(wave[1:, :7_777]), atol=1e-4)


@pytest.mark.usefixtures("few_blocks")
def test_patches_are_by_time_and_band():
    backbone, wave = Backbone(TINY, drawn(TINY)), 0.1 * noise(1, 16_000)
    tokens = backbone(wave)
    patches = backbone.patches(tokens)
    assert patches.shape == (1, 4, 4, TINY.width)
    np.testing.assert_array_equal(patches[0, 1, 2], tokens[0, 1 * 4 + 2])


@pytest.mark.parametrize(
    ("width", "millions"), [(0.4, 0.983), (0.5, 1.43), (1.0, 4.88), (2.0, 17.91), (4.0, 68.43)]
)
def test_sizes_are_those_published(width, millions):
    fixed = ".mean", ".var"
    shapes = abstract(EfficientATConfig(width))[1].items()
    count = sum(np.prod(x.shape) for name, x in shapes if not name.endswith(fixed))
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.usefixtures("few_blocks")
def test_bfloat16_is_near():
    params, mel = drawn(TINY), noise(2, 64, 128)

    def tokens(dtype):
        graph = abstract(TINY, dtype)[0]
        return np.asarray(jax.jit(lambda params: merge(graph, params)(mel))(params))

    exact, half = tokens("float32"), tokens("bfloat16")
    # 8 bits a value, through fifty layers
    assert np.abs(half - exact).mean() < 0.05 * np.abs(exact).mean()
    assert np.abs(half - exact).max() > 0


@pytest.mark.parametrize(("inputs", "taps", "stride"), [(6, 3, 1), (6, 5, 2), (1, 3, 2)])
def test_the_form_for_cpus_equals_that_for_accelerators(inputs, taps, stride):
    given = noise(2, 9, 12, inputs), noise(taps, taps, 6)
    slope = noise(2, -(-9 // stride), -(-12 // stride), 6, seed=1)
    ours, theirs = (
        (form(stride, *given), *jax.vjp(partial(form, stride), *given)[1](slope))
        for form in (_by_taps, _by_xla)
    )
    for mine, other in zip(ours, theirs, strict=True):
        # sums of up to 200 products, in another order
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 3, "mean"])
def test_other_layers_are_refused(layer):
    backbone = Backbone(TINY, drawn(TINY))
    with pytest.raises(InputError, match="gives its last layer alone"):
        backbone(noise(1, 16_000), layer=layer)


@pytest.mark.parametrize("bad", [{"width_mult": 0.0}, {"width_mult": 1e9}, {"num_classes": -1}])
def test_structures_that_cannot_be_are_refused(bad):
    with pytest.raises(InputError):
        EfficientATConfig(**bad)
