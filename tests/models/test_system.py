"""A system taken apart: what trains, what starts where, and that folding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from machines import one_branch
from trainings import quick_compiles

from asdjax import params as weights
from asdjax.losses.adacos import AdaCos, initial_scale
from asdjax.losses.margin import Margin
from asdjax.models.backbone import Backbone, abstract
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.embedder import trained_embedder
from asdjax.models.heads import Task
from asdjax.models.lora import Lora
from asdjax.models.system import Branch, Input, System, Trained, initialize, take_apart
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
    Task(Margin(subcenters=3), np.array([3, 1])),
    Task(AdaCos(2), np.array([2, 2])),
    Task(AdaCos(4, trained=False), np.array([4, 4])),
]
FULL = one_branch("", embedding=8)
LORA = one_branch("", Lora(rank=2, alpha=3.0, targets=("q", "fc1")), embedding=8)
BACKBONE = "branches.0.backbone."
SAMPLES = 5600  # 33 frames: two patches of time


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compiles(tmp_path_factory.mktemp("compiled")):
        yield


def made(shapes, seed):
    draw = np.random.default_rng(seed).standard_normal
    return {n: jnp.asarray(0.3 * draw(value.shape), jnp.float32) for n, value in shapes.items()}


@pytest.fixture(scope="module")
def backbone():
    return Backbone(STRUCTURE, made(abstract(STRUCTURE)[1], seed=0))


@pytest.fixture(scope="module")
def started(backbone):
    """Return statistics, trainable and frozen weights of the LoRA system at its start."""
    return initialize(LORA, [STRUCTURE], HEADS, [backbone.params], seed=0)


# What it is made of


@pytest.mark.parametrize("config", [FULL, LORA, one_branch("", pooling="mean", embedding=8)])
def test_names_and_shapes_are_the_same_for_training_and_for_use(config):
    trained, used = (take_apart(config, [STRUCTURE], HEADS, train=train) for train in (True, False))
    assert trained.keys
    assert not used.keys
    for one, other in zip(trained[2:], used[2:], strict=True):
        assert {n: v.shape for n, v in one.items()} == {n: v.shape for n, v in other.items()}


def test_without_dropout_training_has_no_keys():
    config = one_branch("", Lora(rank=2, dropout=0.1), dropout=False)
    keys = take_apart(config, [STRUCTURE], HEADS, train=True).keys
    assert set(keys) == {f"{BACKBONE}layers.0.attn.{n}.dropout.key" for n in ("q", "v", "out")}


def test_all_weights_train_without_an_adapter_and_only_the_new_ones_with_one(backbone):
    full, lora = (take_apart(config, [STRUCTURE], HEADS, train=True) for config in (FULL, LORA))
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


def test_statistics_are_what_changes_without_a_gradient():
    names = set(take_apart(FULL, [STRUCTURE], HEADS, train=True).statistics)
    norms = {f"branches.0.pool.{n}.{v}" for n in ("hidden_norm", "norm") for v in ("mean", "var")}
    assert names == norms | {"heads.1.scale", "heads.2.scale", "heads.2.centers"}


def test_centers_are_as_many_as_the_largest_class_has():
    trainable = take_apart(FULL, [STRUCTURE], HEADS, train=True).trainable
    assert trainable["heads.0.centers"].shape == (2, 3, 8)
    assert trainable["heads.1.centers"].shape == (2, 2, 8)


def test_an_adapter_that_fits_nothing_is_refused_before_anything_is_made():
    for pattern, message in (("qq", "match no layer"), ("attn_norm", "not a linear layer")):
        with pytest.raises(InputError, match=message):
            take_apart(one_branch("", Lora(rank=2, targets=(pattern,))), [STRUCTURE], train=True)


def test_beats_has_no_class_token_to_pool():
    with pytest.raises(InputError, match="BEATs has no class token"):
        take_apart(one_branch("", pooling="cls"), [STRUCTURE], train=True)


def test_an_embedding_is_more_than_a_number():
    with pytest.raises(InputError, match="at least 2 numbers, got 1"):
        one_branch("", embedding=1)


def test_the_class_head_of_pre_training_is_left_out():
    config = BeatsConfig(**{**vars(STRUCTURE), "finetuned_model": True, "predictor_class": 5})
    base = made(abstract(config)[1], seed=0)
    structure, kept = config.for_features(base)
    assert structure == BeatsConfig(**{**vars(STRUCTURE), "predictor_class": 5})
    assert set(base) - set(kept) == {"predictor.kernel", "predictor.bias"}


# Where it starts


def test_the_backbone_starts_as_it_was(backbone, started):
    _, trainable, frozen = started
    for name, value in backbone.params.items():
        assert frozen[BACKBONE + name] is value
    assert not any(name in trainable for name in frozen)
    _, whole, nothing = initialize(FULL, [STRUCTURE], HEADS, [backbone.params], seed=0)
    assert all(whole[BACKBONE + name] is value for name, value in backbone.params.items())
    assert nothing == {}


def test_what_is_new_starts_at_random_by_the_seed(backbone, started):
    again = initialize(LORA, [STRUCTURE], HEADS, [backbone.params], seed=0)
    other = initialize(LORA, [STRUCTURE], HEADS, [backbone.params], seed=1)
    for name, value in started[1].items():
        np.testing.assert_array_equal(value, again[1][name])
    random = ["branches.0.project.kernel", "heads.0.centers", f"{BACKBONE}layers.0.attn.q.lora_a"]
    for name in random:
        assert (np.asarray(started[1][name]) != other[1][name]).all(), name
    assert (np.asarray(started[0]["heads.2.centers"]) != other[0]["heads.2.centers"]).all()
    assert not np.asarray(started[1]["branches.0.backbone.layers.0.attn.q.lora_b"]).any()


def test_adacos_starts_at_its_fixed_scale(started):
    np.testing.assert_allclose(started[0]["heads.1.scale"], initial_scale(2, 2), rtol=1e-6)
    np.testing.assert_allclose(started[0]["heads.2.scale"], initial_scale(2, 4), rtol=1e-6)


# What it computes


@pytest.fixture(scope="module")
def trained(started):
    """Return weights and statistics as after some training: everything away from its start."""
    statistics, trainable, _ = started
    moved = {name: value + 0.1 for name, value in statistics.items()}
    return made(trainable, seed=1), moved


def test_folded_adapters_and_no_heads_give_the_embedding_of_the_system(backbone, started, trained):
    weight, statistics = trained
    parts = take_apart(LORA, [STRUCTURE], HEADS, train=False)
    rng = np.random.default_rng(0)
    wave = jnp.asarray(0.1 * rng.standard_normal((2, SAMPLES)), jnp.float32)
    lengths = jnp.array([SAMPLES, 3000])

    @jax.jit
    def system(wave, lengths):
        model = weights.merge(parts.graph, statistics, weight, started[2])
        return model([Input(backbone.frontend(wave), backbone.token_padding(SAMPLES, lengths))])

    embedder = trained_embedder([backbone], LORA, weight | statistics)
    found, expected = jax.jit(embedder.apply)(embedder.params, wave, lengths), system(wave, lengths)
    assert found.shape == (2, 8)
    assert found.dtype == jnp.float32
    # 1e-5 of the largest: the sum of two products against the product of a sum, in float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    plain = trained_embedder([backbone], LORA, weight | statistics | untrained(weight))
    assert not np.allclose(jax.jit(plain.apply)(plain.params, wave, lengths), found, atol=1e-3)


def untrained(weight):
    """Return the second factors of the adapters at 0, where they do nothing."""
    return {name: jnp.zeros_like(v) for name, v in weight.items() if name.endswith("lora_b")}


def test_heads_and_adapters_are_not_part_of_the_embedder(backbone, trained):
    weight, statistics = trained
    names = set(trained_embedder([backbone], LORA, weight | statistics).params)
    assert not any(name.startswith("heads") or "lora" in name for name in names)
    assert names == set(take_apart(FULL, [STRUCTURE], train=False).trainable) | {
        name for name in statistics if name.startswith("branches.0.pool.")
    }


def test_weights_of_another_system_are_refused(backbone, trained):
    weight, statistics = trained
    for config, message in (
        (
            one_branch("", LORA.branches[0].adapter, embedding=9),
            r"project\.kernel: expected \(64, 9\)",
        ),
        (
            one_branch("", LORA.branches[0].adapter, "mean", embedding=8),
            r"in the file but not in the model",
        ),
        (one_branch("", Lora(rank=3), embedding=8), r"expected rank 3, got shape \[32, 2\]"),
    ):
        with pytest.raises(InputError, match=message):
            trained_embedder([backbone], config, weight | statistics)
    with pytest.raises(InputError, match="not in the file"):
        trained_embedder([backbone], LORA, weight)


def test_pooling_sees_only_real_tokens():
    """The mean of the tokens that are not padding, then the projection."""

    class Tokens(nnx.Module):
        def __call__(self, mel, padding):
            return mel

    config = one_branch("", pooling="mean", embedding=8)
    system = System(config, [STRUCTURE], train=False, rngs=nnx.Rngs(0))
    system.branches[0].backbone = Tokens()
    project = system.branches[0].project
    tokens = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    padding = np.arange(5)[None] >= np.array([[5], [2]])
    kernel, bias = (np.float64(v[...]) for v in (project.kernel, project.bias))
    for given, means in (
        (jnp.asarray(padding), [tokens[0].mean(0), tokens[1, :2].mean(0)]),
        (None, tokens.mean(1)),
    ):
        expected = np.float64(means) @ kernel + bias
        # 1e-5: float32 sums of 32 products of unit scale
        np.testing.assert_allclose(system([Input(jnp.asarray(tokens), given)]), expected, atol=1e-5)


# Two branches

EAT = EatConfig(embed_dim=32, depth=1, num_heads=2, max_length=8)
DUAL = Trained(
    (
        Branch("", Lora(rank=2, alpha=3.0, targets=("q", "fc1")), embedding=8),
        Branch("", Lora(rank=3, alpha=1.0, targets=("v", "out")), pooling="cls", embedding=8),
    )
)


def test_each_branch_folds_its_own_adapters(backbone):
    eat = Backbone(EAT, made(abstract(EAT)[1], seed=1))
    both = [STRUCTURE, EAT]
    statistics, trainable, frozen = initialize(
        DUAL, both, (), [backbone.params, eat.params], seed=0
    )
    parts, weight = take_apart(DUAL, both, train=False), made(trainable, seed=2)
    assert not any(".lora_" in name for name in frozen)
    assert "branches.1.backbone.positions" in frozen
    wave = jnp.asarray(0.1 * np.random.default_rng(0).standard_normal((2, SAMPLES)), jnp.float32)
    lengths = jnp.array([SAMPLES, 3000])

    @jax.jit
    def system(wave, lengths):
        model = weights.merge(parts.graph, statistics, weight, frozen)
        inputs = [Input(s.frontend(wave, lengths), s.token_padding(SAMPLES, lengths)) for s in both]
        return model(inputs)

    embedder = trained_embedder([backbone, eat], DUAL, weight | statistics)
    found, expected = jax.jit(embedder.apply)(embedder.params, wave, lengths), system(wave, lengths)
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


def test_the_positions_of_eat_never_train():
    for config in (one_branch("", embedding=8), one_branch("", Lora(rank=2), embedding=8)):
        parts = take_apart(config, [EAT], HEADS, train=True)
        assert "branches.0.backbone.positions" in parts.frozen
    assert set(take_apart(one_branch(""), [EAT], train=True).frozen) == {
        "branches.0.backbone.positions"
    }


def test_a_head_of_one_branch_sees_its_part_alone():
    tasks = [Task(Margin(), np.ones(3, int), branch=1), Task(Margin(), np.ones(3, int))]
    system = System(DUAL, [STRUCTURE, EAT], tasks, train=False, rngs=nnx.Rngs(0))
    embedding = jnp.arange(32.0).reshape(2, 16)
    np.testing.assert_array_equal(system.heads[0].seen(embedding), embedding[:, 8:])
    np.testing.assert_array_equal(system.heads[1].seen(embedding), embedding)
    assert system.heads[0].centers.shape == (3, 1, 8)
    assert system.heads[1].centers.shape == (3, 1, 16)


def test_a_system_has_a_branch():
    with pytest.raises(InputError, match="at least one branch"):
        Trained(())
