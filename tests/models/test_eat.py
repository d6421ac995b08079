"""EAT against the PyTorch reference, stage by stage; see tests/golden/README.md.

Tolerance of the parity tests: values have unit scale, the reference itself is up to 3.2e-5 away
from a float64 computation, and setting any one parameter to its neutral value moves the output by
4e-3 or more.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from asdjax.frontend.fbank import eat_frontend
from asdjax.models import weights_file
from asdjax.models.backbone import Backbone, abstract, initialize
from asdjax.models.eat import RATES, Block, Eat, EatConfig, position_table
from asdjax.models.layers import Dropout, Fixed, Key, keys_for, patch_grid
from asdjax.models.weights_file import merge, split
from asdjax.types import InputError
from weights_convert import torch_file
from weights_convert.eat import convert

ATOL = 1e-4
TINY = EatConfig(embed_dim=64, depth=3, num_heads=4, max_length=48)  # of the goldens
SMALL = EatConfig(embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, max_length=8)


class Loaded(NamedTuple):
    state: dict[str, np.ndarray]  # in the checkpoint's layout
    params: dict[str, np.ndarray]
    run: Callable  # (mel, padding=None) -> every stage, jitted


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "eat_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tiny(golden):
    whole = torch_file.read(golden / "eat_tiny.pt")["model"]
    state = {n: x for n, x in whole.items() if n != "_ema" and ".decoder." not in n}
    params, graph = convert(state, TINY), abstract(TINY)[0]
    run = jax.jit(lambda params, mel, padding=None: stages(merge(graph, params), mel, padding))
    return Loaded(state, params, partial(run, params))


def stages(model, mel, padding):
    """Return every intermediate that the goldens name."""
    patches = model.embed_patches(mel)
    x = model.encoder_input(patches)
    found = {"patch_embed": patches, "encoder_in": x, "x": model(mel, padding)}
    for index, block in enumerate(model.layers):
        middle = block.attn_norm(x + block.attn(x, padding))
        found[f"block_{index}_ffn"] = block.feed_forward(middle)
        found[f"block_{index}"] = x = block(x, padding)
    return found


def with_class_token(padding):
    """Return `[B, 1 + n]` from the goldens' mask of patches: the class token is never padding."""
    return np.concatenate([np.zeros((len(padding), 1), bool), padding], axis=1)


@pytest.mark.parametrize("case", ["", "trunc_", "odd_", "tokenmask_"])
def test_every_stage_equals_the_reference(tiny, arrays, case):
    mel = arrays["input" if case == "tokenmask_" else f"{case}input"][:, 0]
    mask = arrays["tokenmask_padding_mask"]
    found = tiny.run(mel, with_class_token(mask) if case == "tokenmask_" else None)
    compared = {name: case + name for name in found if case + name in arrays}
    assert len(compared) == (7 if case == "tokenmask_" else 9)
    for name, stored in compared.items():
        np.testing.assert_allclose(found[name], arrays[stored], atol=ATOL, err_msg=name)


def test_input_equals_the_reference(arrays):
    a, b = arrays["wave_a"], arrays["wave_b"]
    rows = np.stack([a, np.pad(b, (0, len(a) - len(b)))])
    # 2e-4: the filter bank is good to 1e-3 in log units, divided by twice the deviation (9.1)
    close = partial(np.testing.assert_allclose, rtol=0, atol=2e-4)
    close(TINY.frontend(rows, np.array([len(a), len(b)])), arrays["input"][:, 0])
    close(eat_frontend(rows[:1], 128), arrays["trunc_input"][:, 0])
    close(eat_frontend(b[None], 200), arrays["odd_input"][:, 0])


