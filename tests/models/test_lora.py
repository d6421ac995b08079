"""Adapters: nothing changes before training, the plain names stay, folding gives the plain model.

Tolerance where an adapted and a plain model are compared in float32: outputs have unit scale and
are sums of at most 48 products, added up in another order; 1e-5 is some 50 rounding steps.
"""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.models import weights_file
from asdjax.models.attention import SelfAttention
from asdjax.models.beats import Beats, BeatsConfig
from asdjax.models.layers import Key, dropout, keys_for
from asdjax.models.lora import Lora, LoraLinear, adapt, fold, is_adapter, matches, summary
from asdjax.models.weights_file import merge, split
from asdjax.types import InputError

ATOL = 1e-5
TINY = BeatsConfig.base(
    embed_dim=24,
    encoder_layers=1,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=48,
    encoder_attention_heads=4,
    conv_pos=6,
    conv_pos_groups=1,
)
CONFIG = Lora(rank=4, alpha=6.0)
EVERYWHERE = Lora(rank=2, alpha=3.0, targets=("q", "fc", "heads.*"))  # every layer of a `Stack`


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.attn = nnx.Dict(q=nnx.Linear(width, width, rngs=rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.fc = nnx.Linear(width, 2 * width, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x + self.norm(self.fc(self.attn.q(x))[..., : x.shape[-1]])


class Stack(nnx.Module):
    """Layers in every kind of place, attribute, dictionary and list, and one without a bias."""

    def __init__(self, layers, rngs, width=8):
        self.layers = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.heads = nnx.List([nnx.Linear(width, 3, rngs=rngs), nnx.Linear(width, 6, rngs=rngs)])
        self.q = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return jnp.concatenate([head(self.q(x)) for head in self.heads], -1)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stack(config=None, *, train=False, layers=2):
    model = Stack(layers, nnx.Rngs(0))
    if config is not None:
        adapt(model, config, train=train, rngs=nnx.Rngs(1))
    return model


def beats(config=None, dtype=jnp.float32, structure=TINY):
    model = Beats(structure, dtype=dtype, rngs=nnx.Rngs(0))
    if config is not None:
        adapt(model, config, train=False, rngs=nnx.Rngs(1))
    return model


def made(shapes):
    """Return made-up weights, the same for the same name; an initializer compiles for seconds."""
    return {
        name: 0.3 * noise(*value.shape, seed=zlib.crc32(name.encode()))
        for name, value in shapes.items()
    }


def taken_apart(build, *settings, **options):
    """Return (graph, adapters, base), all weights away from their start."""
    graph, *params = split(nnx.eval_shape(partial(build, *settings, **options)), nnx.LoRAParam)
    return graph, *map(made, params)


@partial(jax.jit, static_argnums=0)
def run(graph, x, *params):
    return merge(graph, *params)(x)


def shapes(params):
    return {name: value.shape for name, value in params.items()}


def linear(dtype=jnp.float32, use_bias=True):
    return nnx.Linear(48, 16, use_bias=use_bias, dtype=dtype, rngs=nnx.Rngs(0))


# What an adapted layer computes


@pytest.mark.parametrize("use_bias", [True, False])
def test_the_layer_is_the_equation(use_bias):
    base = linear(use_bias=use_bias)
    layer = LoraLinear(base, CONFIG, train=False, rngs=nnx.Rngs(1))
    layer.lora_b[...] = jnp.asarray(noise(4, 16, seed=1))
    x, a, b = (np.float64(v) for v in (noise(5, 48), layer.lora_a[...], layer.lora_b[...]))
    expected = x @ np.float64(base.kernel[...]) + 6.0 / 4 * (x @ a) @ b
    if use_bias:
        base.bias[...] = jnp.asarray(noise(16, seed=2))  # the adapted layer has the same object
        expected = expected + np.float64(base.bias[...])
    np.testing.assert_allclose(layer(jnp.float32(x)), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("of_input", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_an_untrained_adapter_changes_nothing_at_all(dtype, of_input, train):
    base, x = linear(dtype), jnp.asarray(noise(2, 5, 48), of_input)
    config = Lora(rank=4, dropout=0.5)
    got = LoraLinear(base, config, train=train, rngs=nnx.Rngs(1))(x)
    assert got.dtype == base(x).dtype
    np.testing.assert_array_equal(got, base(x))


@pytest.mark.parametrize("way", ["_apart", "_joined", "_thin"])
def test_products_of_bfloat16_are_summed_in_float32(way):
    layer = LoraLinear(linear(jnp.bfloat16), CONFIG, train=False, rngs=nnx.Rngs(1))
    text = str(jax.make_jaxpr(getattr(layer, way))(jnp.zeros((5, 48), jnp.bfloat16)))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == {"_apart": 3, "_joined": 2, "_thin": 2}[way]
    assert all(":f32[" in line for line in products)
    assert layer(jnp.zeros((5, 48))).dtype == jnp.bfloat16
    assert {v.dtype for v in (layer.lora_a[...], layer.lora_b[...])} == {jnp.dtype("float32")}


@pytest.mark.parametrize("way", ["_joined", "_thin"])
def test_one_product_and_its_gradients_are_those_of_three(way):
    layer = LoraLinear(linear(), CONFIG, train=False, rngs=nnx.Rngs(1))
    layer.lora_b.set_value(jnp.asarray(noise(CONFIG.rank, 16)))
    graph, params = split(layer)
    x, slope = jnp.asarray(noise(2, 5, 48)), jnp.asarray(noise(2, 5, 16))

    def run(way, params, x):
        y = getattr(merge(graph, params), way)(x)
        return (y * slope).sum(), y

    ours, want = (
        jax.grad(partial(run, each), (0, 1), has_aux=True)(params, x) for each in (way, "_apart")
    )
    # float32 sums of 48 products around 1, in another order
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4), ours, want)


def test_an_adapter_of_the_gate_of_the_bias_acts():
    """The gate's kernel is used outside of its layer."""
    layer = SelfAttention(128, 2, gate="query", dropped=0.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x, bias = jnp.asarray(noise(1, 5, 128)), jnp.asarray(noise(2, 5, 5))
    plain = layer(x, None, bias)
    adapt(layer, Lora(2, 4.0, targets=("gate",)), train=True, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(layer(x, None, bias), plain)
    layer.gate.lora_b.set_value(jnp.asarray(noise(2, 8)))
    adapted = layer(x, None, bias)
    update = 2 * layer.gate.lora_a[...] @ layer.gate.lora_b[...]
    layer.gate.lora_b.set_value(jnp.zeros((2, 8)))
    layer.gate.kernel.set_value(layer.gate.kernel[...] + update)
    np.testing.assert_array_equal(layer(x, None, bias), adapted)
    assert np.abs(np.asarray(adapted - plain)).max() > 1e-3


def test_a_starts_uniform_within_one_over_the_root_of_the_inputs_and_b_at_zero():
    config = Lora(rank=16)
    layer = LoraLinear(linear(), config, train=False, rngs=nnx.Rngs(1))
    a, bound = np.asarray(layer.lora_a[...]), 48**-0.5
    assert np.abs(a).max() <= bound
    # 768 draws: the deviation of a uniform one is bound / sqrt(3), of its estimate 2 % of that.
    np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.1)
    np.testing.assert_allclose(a.mean(), 0, atol=0.1 * bound)
    assert not np.asarray(layer.lora_b[...]).any()


# The adapted model


def test_an_adapted_model_is_its_base_until_trained():
    plain_graph, _, plain = taken_apart(stack)
    graph, adapters, base = taken_apart(stack, EVERYWHERE)
    start = {n: v if n.endswith("lora_a") else np.zeros_like(v) for n, v in adapters.items()}
    x = noise(5, 8)
    np.testing.assert_array_equal(run(graph, x, start, base), run(plain_graph, x, plain))


def test_the_tree_is_that_of_the_base_and_the_adapters():
    _, _, plain = taken_apart(beats)
    _, adapters, base = taken_apart(beats, CONFIG)
    assert shapes(base) == shapes(plain)
    layers = [f"layers.0.attn.{name}" for name in ("q", "v", "out")]
    a = {f"{layer}.lora_a": (32, 4) for layer in layers}
    assert shapes(adapters) == a | {f"{layer}.lora_b": (4, 32) for layer in layers}


def test_adapting_moves_the_weights_and_starts_every_adapter_differently():
    model = stack(layers=1)
    before = nnx.to_flat_state(nnx.state(model))
    adapt(model, Lora(rank=2, targets=("q",)), train=False, rngs=nnx.Rngs(1))
    after = dict(nnx.to_flat_state(nnx.state(model)))
    assert all(after[path] is variable for path, variable in before)
    one, other = after["q", "lora_a"], after["layers", 0, "attn", "q", "lora_a"]
    assert (one[...] != other[...]).all()


def test_building_under_jit_gives_what_building_outright_gives():
    def build():
        return split(stack(Lora(rank=2, targets=("q", "heads.0")), layers=0))[1]

    jax.tree.map(np.testing.assert_array_equal, build(), jax.jit(build)())


def test_the_adapters_alone_get_gradients_and_all_of_them_do():
    graph, adapters, base = taken_apart(stack, EVERYWHERE)

    @jax.jit
    @jax.grad
    def gradient(adapters, base, x):
        return jnp.square(merge(graph, adapters, base)(x)).sum()

    found = gradient(adapters, base, noise(5, 8))
    assert found.keys() == adapters.keys()
    for name, value in found.items():
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() > 1e-6, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("q.lora_a", True), ("lora_b", True), ("q.kernel", False), ("lora_a.kernel", False)],
)
def test_the_name_tells_an_adapter(name, expected):
    assert is_adapter(name) is expected


def test_adapters_of_beats_base_have_the_number_of_the_equation():
    structure = BeatsConfig.base()
    model = nnx.eval_shape(lambda: beats(Lora(), structure=structure))
    _, adapters, base = split(model, nnx.LoRAParam)
    assert weights_file.count(adapters) == 3 * 2 * 768 * 64 * 12
    assert weights_file.count(base) == 90_311_792  # as published
    layer = "[768, 768] rank 64", 2 * 768 * 64 * 12, 12
    assert summary(base, adapters) == [
        ("layers.*.attn.out + LoRA", *layer),
        ("layers.*.attn.q + LoRA", *layer),
        ("layers.*.attn.v + LoRA", *layer),
    ]


# Folding


@pytest.mark.parametrize(
    ("build", "targets", "shape"),
    [
        (beats, ("q", "v", "out"), (2, 16, 128)),
        (stack, EVERYWHERE.targets, (5, 8)),
    ],
)
def test_the_folded_plain_model_is_the_adapted_one(build, targets, shape):
    config, x = Lora(rank=2, alpha=6.0, targets=targets), noise(*shape)
    graph, adapters, base = taken_apart(build, config)
    plain_graph, _, plain = taken_apart(build)
    params = adapters | base
    folded = jax.jit(partial(fold, config=config))(params)
    assert shapes(folded) == shapes(plain)
    adapted = run(graph, x, params)
    # 1e-4: two layers with norms, each multiplies the differences of the one before.
    np.testing.assert_allclose(run(plain_graph, x, folded), adapted, rtol=0, atol=1e-4)
    assert np.abs(adapted - run(plain_graph, x, plain)).max() > 0.1  # the adapters do something


def test_folding_is_close_under_bfloat16():
    base, x = linear(jnp.bfloat16), noise(64, 48)
    graph, params = split(LoraLinear(base, CONFIG, train=False, rngs=nnx.Rngs(1)))
    params = made(params)
    plain = merge(split(base)[0], fold(params, CONFIG))(x)
    adapted = merge(graph, params)(x)
    # Kernel, A, B, x A and both sums are rounded to 8 bits at different places: a few times 2^-8
    # of the outputs, which are below 16.
    scale = np.abs(np.float32(plain)).max()
    np.testing.assert_allclose(
        np.float32(adapted), np.float32(plain), rtol=0, atol=3 * 2**-8 * scale
    )


def test_folding_leaves_host_arrays_as_they_were():
    config = Lora(rank=2, targets=("attn.q",))
    _, adapters, base = taken_apart(stack, config)
    params = adapters | base
    before = {name: value.copy() for name, value in params.items()}
    fold(params, config)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_folding_is_precise_whatever_the_setting():
    _, adapters, base = taken_apart(stack, EVERYWHERE)
    with jax.default_matmul_precision("bfloat16"):
        text = str(jax.make_jaxpr(partial(fold, config=EVERYWHERE))(adapters | base))
    assert text.count("Precision.HIGHEST") == text.count("dot_general[") * 2  # of both factors


def test_folding_with_another_rank_is_refused():
    _, adapters, base = taken_apart(stack, Lora(rank=2, targets=("attn.q",)))
    with pytest.raises(InputError, match=r"layers.0.attn.q.lora_a: expected rank 64, got .*8, 2"):
        fold(adapters | base, Lora())


# Which layers


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q",), ["q", *(f"layers.{i}.attn.q" for i in range(12))]),
        (("attn.q",), [f"layers.{i}.attn.q" for i in range(12)]),
        (("layers.1*.attn.q",), ["layers.1.attn.q", "layers.10.attn.q", "layers.11.attn.q"]),
        (("layers.[0-2].fc", "layers.2.f*"), ["layers.0.fc", "layers.1.fc", "layers.2.fc"]),
        (("heads.1", "layers.3.*.q"), ["heads.1", "layers.3.attn.q"]),
    ],
)
def test_patterns_choose_by_the_end_of_the_name(targets, expected):
    model = nnx.eval_shape(lambda: stack(Lora(rank=2, targets=targets), layers=12))
    _, adapters, _ = split(model, nnx.LoRAParam)
    adapted = {name.rpartition(".")[0] for name in adapters}
    assert adapted == set(expected)


