"""Systems with networks that are trained from scratch: alone, and beside a backbone."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from machines import tiny_eat
from trainings import small_system, two_machines

from asdjax.config import SystemConfig, from_json, to_json
from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.losses.contrastive import Contrastive, contrastive_loss
from asdjax.models import weights_file
from asdjax.models.pretrained import Pretrained
from asdjax.models.spectral import ConvNet1d, ResNet
from asdjax.models.system import Architecture, Input, Perturbation
from asdjax.models.weights_file import merge
from asdjax.scoring.centers import Centers
from asdjax.stages import folder, stages
from asdjax.train.config import HeadConfig, Train
from asdjax.types import InputError

SAMPLES = 6400  # 0.4 s, the clips of `small_system`
SPECTRUM = ConvNet1d(embedding=6, channels=4)
SPECTROGRAM = ResNet(embedding=4, channels=2, blocks=1)
DUAL = (SPECTRUM, SPECTROGRAM)
NETWORKS = tuple(encoder.network(SAMPLES) for encoder in DUAL)


def inputs(batch: int = 3) -> list[Input]:
    wave = 0.1 * np.random.default_rng(0).standard_normal((batch, SAMPLES), np.float32)
    return [network.front_end(jnp.asarray(wave), None) for network in NETWORKS]


def values(perturbation: int = 0) -> list[np.ndarray]:
    """Return what a system gives for the inputs, and what each of its encoders gives alone."""
    built = Architecture(NETWORKS, (), perturbation)
    graph = built.parts(train=False).graph

    @jax.jit
    def values(params):
        system, given = merge(graph, *params), inputs()
        own = [branch(x) for branch, x in zip(system.branches, given, strict=True)]
        joint = jnp.concatenate(own, -1)
        return system(given), joint if perturbation == 0 else system.perturbation(joint), *own

    return jax.device_get(values(built.initialize(seed=0)))


def test_the_embedding_is_those_of_all_encoders():
    (whole, _, *own), part = values(), Architecture(NETWORKS).part
    assert whole.shape == (3, 10)
    for i, alone in enumerate(own):
        np.testing.assert_array_equal(whole[:, part(i)], alone)
    assert (part(0), part(1), part(None)) == (
        slice(0, 6),
        slice(6, 10),
        slice(0, 10),
    )


def test_the_perturbation_is_two_layers_and_norms_behind_the_relu():
    head = Perturbation(6, 4, train=True, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    expected = x
    for layer in (head.down, head.up):
        expected = np.maximum(expected @ np.asarray(layer.kernel) + np.asarray(layer.bias), 0)
        expected = (expected - expected.mean(0)) / np.sqrt(expected.var(0) + 1e-5)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(head(jnp.asarray(x)), expected, atol=1e-5)  # float32


def test_the_perturbed_embedding_is_the_one_that_is_used():
    whole, perturbed, *own = values(perturbation=5)
    np.testing.assert_array_equal(whole, perturbed)
    assert np.abs(whole[:, :6] - own[0]).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-6)  # float32


def test_the_contrastive_head_takes_a_mixed_clip_for_its_own_class():
    head = Contrastive(0.1).head(3, (), train=True, rngs=nnx.Rngs(0))
    embedding = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    label, weight = jnp.array([[0, 1], [0, 0], [1, 0], [1, 1]]), jnp.full((4, 2), 0.5)
    loss, cosine = head(embedding, label, weight)
    assert cosine is None
    expected = contrastive_loss(embedding, jnp.array([0, 0, 1, 1]), temperature=0.1)
    np.testing.assert_array_equal(loss, expected)
    assert np.ptp(np.asarray(loss)) > 0


def test_nothing_of_a_spectral_network_is_frozen_and_its_norms_are_statistics():
    parts = Architecture(NETWORKS).parts(train=True)
    assert not parts.frozen
    assert not parts.keys
    assert "branches.0.network.norms.3.var" in parts.statistics
    assert "branches.1.network.input_norm.mean" in parts.statistics
    assert all(name.endswith((".mean", ".var")) for name in parts.statistics)


def test_a_network_for_one_length_needs_to_know_it():
    assert NETWORKS[0].params == {}
    with pytest.raises(InputError, match=r"expected audio.seconds, got none.*--audio.seconds"):
        SystemConfig(DUAL, train=Train())
    with pytest.raises(InputError, match="perturbation: expected >= 0"):
        Train(perturbation=-1)
    heads = (HeadConfig(AdaCos(2), branch_weights=(1.0, 1.0)),)
    with pytest.raises(InputError, match="no branch_weights with a perturbation"):
        SystemConfig(DUAL, audio=Audio(0.4), train=Train(heads=heads, perturbation=4))
    with pytest.raises(InputError, match="at least one that separates classes"):
        Train(heads=(HeadConfig(Contrastive()),))
    with pytest.raises(InputError, match="classes for branch_weights and subcenters"):
        HeadConfig(Contrastive(), subcenters=(("fan", 2),))


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A complete run, but for its figures, of a backbone beside two spectral networks."""
    root = tmp_path_factory.mktemp("spectral")
    small = small_system(tiny_eat(root / "tiny.safetensors"))
    heads = (HeadConfig(AdaCos(2), "machine"), HeadConfig(Contrastive(), "machine"))
    augment = Augment(mask=20, mixup=1.0, mixup_alpha=0.5, mixup_on="wave", warp=0.5)
    system = replace(
        small,
        encoders=(*small.encoders, *DUAL),
        train=replace(small.train, heads=heads, augment=augment, ema=0.9, perturbation=5),
        scorer=Centers(count=3, starts=2),
    )
    assert from_json(to_json(system)) == system
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.figures, "write", lambda *_: None)
        results = stages.run(system, two_machines(root / "data"), root / "run")
    assert "official_score" in {metric.metric for metric in results}
    return root / "run"