def test_gradient_of_every_parameter_equals_the_reference(tiny, arrays):
    graph, table, params = split(Eat(TINY, rngs=nnx.Rngs(0)), Fixed)
    names = [key.removeprefix("grad/") for key in arrays if key.startswith("grad/")]
    missing = {n: x for n, x in tiny.state.items() if n.endswith(".positions")}
    theirs = convert({name: arrays[f"grad/{name}"] for name in names} | missing, TINY)
    table = {name: theirs.pop(name) for name in table}

    def loss(params):
        tokens = merge(graph, table, params)(arrays["input"][:, 0])
        return (tokens * arrays["grad_projection"]).sum()

    ours = jax.jit(jax.grad(loss))({name: tiny.params[name] for name in params})
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # a key bias adds a constant to all scores of a query: both gradients are rounding noise
        largest = np.abs(gradient).max()
        atol = 1e-4 if name.endswith("attn.k.bias") else 1e-3 * largest
        np.testing.assert_allclose(ours[name], gradient, atol=atol, err_msg=name)


def test_layer_argument_chooses_among_the_stages(tiny, arrays):
    graph, stage = abstract(TINY)[0], {0: "encoder_in", 1: "block_0", 3: "block_2", None: "x"}

    @jax.jit
    def chosen(mel):
        model = merge(graph, tiny.params)
        return [model(mel, layer=layer) for layer in stage]

    for name, found in zip(stage.values(), chosen(arrays["trunc_input"][:, 0]), strict=True):
        np.testing.assert_allclose(found, arrays[f"trunc_{name}"], atol=ATOL)


def test_batch_of_two_equals_two_batches_of_one(tiny, arrays):
    mel, padding = arrays["input"][:, 0], with_class_token(arrays["tokenmask_padding_mask"])
    together = tiny.run(mel, padding)["x"]
    for row in (slice(0, 1), slice(1, 2)):
        alone = tiny.run(mel[row], padding[row])["x"]
        np.testing.assert_allclose(together[row], alone, atol=1e-5)  # order of float32 sums


def test_finetuned_models_of_both_forms_give_the_reference_probabilities(golden, arrays):
    head = dataclasses.replace(TINY, num_classes=7)
    fairseq = torch_file.read(golden / "eat_tiny_finetuned.pt")["model"]
    hugging_face = load_file(golden / "eat_tiny_hf_finetuned.safetensors")
    cases = (fairseq, 1e-6, "ft_logits"), (hugging_face, 1e-5, "ft_logits_hf")
    for state, eps, stored in cases:
        config = dataclasses.replace(head, head_norm_eps=eps)
        params = convert({n.removeprefix("model."): x for n, x in state.items()}, config)
        model = merge(abstract(config)[0], params)
        found = jax.jit(model.classify)(arrays["x"])
        expected = 1 / (1 + np.exp(-arrays[stored].astype(float)))
        np.testing.assert_allclose(found, expected, atol=2e-6)
        # float32 logits are good to 1e-6; the other epsilon would move one of them by 3.5e-6
        logits = np.log(np.asarray(found, float)) - np.log1p(-np.asarray(found, float))
        np.testing.assert_allclose(logits, arrays[stored], atol=2e-6)


# Clips of different lengths


@pytest.fixture(scope="module")
def small():
    return Backbone(SMALL, initialize(SMALL, seed=1))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(0, 0.1, (1, 15000)).astype(np.float32)


@pytest.mark.parametrize("samples", [2800, 5520])
def test_a_clip_gives_the_same_tokens_in_a_longer_row(small, noise, samples):
    """Whatever stands behind it; one patch of time, and one frame more than 32."""
    alone = small(noise[:, :samples])
    longer = small(noise, np.array([samples]))
    # 1e-5: float32 sums over more keys, of which the others have weight 0
    np.testing.assert_allclose(longer[:, : alone.shape[1]], alone, atol=1e-5)
    padding = SMALL.token_padding(noise.shape[1], np.array([samples]))
    assert not padding[0, : alone.shape[1]].any()
    assert padding[0, alone.shape[1] :].all()
    assert not SMALL.token_padding(samples, np.array([samples])).any()


