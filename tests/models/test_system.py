"""A system taken apart: what trains, what starts where, and that folding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from machines import one_encoder
from trainings import architecture

from asdjax.losses.adacos import AdaCos, initial_scale
from asdjax.losses.margin import Margin, margin_loss
from asdjax.models.backbone import Backbone, abstract
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.models.system import Architecture, Input, Network, System, Task
from asdjax.models.weights_file import merge
from asdjax.types import InputError

STRUCTURE = BeatsConfig(
    input_patch_size=16,
    embed_dim=16,
    encoder_layers=1,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=48,
    encoder_attention_heads=2,
    conv_pos=8,
    conv_pos_groups=2,
)
HEADS = [
    Task(Margin(subcenters=3), (3, 1)),
    Task(AdaCos(2), (2, 2)),
    Task(AdaCos(4, trained=False), (4, 4)),
]
FULL = one_encoder("", embedding=8)
LORA = one_encoder("", Lora(rank=2, alpha=3.0, targets=("q", "fc1")), embedding=8)
BACKBONE = "branches.0.backbone."
SAMPLES = 5600  # 33 frames: two patches of time


def made(shapes, seed):
    draw = np.random.default_rng(seed).standard_normal
    return {n: jnp.asarray(0.3 * draw(value.shape), jnp.float32) for n, value in shapes.items()}


def padded_noise(lengths):
    """Return clips `[B, SAMPLES]` of these lengths, without an offset."""
    inside = np.arange(SAMPLES)[None] < np.asarray(lengths)[:, None]
    wave = np.random.default_rng(0).standard_normal((len(lengths), SAMPLES))
    mean = (wave * inside).sum(1, keepdims=True) / inside.sum(1, keepdims=True)
    return jnp.asarray(0.1 * np.where(inside, wave - mean, 0), jnp.float32)


@pytest.fixture(scope="module")
def backbone():
    return Backbone(STRUCTURE, made(abstract(STRUCTURE)[1], seed=0))


@pytest.fixture(scope="module")
def eat():
    return Backbone(EAT, made(abstract(EAT)[1], seed=1))


@pytest.fixture(scope="module")
def system(backbone):
    """Return a function that makes the system of one encoder, with heads."""
    return lambda encoders, tasks=HEADS: architecture(encoders, [backbone], tasks)


@pytest.fixture(scope="module")
def started(system):
    """Return statistics, trainable and frozen weights of the LoRA system at its start."""
    return system(LORA).initialize(seed=0)


# What it is made of


@pytest.mark.parametrize("config", [FULL, LORA, one_encoder("", pooling="mean", embedding=8)])
def test_names_and_shapes_are_the_same_for_training_and_for_use(config, system):
    trained, used = (system(config).parts(train=train) for train in (True, False))
    assert trained.keys
    assert not used.keys
    for one, other in zip(trained[2:], used[2:], strict=True):
        assert {n: v.shape for n, v in one.items()} == {n: v.shape for n, v in other.items()}


def test_without_dropout_training_has_no_keys(system):
    config = one_encoder("", Lora(rank=2, dropout=0.1), dropout=False)
    keys = system(config).parts(train=True).keys
    assert set(keys) == {f"{BACKBONE}layers.0.attn.{n}.dropout.key" for n in ("q", "v", "out")}


def test_all_weights_train_without_an_adapter_and_only_the_new_ones_with_one(backbone, system):
    full, lora = (system(config).parts(train=True) for config in (FULL, LORA))
    base = {BACKBONE + name for name in backbone.params}
    adapters = {
        f"{BACKBONE}layers.0.{layer}.lora_{factor}"
        for layer in ("attn.q", "fc1")
        for factor in ("a", "b")
    }
    added = full.trainable.keys() - base
    assert {name.removeprefix("branches.0.").split(".")[0] for name in added} == {
        "pool",
        "project",
        "heads",
    }
    assert {n for n in added if n.startswith("heads")} == {"heads.0.centers", "heads.1.centers"}
    assert base <= full.trainable.keys()
    assert full.frozen == {}
    assert lora.trainable.keys() == added | adapters
    assert lora.frozen.keys() == base


def test_statistics_are_what_changes_without_a_gradient(system):
    names = set(system(FULL).parts(train=True).statistics)
    norms = {f"branches.0.pool.{n}.{v}" for n in ("hidden_norm", "norm") for v in ("mean", "var")}
    assert names == norms | {"heads.1.scale", "heads.2.scale", "heads.2.centers"}


def test_centers_are_as_many_as_the_largest_class_has(system):
    trainable = system(FULL).parts(train=True).trainable
    assert trainable["heads.0.centers"].shape == (2, 3, 8)
    assert trainable["heads.1.centers"].shape == (2, 2, 8)


def test_an_adapter_that_fits_nothing_is_refused_before_anything_is_made(system):
    for pattern, message in (("qq", "match no layer"), ("attn_norm", "not a linear layer")):
        with pytest.raises(InputError, match=message):
            system(one_encoder("", Lora(rank=2, targets=(pattern,)))).parts(train=True)


def test_the_class_head_of_pre_training_is_left_out():
    config = BeatsConfig(**{**vars(STRUCTURE), "finetuned_model": True, "predictor_class": 5})
    base = made(abstract(config)[1], seed=0)
    structure, kept = config.for_features(base)
    assert structure == BeatsConfig(**{**vars(STRUCTURE), "predictor_class": 5})
    assert set(base) - set(kept) == {"predictor.kernel", "predictor.bias"}


# Where it starts


def test_the_backbone_starts_as_it_was(backbone, system, started):
    _, trainable, frozen = started
    for name, value in backbone.params.items():
        assert frozen[BACKBONE + name] is value
    assert not any(name in trainable for name in frozen)
    _, whole, nothing = system(FULL).initialize(seed=0)
    assert all(whole[BACKBONE + name] is value for name, value in backbone.params.items())
    assert nothing == {}


def test_what_is_new_starts_at_random_by_the_seed(system, started):
    again = system(LORA).initialize(seed=0)
    other = system(LORA).initialize(seed=1)
    for name, value in started[1].items():
        np.testing.assert_array_equal(value, again[1][name])
    random = ["branches.0.project.kernel", "heads.0.centers", f"{BACKBONE}layers.0.attn.q.lora_a"]
    for name in random:
        assert (np.asarray(started[1][name]) != other[1][name]).all(), name
    assert (np.asarray(started[0]["heads.2.centers"]) != other[0]["heads.2.centers"]).all()
    assert not np.asarray(started[1]["branches.0.backbone.layers.0.attn.q.lora_b"]).any()


def test_adacos_starts_at_its_fixed_scale(started):
    np.testing.assert_allclose(started[0]["heads.1.scale"], initial_scale(4), rtol=1e-6)
    np.testing.assert_allclose(started[0]["heads.2.scale"], initial_scale(8), rtol=1e-6)


# What it computes


@pytest.fixture(scope="module")
def trained(started):
    """Return weights and statistics as after some training: everything away from its start."""
    statistics, trainable, _ = started
    moved = {name: value + 0.1 for name, value in statistics.items()}
    return made(trainable, seed=1), moved


def test_folded_adapters_and_no_heads_give_the_embedding_of_the_system(
    backbone, system, started, trained
):
    weight, statistics = trained
    parts = system(LORA).parts(train=False)
    lengths = jnp.array([SAMPLES, 3000])
    wave = padded_noise(lengths)

    @jax.jit
    def unfolded(wave, lengths):
        model = merge(parts.graph, statistics, weight, started[2])
        return model([Input(backbone.frontend(wave), backbone.token_padding(SAMPLES, lengths))])

    embedder = system(LORA, ()).embedder(weight | statistics)
    found = jax.jit(embedder.apply)(embedder.params, wave, lengths)
    expected = unfolded(wave, lengths)
    assert found.shape == (2, 8)
    assert found.dtype == jnp.float32
    # 1e-5 of the largest: the sum of two products against the product of a sum, in float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    plain = system(LORA, ()).embedder(weight | statistics | untrained(weight))
    assert not np.allclose(jax.jit(plain.apply)(plain.params, wave, lengths), found, atol=1e-3)


def untrained(weight):
    """Return the second factors of the adapters at 0, where they do nothing."""
    return {name: jnp.zeros_like(v) for name, v in weight.items() if name.endswith("lora_b")}


def test_heads_and_adapters_are_not_part_of_the_embedder(system, trained):
    weight, statistics = trained
    names = set(system(LORA, ()).embedder(weight | statistics).params)
    assert names == set(system(LORA).embedder(weight | statistics).params)
    assert not any(name.startswith("heads") or "lora" in name for name in names)
    assert names == set(system(FULL, ()).parts(train=False).trainable) | {
        name for name in statistics if name.startswith("branches.0.pool.")
    }


def test_weights_of_another_system_are_refused(system, trained):
    weight, statistics = trained
    for config, message in (
        (
            one_encoder("", LORA[0].adapter, embedding=9),
            r"project\.kernel: expected \(64, 9\)",
        ),
        (
            one_encoder("", LORA[0].adapter, "mean", embedding=8),
            r"in the file but not in the model",
        ),
        (one_encoder("", Lora(rank=3), embedding=8), r"expected rank 3, got shape \[32, 2\]"),
    ):
        with pytest.raises(InputError, match=message):
            system(config, ()).embedder(weight | statistics)
    with pytest.raises(InputError, match="not in the file"):
        system(LORA, ()).embedder(weight)


def test_pooling_sees_only_real_tokens(system):
    """The mean of the tokens that are not padding, then the projection."""

    class Tokens(nnx.Module):
        def __call__(self, mel, padding, layer):
            return mel

    config = one_encoder("", pooling="mean", embedding=8)
    module = System(system(config, ()), train=False, rngs=nnx.Rngs(0))
    module.branches[0].backbone = Tokens()
    project = module.branches[0].project
    tokens = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    padding = np.arange(5)[None] >= np.array([[5], [2]])
    kernel, bias = (np.float64(v[...]) for v in (project.kernel, project.bias))
    for given, means in (
        (jnp.asarray(padding), [tokens[0].mean(0), tokens[1, :2].mean(0)]),
        (None, tokens.mean(1)),
    ):
        expected = np.float64(means) @ kernel + bias
        # 1e-5: float32 sums of 32 products of unit scale
        np.testing.assert_allclose(module([Input(jnp.asarray(tokens), given)]), expected, atol=1e-5)


# Two encoders

EAT = EatConfig(embed_dim=32, depth=1, num_heads=2, max_length=8)
DUAL = (
    Pretrained("", Lora(rank=2, alpha=3.0, targets=("q", "fc1")), embedding=8),
    Pretrained("", Lora(rank=3, alpha=1.0, targets=("v", "out")), pooling="cls", embedding=8),
)


def test_each_encoder_folds_its_own_adapters(backbone, eat):
    dual = architecture(DUAL, [backbone, eat])
    statistics, trainable, frozen = dual.initialize(seed=0)
    parts, weight = dual.parts(train=False), made(trainable, seed=2)
    assert not any(".lora_" in name for name in frozen)
    assert "branches.1.backbone.positions" in frozen
    lengths = jnp.array([SAMPLES, 3000])
    wave = padded_noise(lengths)

    @jax.jit
    def unfolded(wave, lengths):
        model = merge(parts.graph, statistics, weight, frozen)
        inputs = [
            Input(s.frontend(wave, lengths), s.token_padding(SAMPLES, lengths))
            for s in (STRUCTURE, EAT)
        ]
        return model(inputs)

    embedder = dual.embedder(weight | statistics)
    found = jax.jit(embedder.apply)(embedder.params, wave, lengths)
    expected = unfolded(wave, lengths)
    assert found.shape == (2, 16)
    # 1e-5 of the largest: the sum of two products against the product of a sum, in float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    eats = embed_with_cls(eat, weight, wave, lengths)
    np.testing.assert_allclose(found[:, 8:], eats, rtol=0, atol=1e-4 * np.abs(eats).max())


def embed_with_cls(eat, weight, wave, lengths):
    """Return the second half by hand: kernels W + alpha / rank A B, class token, projection."""
    prefix = "branches.1."
    own = {n.removeprefix(prefix): v for n, v in weight.items() if n.startswith(prefix)}
    base = dict(eat.params)
    for layer in ("layers.0.attn.v", "layers.0.attn.out"):
        a, b = (np.float64(own[f"backbone.{layer}.lora_{x}"]) for x in "ab")
        base[f"{layer}.kernel"] = np.float64(base[f"{layer}.kernel"]) + 1.0 / 3 * a @ b
    tokens = np.float64(Backbone(EAT, base)(wave, lengths))
    return tokens[:, 0] @ np.float64(own["project.kernel"]) + np.float64(own["project.bias"])


def test_the_positions_of_eat_never_train(eat):
    for config in (one_encoder("", embedding=8), one_encoder("", Lora(rank=2), embedding=8)):
        parts = architecture(config, [eat], HEADS).parts(train=True)
        assert "branches.0.backbone.positions" in parts.frozen
    parts = architecture(one_encoder(""), [eat]).parts(train=True)
    assert set(parts.frozen) == {"branches.0.backbone.positions"}


def test_a_head_of_one_encoder_sees_its_part_alone(backbone, eat):
    loss = Margin()
    tasks = [Task(loss, (1, 1, 1), branch=1), Task(loss, (1, 1, 1), weight=2.0)]
    dual = architecture(DUAL, [backbone, eat], tasks)
    seen = [dual.part(branch) for branch in (0, 1, None)]
    assert seen == [slice(0, 8), slice(8, 16), slice(0, 16)]
    system = System(dual, train=False, rngs=nnx.Rngs(0))
    assert system.heads[0].centers.shape == (3, 1, 8)
    assert system.heads[1].centers.shape == (3, 1, 16)
    embedding = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16)), jnp.float32)
    label, weight = jnp.array([[[0, 1]], [[2, 2]]]), jnp.array([[0.25, 0.75], [1.0, 0.0]])
    judged = list(system.judge(embedding, label, weight))
    for task, head, (found, losses, cosine, own), seen in zip(
        tasks, system.heads, judged, (embedding[:, 8:], embedding), strict=True
    ):
        assert found == task
        constants = {"kind": loss.kind, "margin": loss.margin, "scale": loss.scale}
        expected = margin_loss(seen, head.centers[...], label[:, 0], weight, **constants)
        # The same operations, once compiled as one: float32 rounding.
        np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
        np.testing.assert_allclose(cosine, expected[1], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(own, label[:, 0])


def test_each_head_takes_the_labels_of_its_kind(backbone):
    """The second head has the first kind of labels, the first head the second."""
    tasks = [Task(Margin(), (1, 1), labels=1), Task(Margin(), (1, 1, 1), labels=0)]
    config = one_encoder("", pooling="mean", embedding=8)
    system = System(architecture(config, [backbone], tasks), train=False, rngs=nnx.Rngs(0))
    label = jnp.array([[[2], [0]], [[1], [1]]])
    owns = [own for *_, own in system.judge(jnp.ones((2, 8)), label, jnp.ones((2, 1)))]
    np.testing.assert_array_equal(owns[0], [[0], [1]])
    np.testing.assert_array_equal(owns[1], [[2], [1]])


# Frozen systems


def test_a_frozen_system_gives_what_its_backbones_give(backbone, eat):
    """Without adapters and dense layers there is nothing to train or to add."""
    frozen = [Pretrained("", pooling=p, embedding=None) for p in ("mean", "cls")]
    embedder = architecture(frozen, [backbone, eat]).embedder({})
    assert set(embedder.params) == {f"branches.0.backbone.{n}" for n in backbone.params} | {
        f"branches.1.backbone.{n}" for n in eat.params
    }
    wave = jnp.asarray(0.1 * np.random.default_rng(0).standard_normal((2, SAMPLES)), jnp.float32)
    lengths = jnp.array([SAMPLES, SAMPLES])
    found = jax.jit(embedder.apply)(embedder.params, wave, lengths)
    expected = np.concatenate([backbone(wave, lengths).mean(1), eat(wave, lengths)[:, 0]], -1)
    # 1e-5 of the largest: float32, compiled as one program and as several
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_all_clips_have_the_same_weights(backbone):
    embedder = architecture(one_encoder("", pooling="mean", embedding=None), [backbone]).embedder(
        {}
    )
    assert embedder.select(embedder.params, ("fan", "section_00")) is embedder.params


def test_an_embedder_sees_no_offset():
    class First(nnx.Module):
        def __call__(self, given):
            return given.x[:, :5]

    network = Network(lambda wave, lengths: Input(wave), lambda **_: First(), 5)
    apply = jax.jit(Architecture((network,)).embedder({}).apply)
    wave = np.random.default_rng(0).integers(-99, 99, (2, 64)).astype(np.int16)
    found = [apply({}, wave + np.int16(c), np.int32([64, 64])) for c in (0, 3000)]
    # 2e-6: sums of 64 float32 values below 0.1.
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=2e-6)
    assert np.abs(found[0]).max() > 1e-3