def test_any_spectral_network_stands_beside_any_backbone(ran):
    trained = weights_file.load(ran / folder.MODEL).arrays
    parts = {name.split(".network.")[0] for name in trained if ".network." in name}
    assert parts == {"branches.1", "branches.2"}
    assert {name.split(".")[0] for name in trained} == {"branches", "heads", "perturbation"}
    assert not [name for name in trained if name.startswith("heads.1")]  # the contrastive one
    made = folder.load(ran)
    values = folder.load_embeddings(ran, made, ("fan", "section_00")).values
    assert values.shape == (20, 8 + 6 + 4)
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-5)  # perturbed


def test_a_trained_network_is_used_with_the_statistics_it_ends_with(ran):
    """Averaged like the weights, they are neither those of the start nor those of a batch."""
    trained = weights_file.load(ran / folder.MODEL).arrays
    for name in ("branches.1.network.norms.0", "branches.2.network.input_norm"):
        mean, variance = trained[f"{name}.mean"], trained[f"{name}.var"]
        assert np.any(mean)
        assert np.all(variance > 0)
        assert not np.allclose(variance, 1)


def test_widths_may_differ_and_backbones_keep_their_names(tmp_path):
    system = small_system(tmp_path / "a.safetensors")
    encoders = Pretrained("a", embedding=3), SPECTRUM, Pretrained("b", embedding=5)
    mixed = replace(system, encoders=encoders)
    assert mixed.backbones == ("a", "b")
    assert mixed.with_backbones({"b": "c"}).backbones == ("a", "c")
    tiny = tiny_eat(tmp_path / "tiny.safetensors")
    own = mixed.with_backbones({"a": str(tiny), "b": str(tiny)})
    part = Architecture(tuple(encoder.network(SAMPLES) for encoder in own.encoders)).part
    assert [part(i) for i in range(3)] == [slice(0, 3), slice(3, 9), slice(9, 14)]