def test_tokens_are_as_many_as_published():
    config = EatConfig.base()
    # seconds: frames and patches of the published rule, without the class token
    for seconds, (frames, patches) in {2: (224, 112), 10: (1024, 512), 18: (1824, 912)}.items():
        samples = seconds * 16000
        shape = jax.eval_shape(config.frontend, jax.ShapeDtypeStruct((1, samples), jnp.float32))
        assert shape.shape == (1, frames, 128)
        assert config.token_count(samples) == 1 + patches
    assert not config.token_padding(160_000, np.array([160_000, 159_900])).any()
    assert config.token_padding(160_000, np.array([32_000])).sum() == 512 - 112


def test_a_clip_longer_than_the_positions_is_refused(small):
    longest = 400 + 160 * (16 * 8 - 1)
    wave = jax.ShapeDtypeStruct((1, longest), jnp.float32)
    assert jax.eval_shape(small.apply, small.params, wave).shape == (1, 65, 32)
    with pytest.raises(InputError, match=r"at most 128 frames.*got 160"):
        small(np.zeros((1, longest + 160), np.float32))
    with pytest.raises(InputError, match="at least 2800 samples"):
        small(np.zeros((1, 2799), np.float32))


def test_patch_grid_is_time_by_band():
    """A patch of the log-mel changes the cell of its own time and band, and no other."""
    model = Eat(SMALL, rngs=nnx.Rngs(0))
    silent = jnp.zeros((1, 64, 128))
    loud = silent.at[0, 16 * 2 + 5, 16 * 3 + 7].set(1.0)
    before, after = (
        patch_grid(model.encoder_input(model.embed_patches(mel))) for mel in (silent, loud)
    )
    assert after.shape == (1, 4, 8, 32)
    changed = np.abs(after - before).max(-1) > 0
    np.testing.assert_array_equal(np.argwhere(changed), [[0, 2, 3]])
    without_token = model.embed_patches(loud)  # as of BEATs
    grid = patch_grid(without_token, extra_tokens=0)
    np.testing.assert_array_equal(np.argwhere(np.abs(grid).max(-1) > 0), [[0, 2, 3]])


# Positions


def test_position_table_equals_the_published_one(arrays):
    table = position_table(768, 8, 768)
    # 1e-4: both come from float32 angles, and each is up to 4e-5 away from float64
    np.testing.assert_allclose(
        table[arrays["pos768_rows"]], arrays["pos768_values"], rtol=0, atol=1e-4
    )


def test_positions_are_no_parameter():
    _, trained, rest = split(Eat(SMALL, train=True, rngs=nnx.Rngs(0)), nnx.Param)
    assert rest.keys() == {"positions"}
    assert "class_token" in trained
    assert rest["positions"].shape == (8 * 8, 32)


# What training drops


def test_drop_path_skips_each_branch_of_each_clip_by_itself():
    config = dataclasses.replace(SMALL, end_drop_path_rate=0.25)
    block = Block(config, drop_path=0.25, attention="auto", dtype=jnp.float32, rngs=nnx.Rngs(0))
    block.attn_path.key[...], block.ffn_path.key[...] = jax.random.split(jax.random.key(1))
    graph, state = nnx.split(block)
    clip, clips, kept = jax.random.normal(jax.random.key(0), (1, 4, 32)), 2000, 0.75

    @jax.jit
    def shares(state):
        """Return which share of the clips skips none, either or both branches."""
        block = nnx.merge(graph, state)
        found = block(jnp.repeat(clip, clips, axis=0), None)
        ends = []
        for first in (0.0, 1 / kept):
            middle = block.attn_norm(clip + first * block.attn(clip, None))
            for second in (0.0, 1 / kept):
                ends.append(block.ffn_norm(middle + second * block.feed_forward(middle)))
        return jnp.array([jnp.mean(jnp.abs(found - end).max((1, 2)) < 1e-4) for end in ends])

    expected = np.outer([1 - kept, kept], [1 - kept, kept]).ravel()
    deviation = (expected * (1 - expected) / clips) ** 0.5  # of a binomial share
    assert (np.abs(shares(state) - expected) < 5 * deviation).all()