@pytest.mark.parametrize(
    ("name", "pattern"), [("layers.0.seq", "q"), ("layers.0.q.norm", "q"), ("layers.0.Q", "q")]
)
def test_patterns_do_not_match_a_part_of_a_word(name, pattern):
    assert not matches(name, pattern)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Lora(rank=2, targets=("q", "query", "fc9")),
            r"match no layer \(2\):\n  query\n  fc9\nlinear layers of this model \(4\):\n"
            r"  heads\.\*\n  layers\.\*\.attn\.q\n  layers\.\*\.fc\n  q$",
        ),
        (Lora(rank=2, targets=("q", "norm")), r"to adapt \(2\):\n  layers\.0\.norm: LayerNorm\n"),
        (Lora(rank=2, targets=("layers.1",)), r"to adapt \(1\):\n  layers\.1: Block\n"),
        (
            Lora(rank=6, targets=("q", "heads.*")),
            r"than rank 6 \(1\):\n  heads\.0: \[8, 3\]\n",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused_and_nothing_changed(config, message):
    model = nnx.eval_shape(stack)
    before = shapes(split(model)[1])
    with pytest.raises(InputError, match=message):
        adapt(model, config, train=False, rngs=nnx.Rngs(1))
    assert shapes(split(model)[1]) == before


def test_a_star_means_every_layer_and_not_the_model_itself():
    model = nnx.eval_shape(lambda: nnx.Dict(a=linear(), b=linear()))
    adapt(model, Lora(rank=2, targets=("*",)), train=False, rngs=nnx.Rngs(1))
    assert {type(model.a), type(model.b)} == {LoraLinear}


def test_a_second_adapter_on_a_layer_is_refused():
    model = nnx.eval_shape(partial(beats, CONFIG))
    with pytest.raises(InputError, match=r"layers\.0\.attn\.q: LoraLinear"):
        adapt(model, CONFIG, train=False, rngs=nnx.Rngs(2))


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": ()}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Lora(**wrong)


# Dropout


def test_dropout_acts_on_the_input_of_the_adapter_alone():
    config = Lora(rank=4, alpha=6.0, dropout=0.5)
    layer = LoraLinear(linear(), config, train=True, rngs=nnx.Rngs(1))
    layer.lora_b[...] = jnp.asarray(noise(4, 16))
    key, x = jax.random.key(7), jnp.asarray(noise(5, 48))
    layer.dropout.key[...] = key
    dropped = np.float64(dropout(x, 0.5, key))
    assert (dropped == 0).any()
    update = 1.5 * dropped @ np.float64(layer.lora_a[...]) @ np.float64(layer.lora_b[...])
    np.testing.assert_allclose(layer(x), linear()(x) + update, rtol=0, atol=ATOL)


def test_dropout_is_in_the_training_build_alone_and_follows_its_keys():
    config, x = Lora(rank=2, dropout=0.5, targets=("layers.*.q",)), noise(5, 8)
    use, adapters, base = taken_apart(stack, config)
    model = nnx.eval_shape(lambda: stack(config, train=True))
    graph, keys, params = split(model, Key)
    assert shapes(params) == shapes(adapters | base)
    assert list(keys) == [f"layers.{i}.attn.q.dropout.key" for i in range(2)]
    params = made(params)

    def trains(seed):
        return run(graph, x, keys_for(list(keys), jax.random.key(seed)), params)

    np.testing.assert_array_equal(trains(0), trains(0))
    assert np.abs(trains(0) - trains(1)).max() > 0.01
    assert np.abs(trains(0) - run(use, x, params)).max() > 0.01


def test_layers_drop_different_values():
    config = Lora(rank=2, dropout=0.5, targets=("layers.*.q",))
    graph, keys, params = split(nnx.eval_shape(lambda: stack(config, train=True)), Key)
    model = merge(graph, keys_for(list(keys), jax.random.key(0)), made(params))
    masks = [np.asarray(layer.attn.q.dropout(jnp.ones((20, 8)))) for layer in model.layers]
    assert (masks[0] != masks[1]).any()


# The table


def test_the_summary_has_a_row_for_alike_layers_and_sums_to_what_trains():
    config = Lora(rank=2, targets=("attn.q", "layers.0.fc"))
    model = nnx.eval_shape(lambda: stack(config, layers=3))
    _, adapters, base = split(model, nnx.LoRAParam)
    heads = {name: base.pop(name) for name in list(base) if name.startswith("heads.")}
    rows = summary(base, heads | adapters)
    assert rows == [
        ("heads.*.bias", "[3]", 3, 1),
        ("heads.*.kernel", "[8, 3]", 24, 1),
        ("heads.*.bias", "[6]", 6, 1),
        ("heads.*.kernel", "[8, 6]", 48, 1),
        ("layers.*.attn.q + LoRA", "[8, 8] rank 2", 3 * 2 * (8 + 8), 3),
        ("layers.*.fc + LoRA", "[8, 16] rank 2", 2 * (8 + 16), 1),
    ]
    assert sum(row[2] for row in rows) == weights_file.count(heads) + weights_file.count(adapters)


def test_a_spectral_network_is_one_row_of_the_summary():
    shapes = {"branches.1.network.dense.0.kernel": (4, 3), "branches.1.network.norms.0.bias": (3,)}
    rows = summary({}, {name: np.zeros(shape) for name, shape in shapes.items()})
    assert rows == [("branches.1.network", "", 15, 1)]
