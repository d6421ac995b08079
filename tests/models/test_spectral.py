"""Spectral networks: sizes from tables, values and gradients from PyTorch, one device and two."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from asdjax import devices
from asdjax.frontend import spectral
from asdjax.models import weights_file
from asdjax.models.convolutions import max_pool
from asdjax.models.spectral import Bands, ConvNet1d, ResNet
from asdjax.models.weights_file import merge, misfits
from asdjax.types import InputError

TEN_SECONDS, SHORT = 160_000, 3_072
GOLDEN = {  # as in make_spectral.py
    "conv": ConvNet1d("wave", embedding=8, channels=3, cbam=True, normalize=True),
    "res": ResNet(embedding=8, channels=2, blocks=1, cbam=True),
}
SMALL = {
    "conv": ConvNet1d(embedding=8, channels=3),
    "res": ResNet(embedding=8, channels=2, blocks=1),
}
both = pytest.mark.parametrize("case", ["conv", "res"])


# Half the time to compile, the same mathematics.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def abstract(config, samples, train=True):
    """Return (graph, parameters, statistics), the latter two as shapes."""
    made = nnx.eval_shape(lambda: config.build(samples, train=train, rngs=nnx.Rngs(0)))
    return weights_file.split(made, nnx.Param, nnx.BatchStat)[:3]


def build(config, samples, train=True):
    """Return (graph, parameters, statistics)."""

    @jit
    def start():
        module = config.build(samples, train=train, rngs=nnx.Rngs(0))
        return weights_file.split(module, nnx.Param, nnx.BatchStat)[1:3]

    return abstract(config, samples, train)[0], *start()


def forward(config, graph, params, stats, wave):
    """Return the embedding and the statistics after it."""
    module = merge(graph, params, stats)
    return module(config.frontend(wave)), weights_file.split(module, nnx.BatchStat)[1]


run = jit(forward, static_argnames=("config", "graph"))


def waves(*shape, seed=0):
    return np.round(3_000 * np.random.default_rng(seed).normal(size=shape)).astype(np.int16)


@pytest.mark.parametrize(
    ("config", "seconds", "count", "statistics"),
    [
        # 80,000 bins -> 1,250 -> 40 -> 10 points of 128 channels. Kernels 256 x 128,
        # 64 x 128 x 128, 16 x 128 x 128; dense 1280 x 128 and four of 128 x 128; four norms.
        (ConvNet1d(), 10, 32_768 + 1_048_576 + 262_144 + 163_840 + 4 * 16_384 + 8 * 128, 8 * 128),
        # Three channel gates (128 x 8 twice) and place gates (7 x 2).
        (ConvNet1d(cbam=True), 10, 1_573_888 + 3 * (2 * 1_024 + 14), 8 * 128),
        # 192,000 samples -> 3,000 -> 94 -> 24 points.
        (ConvNet1d("wave"), 12, 1_573_888 + (24 - 10) * 128 * 128, 8 * 128),
        # Norms 2 x 500 and 2 x 16; stem 49 x 16; stages below; norm 2 x 2048, dense 2048 x 128.
        (ResNet(), 10, 1_000 + 32 + 784 + 698_080 + 960 + 4_096 + 262_144, 6_824),
        # Channel gates 2 C (C / 16), place gates 98: twice for 16, 32, 64 and 128 channels.
        (ResNet(cbam=True), 10, 967_096 + 2 * (32 + 128 + 512 + 2_048) + 8 * 98, 6_824),
    ],
)
def test_weights_are_as_many_as_the_tables_say(config, seconds, count, statistics):
    _, params, stats = abstract(config, seconds * 16_000)
    assert weights_file.count(params) == count
    assert weights_file.count(stats) == statistics


def test_the_weights_of_the_stages_are_those_of_eight_blocks():
    _, params, _ = abstract(ResNet(), TEN_SECONDS)
    kernels, norms = 0, 0
    for inputs, outputs in [(16, 16), (16, 32), (32, 64), (64, 128)]:
        kernels += 9 * inputs * outputs + 3 * 9 * outputs * outputs
        kernels += inputs * outputs if inputs != outputs else 0  # 1 x 1
        norms += 2 * (inputs + 3 * outputs)  # scale and bias
    found = {n: v for n, v in params.items() if n.startswith("blocks")}
    assert weights_file.count(found) == kernels + norms
    assert weights_file.count({n: v for n, v in found.items() if "norm" in n}) == norms


def test_layers_of_ten_seconds_have_the_shapes_of_the_tables():
    def layers(x):
        net = ResNet().build(TEN_SECONDS, train=True, rngs=nnx.Rngs(0))
        yield (x := net.stem(x))
        yield (x := max_pool(x, (3, 3), 2, same=False))
        for block in net.blocks:
            yield (x := block(x))
        yield max_pool(x, (10, 1), (10, 1), same=True)

    row = jax.ShapeDtypeStruct((1, 311, 500, 1), jnp.float32)
    found = [x.shape[1:] for x in jax.eval_shape(lambda x: list(layers(x)), row)]
    stages = [(77, 124, 16), (39, 62, 32), (20, 31, 64), (10, 16, 128)]
    twice = [stage for stage in stages for _ in range(2)]
    assert found == [(156, 250, 16), (77, 124, 16), *twice, (1, 16, 128)]


@pytest.fixture(scope="module")
def reference(golden):
    with np.load(golden / "spectral.npz") as file:
        return dict(file)


def of(reference, prefix):
    """Return the arrays below `prefix` by the rest of their names."""
    return {n.removeprefix(prefix): v for n, v in reference.items() if n.startswith(prefix)}


def golden_start(reference, case, train):
    """Return configuration, graph, golden weights, new statistics and the waves."""
    config, wave = GOLDEN[case], reference["wave"].astype(np.int16) * 256
    graph, params, stats = abstract(config, wave.shape[1], train)
    start = {n: v.astype(np.float32) for n, v in of(reference, f"{case}/start/").items()}
    assert misfits(start, params) == ""
    new = {n: jnp.full(v.shape, float(n.endswith("var"))) for n, v in stats.items()}
    return config, graph, start, new, wave


@both
def test_training_equals_pytorch(reference, case):
    config, graph, start, stats, wave = golden_start(reference, case, train=True)

    @jit
    @partial(jax.grad, has_aux=True)
    def along(params):
        embedding, after = forward(config, graph, params, stats, wave)
        return (embedding * reference["direction"]).sum(), (embedding, after)

    gradient, (embedding, after) = along(start)
    # The same in PyTorch's own float32 is off by what `make_spectral.py` prints. Outputs 4e-6 of
    # the largest, as norms of 5 clips amplify rounding ...
    want = reference[f"{case}/train"]
    np.testing.assert_allclose(embedding, want, rtol=0, atol=3e-5 * np.abs(want).max())
    statistics = of(reference, f"{case}/statistics/")
    assert after.keys() == statistics.keys()
    for name, value in statistics.items():  # ... statistics 2e-6 of values near 1 ...
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, value in of(reference, f"{case}/grad/").items():
        got = np.asarray(gradient[name])
        got = got.reshape(-1, got.shape[-1])[::16] if got.size > 4096 else got
        # ... and gradients, sums over places that cancel, 1e-4 of the largest.
        atol = 1e-3 * np.abs(value).max()
        np.testing.assert_allclose(got, value, rtol=0, atol=atol, err_msg=name)


@both
def test_use_with_running_statistics_equals_pytorch_and_leaves_them(reference, case):
    config, graph, start, _, wave = golden_start(reference, case, train=False)
    statistics, want = of(reference, f"{case}/statistics/"), reference[f"{case}/use"]
    embedding, after = run(config, graph, start, statistics, wave)
    np.testing.assert_allclose(embedding, want, rtol=0, atol=1e-5 * np.abs(want).max())
    for name, value in statistics.items():
        np.testing.assert_array_equal(after[name], value)


@both
def test_two_devices_normalize_by_the_whole_batch(case):
    config, wave = SMALL[case], waves(8, SHORT)
    wave[:4] //= 8  # the halves of the batch differ
    graph, params, stats = build(config, SHORT)
    mesh = devices.data_mesh(jax.devices()[:2])
    split = jax.device_put(wave, NamedSharding(mesh, PartitionSpec("data")))
    copies = jax.device_put((params, stats), devices.copied(mesh))
    got, want = run(config, graph, *copies, split), run(config, graph, params, stats, wave)
    assert len(got[0].sharding.device_set) == 2
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Two partial sums, and norms of 8 clips behind one another, which amplify their rounding.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1, np.abs(b).max()))


@both
def test_in_use_a_clip_gives_alone_what_it_gives_in_a_batch_and_int16_equals_float(case):
    config, wave = SMALL[case], waves(3, SHORT)
    built = build(config, SHORT, train=False)
    embedding, _ = run(config, *built, wave)
    alone, _ = run(config, *built, wave[1:2])
    # 1e-5: the order of float32 sums.
    atol = 1e-5 * np.abs(embedding).max()
    np.testing.assert_allclose(alone, embedding[1:2], rtol=0, atol=atol)
    floats, _ = run(config, *built, np.float32(wave) / 32_768)
    np.testing.assert_allclose(floats, embedding, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "config",
    [
        ConvNet1d(embedding=8, channels=3, cbam=True, normalize=True),
        ResNet(embedding=8, channels=2, blocks=1, cbam=True, normalize=True),
    ],
)
def test_silence_gives_finite_gradients_also_in_bfloat16(config):
    config = type(config)(**(vars(config) | {"dtype": "bfloat16"}))
    graph, params, stats = build(config, SHORT)
    assert {v.dtype for v in params.values()} == {jnp.dtype("float32")}

    @jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        embedding, _ = forward(config, graph, params, stats, np.zeros((2, SHORT), np.int16))
        return embedding.sum(), embedding

    found, embedding = gradient(params)
    assert embedding.dtype == jnp.float32
    for name, value in (found | {"embedding": embedding}).items():
        assert np.isfinite(value).all(), name


@both
def test_built_for_training_or_for_use_the_names_are_the_same(case):
    (_, *train), (_, *use) = (abstract(SMALL[case], SHORT, train) for train in (True, False))
    assert [values.keys() for values in train] == [values.keys() for values in use]


@pytest.mark.parametrize("config", [ConvNet1d(), ConvNet1d("wave"), ResNet()])
def test_the_shortest_wave_fits_and_a_shorter_one_is_refused(config):
    _, params, _ = abstract(config, config.shortest_samples)
    assert params["project.kernel"].shape[1] == 128
    with pytest.raises(InputError, match=f"at least {config.shortest_samples} samples"):
        abstract(config, config.shortest_samples - 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(ConvNet1d, view="mel"), "view: expected 'spectrum' or 'wave', got 'mel'"),
        (partial(ResNet, dtype="float16"), "'float32' or 'bfloat16', got 'float16'"),
        (
            partial(ConvNet1d, embedding=1, channels=0),
            r"embedding: expected 2 .*1; .*channels: expected 1 to",
        ),
        (partial(ResNet, blocks=0), "blocks: expected 1 to 100000, got 0"),
        (partial(Bands, bands=501), "bands: expected 1 to 500, got 501"),
        (partial(Bands, embedding=1), "embedding: expected 2 to 100000, got 1"),
    ],
)
def test_what_no_network_can_have_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Bands, against numpy


WAVE = (2000 * np.random.default_rng(0).standard_normal((2, 4096))).astype(np.int16)


def spectrogram(wave):
    """Return magnitudes [B, T, 500] of the bins from 200 Hz on."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    starts = range(0, wave.shape[1] - 1023, 512)
    frames = np.stack([wave[:, i : i + 1024] / 32768 * hann for i in starts], 1)
    return np.abs(np.fft.rfft(frames))[..., 13:]