def test_drop_path_grows_linearly_over_the_blocks():
    config = dataclasses.replace(TINY, depth=5, start_drop_path_rate=0.1, end_drop_path_rate=0.3)
    model = nnx.eval_shape(lambda: Eat(config, train=True, rngs=nnx.Rngs(0)))
    for name in ("attn_path", "ffn_path"):
        rates = [getattr(block, name).rate for block in model.layers]
        np.testing.assert_allclose(rates, [0.1, 0.15, 0.2, 0.25, 0.3])


SITES = {  # rate: what draws at it
    "dropout_input": ["input_dropout"],
    "attention_dropout": ["layers.0.attn.dropout", "layers.1.attn.dropout"],
    "encoder_dropout": ["layers.0.attn_dropout", "layers.1.attn_dropout"],
    "activation_dropout": [
        f"layers.{i}.{name}_dropout" for i in (0, 1) for name in ("activation", "output")
    ],
    "post_mlp_drop": ["layers.0.ffn_dropout", "layers.1.ffn_dropout"],
    "start_drop_path_rate": ["layers.0.attn_path", "layers.0.ffn_path"],
    "end_drop_path_rate": ["layers.1.attn_path", "layers.1.ffn_path"],
}


@pytest.mark.parametrize("rate", RATES)
def test_each_rate_drops_at_its_sites_and_only_in_training(rate):
    config = dataclasses.replace(SMALL, **{rate: 0.25})
    model = nnx.eval_shape(lambda: config.build(train=True, rngs=nnx.Rngs(0)))
    _, keys, params = split(model, Key)
    assert keys.keys() == {f"{site}.key" for site in SITES[rate]}
    assert params.keys() == abstract(config)[1].keys()  # and no keys for use
    rates = {module.rate for _, module in nnx.iter_modules(model) if isinstance(module, Dropout)}
    assert rates == {0.0, 0.25}
    assert config.without_dropout() == SMALL


def test_every_site_changes_what_comes_out():
    config = dataclasses.replace(SMALL, **dict.fromkeys(RATES, 0.25))
    graph, keys, params = split(config.build(train=True, rngs=nnx.Rngs(0)), Key)
    assert keys.keys() == {f"{site}.key" for sites in SITES.values() for site in sites}
    mel = jax.random.normal(jax.random.key(0), (8, 16, 128))
    run = jax.jit(lambda keys: merge(graph, keys, params)(mel))
    keys, others = (keys_for(sorted(keys), jax.random.key(seed)) for seed in (1, 2))
    before = run(keys)
    for name in keys:
        assert np.abs(run(keys | {name: others[name]}) - before).max() > 1e-3, name


@pytest.mark.parametrize("remat", ["hidden", "layers"])
def test_remat_changes_no_gradient(remat):
    config = dataclasses.replace(SMALL, depth=1)
    mel = jax.random.normal(jax.random.key(0), (1, 16, 128))

    def gradient(remat):
        graph, params = split(Eat(config, remat=remat, rngs=nnx.Rngs(0)))
        loss = lambda params: jnp.square(merge(graph, params)(mel)[:, 0, :5]).sum()  # noqa: E731
        traced = jax.jit(jax.grad(loss)).trace(params)
        products = str(traced.jaxpr).count("dot_general")
        return products, traced.lower().compile()(params)

    (once, plain), (twice, again) = gradient("nothing"), gradient(remat)
    assert twice > once  # those of the forward pass, again
    assert max(np.abs(value).max() for value in plain.values()) > 0.1
    for name, value in plain.items():  # float32, another order of sums
        np.testing.assert_allclose(again[name], value, atol=1e-5, err_msg=name)


# The structure


def test_bfloat16_stays_close_and_keeps_float32_at_the_borders(tiny, arrays):
    graph, expected = abstract(TINY, "bfloat16")
    assert {value.dtype for value in expected.values()} == {jnp.dtype("float32")}
    mel = arrays["input"][:, 0]
    half = jax.jit(lambda params: merge(graph, params)(mel))(tiny.params)
    error = np.asarray(half - tiny.run(mel)["x"])
    assert half.dtype == jnp.float32
    # bfloat16 rounds to 2^-9 = 0.2 %; some ten roundings in a row add up to about 1 % of unit scale
    assert 1e-3 < np.sqrt(np.square(error).mean()) < 0.03


def test_plain_attention_gives_the_same(tiny, arrays):
    graph = split(nnx.eval_shape(lambda: TINY.build(attention="plain", rngs=nnx.Rngs(0))))[0]
    mel, padding = arrays["input"][:, 0], with_class_token(arrays["tokenmask_padding_mask"])
    found = jax.jit(lambda params: merge(graph, params)(mel, padding))(tiny.params)
    np.testing.assert_allclose(found, arrays["tokenmask_x"], atol=ATOL)


def test_published_sizes_and_names():
    base, large = EatConfig.base(), EatConfig.large()
    assert (large.width, large.depth, large.width // large.num_heads) == (1024, 24, 64)
    base = abstract(base)[1]
    assert base.pop("positions").shape == (6144, 768)
    assert weights_file.count(base) == 85_254_144  # of the published file
    # part of the file format, and what LoRA looks for
    for part in ("attn.q", "attn.k", "attn.v", "attn.out", "fc1", "fc2"):
        assert {f"layers.11.{part}.kernel", f"layers.11.{part}.bias"} <= base.keys()


def test_features_leave_the_class_head_out():
    config = dataclasses.replace(SMALL, num_classes=5)
    params = initialize(config)
    structure, kept = config.for_features(params)
    assert (structure, structure.has_classes, config.has_classes) == (SMALL, False, True)
    assert kept.keys() == abstract(SMALL)[1].keys()
    assert params.keys() - kept.keys() == {
        f"{part}" for part in ("head.kernel", "head.bias", "head_norm.scale", "head_norm.bias")
    }


def test_initial_values():
    params = initialize(dataclasses.replace(SMALL, num_classes=3), seed=1)
    for name in ("patch_embed.kernel", "class_token", "layers.1.fc1.kernel"):
        standard_error = 0.02 / (2 * params[name].size) ** 0.5
        assert abs(float(params[name].std()) - 0.02) < 5 * standard_error, name
    for name, value in params.items():
        if name.endswith((".bias", ".scale")):
            assert set(np.unique(value)) == {0.0 if name.endswith("bias") else 1.0}, name


def test_configuration_survives_json():
    config = EatConfig.large(end_drop_path_rate=0.1)
    assert EatConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_impossible_configurations_are_refused_with_every_problem():
    with pytest.raises(InputError) as error:
        EatConfig(
            embed_dim=770,
            num_heads=0,
            patch_size=24,
            depth=-1,
            norm_eps=0.0,
            num_classes=-1,
            dropout_input=1.0,
            end_drop_path_rate=float("nan"),
        )
    for problem in (
        "embed_dim: expected a multiple of 4, got 770",
        "num_heads: expected a divisor of 770, got 0",
        "patch_size: expected a divisor of 128, got 24",
        "depth: expected 1 to 256, got -1",
        "norm_eps: expected a number in (0, 1), got 0.0",
        "num_classes: expected 0 to 100000, got -1",
        "dropout_input: expected a rate in [0, 1), got 1.0",
        "end_drop_path_rate: expected a rate in [0, 1), got nan",
    ):
        assert problem in str(error.value)