def test_bands_of_the_spectrum_are_logs_of_their_rms():
    magnitude = np.abs(np.fft.fft(WAVE / 32768))[:, :2048] / np.sqrt(4096)
    groups = np.split(magnitude[:, :2044], 7, axis=1)  # 292 bins each, 4 left out
    want = np.stack([np.log(np.sqrt((g**2).mean(1)) + 1e-4) for g in groups], 1)
    np.testing.assert_allclose(spectral.spectrum_bands(WAVE, 7), want, atol=1e-5)  # float32


def test_the_level_of_noise_does_not_depend_on_the_length_of_the_clip():
    noise = np.random.default_rng(1).standard_normal((1, 64000)).astype(np.float32)
    short, long = (spectral.spectrum_bands(noise[:, :n], 4) for n in (16000, 64000))
    # 2000 bins a band: their mean power varies by 1 / sqrt(2000), its level by half of that.
    np.testing.assert_allclose(short, long, atol=0.06)


def test_bands_of_the_spectrogram_are_means_of_logs():
    level = np.log(spectrogram(WAVE) + 1e-3)
    want = level[..., :496].reshape(2, 7, 62, 8).mean(-1)
    # float32: the log near its floor magnifies rounding of the quietest bins.
    np.testing.assert_allclose(spectral.spectrogram_bands(WAVE, 62), want, atol=1e-4)


@pytest.mark.parametrize("view", ["spectrum", "spectrogram"])
def test_it_is_a_dense_layer_on_normalized_levels_and_their_deviation(view):
    config = Bands(view, embedding=3, bands=5)
    x = np.asarray(config.frontend(jnp.asarray(WAVE)))
    network = config.build(4096, train=True, rngs=nnx.Rngs(0))
    got = network(jnp.asarray(x))
    if view == "spectrogram":
        x = np.concatenate([x.mean(1), np.sqrt(x.var(1) + 1e-4)], -1)
    normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    # Two clips: what is normalized is their difference, small beside the levels in float32.
    np.testing.assert_allclose(got, normalized @ np.asarray(network.project.kernel), atol=2e-3)


def test_bands_need_a_frame():
    with pytest.raises(InputError, match=r"expected clips of at least 1024 samples.*got 800"):
        Bands().build(800, train=False, rngs=nnx.Rngs(0))
