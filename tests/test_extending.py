"""A new loss, scorer, encoder and backbone: a file of its own each, and one word in a union.

All four go through the public stages: train, embed, score, report.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from trainings import lines, small_system, two_machines

from asdjax import losses, models, scoring
from asdjax.metrics import score_files
from asdjax.models import backbone, weights_file
from asdjax.models.pretrained import Pretrained
from asdjax.models.system import Input, Network
from asdjax.stages import folder, stages
from asdjax.train.config import HeadConfig

FAN = ("fan", "section_00")


@dataclass(frozen=True)
class Prototypes:
    """Softmax over negative squared distances to one prototype for each class."""

    sharpness: float = 2.0

    has_classes = True

    def center_counts(self, without_attributes):
        return np.ones(len(without_attributes), int)

    def head(self, width, counts, *, train, rngs):
        return PrototypesHead(self.sharpness, (len(counts), width), rngs)


class PrototypesHead(nnx.Module):
    def __init__(self, sharpness, shape, rngs):
        self.sharpness = sharpness
        self.prototypes = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.seen = nnx.BatchStat(jnp.zeros(()))  # clips so far: changed without a gradient

    def __call__(self, embedding, label, weight):
        self.seen[...] = self.seen[...] + len(embedding)
        away = jnp.square(embedding[:, None] - self.prototypes[...][None]).sum(-1)
        each = -jax.nn.log_softmax(-self.sharpness * away)  # [B, C]
        return (weight * jnp.take_along_axis(each, label, 1)).sum(1), -away


@dataclass(frozen=True)
class Middle:
    """Distance to the mean of the training clips, to a power."""

    power: float = 1.0

    def fit(self, train, note):
        note(f"{len(train)} means")
        means = [own.values.mean(0) for own in train]

        def away(rows, mean):
            return np.linalg.norm(rows - mean, axis=1) ** self.power

        def score(test):
            return [away(own.values, mean) for own, mean in zip(test, means, strict=True)]

        def left_out():
            found = []
            for own, mean in zip(train, means, strict=True):
                count = len(own.values)
                found.append(away(own.values, (count * mean - own.values) / (count - 1)))
            return found

        return score, left_out


@dataclass(frozen=True)
class Zeroes:
    """An encoder: how often the wave changes its sign in each part, times a factor each."""

    parts: int = 4

    weights, needs_training, one_length, shortest_samples = "", True, True, 400

    def network(self, samples):
        def front_end(wave, lengths=None):
            sign = jnp.sign(wave.astype(jnp.float32))
            changes = (sign[:, 1:] != sign[:, :-1])[:, : (samples - 1) // self.parts * self.parts]
            return Input(changes.reshape(len(wave), self.parts, -1).mean(-1))

        def build(*, train, adapted, rngs):
            return Factors(self.parts, rngs)

        return Network(front_end, build, self.parts)


class Factors(nnx.Module):
    def __init__(self, width, rngs):
        self.factors = nnx.Param(jax.random.normal(rngs.params(), (width,)))

    def __call__(self, given):
        return given.x * self.factors[...][None]


@dataclass(frozen=True)
class Chunks:
    """A backbone: chunks of the wave, each through one matrix."""

    chunk: int = 800
    width: int = 8

    kinds = ("chunks",)
    layers_count, bands, extra_tokens, has_classes = 1, 1, 0, False

    @property
    def shortest_samples(self):
        return self.chunk

    def frontend(self, wave, lengths=None):
        wave = wave.astype(jnp.float32)[:, : self.token_count(wave.shape[1]) * self.chunk]
        return wave.reshape(len(wave), -1, self.chunk)

    def clip_bytes(self, samples, attention="auto"):
        return 16 * samples

    def token_count(self, samples):
        return samples // self.chunk

    def token_padding(self, samples, lengths):
        return jnp.arange(self.token_count(samples))[None] * self.chunk >= lengths[:, None]

    def for_features(self, params):
        return self, params

    def without_dropout(self):
        return self

    def build(self, *, rngs, dtype=None, train=False, remat=False, attention="auto"):
        return ChunksModule(self, rngs)


class ChunksModule(nnx.Module):
    def __init__(self, config, rngs):
        self.q = nnx.Linear(config.chunk, config.width, use_bias=False, rngs=rngs)

    def __call__(self, x, padding=None, layer=None):
        return jnp.abs(self.q(x))


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Iterator[Path]:
    """A complete run, but for its figures, with all; they are in their unions while it is used."""
    root = tmp_path_factory.mktemp("extended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "Loss", losses.Loss | Prototypes)
        patch.setattr(scoring, "Scorer", scoring.Scorer | Middle)
        patch.setattr(models, "Encoder", models.Encoder | Zeroes)
        patch.setattr(backbone, "Structure", backbone.Structure | Chunks)
        patch.setattr(stages.figures, "write", lambda *_: None)
        chunks = Chunks(width=4)
        header = weights_file.Header("chunks", asdict(chunks))
        weights_file.save(root / "chunks.safetensors", backbone.initialize(chunks), header)
        pretrained = Pretrained(str(root / "chunks.safetensors"), pooling="mean", embedding=4)
        heads = (HeadConfig(Prototypes(0.5), "attributes"),)
        system = small_system(
            encoders=(pretrained, Zeroes(4)), scorer=Middle(0.5), heads=heads, steps=80, log_every=1
        )
        results = stages.run(system, two_machines(root / "data"), root / "run")
        assert "official_score" in {metric.metric for metric in results}
        yield root / "run"


def test_a_new_loss_trains(ran):
    trained = weights_file.load(ran / folder.MODEL).arrays
    assert trained["heads.0.prototypes"].shape == (4, 8)
    how = folder.load(ran).system.train
    assert trained["heads.0.seen"] == how.steps * how.batch
    loss = [line["loss"] for line in lines(ran)]
    assert len(loss) == how.steps
    assert np.mean(loss[-10:]) < 0.9 * np.mean(loss[:10])


def test_a_new_encoder_and_a_new_backbone_train_side_by_side(ran):
    trained = weights_file.load(ran / folder.MODEL).arrays
    made = folder.load(ran)
    assert made.system.encoders[1] == Zeroes(4)
    assert trained["branches.0.backbone.q.kernel"].shape == (800, 4)
    start = weights_file.load(made.system.encoders[0].weights).arrays["q.kernel"]
    assert np.abs(trained["branches.0.backbone.q.kernel"] - start).max() > 1e-3
    assert folder.load_embeddings(ran, made, FAN).values.shape[1] == 8


def test_a_new_scorer_scores_and_is_recorded(ran, capsys):
    made = folder.load(ran)
    assert made.system.scorer == Middle(0.5)
    assert made.system.train.heads[0].loss == Prototypes(0.5)
    values = folder.load_embeddings(ran, made, FAN)
    train, test = values.select("train"), values.select("test")
    away = np.linalg.norm(test.values - train.values.mean(0), axis=1) ** 0.5
    for power, scorer in ((1, None), (2, Middle())):
        stages.score(ran, scorer)
        scores = score_files.load(ran / folder.SCORES)
        (fan,) = [file for file in scores if (file.machine, file.section) == FAN]
        np.testing.assert_allclose(fan.values, away**power, rtol=1e-5)  # float32 means
        assert "2 means" in capsys.readouterr().err
    assert folder.load(ran).system.scorer == Middle()


def test_the_command_line_has_a_subcommand_for_it(ran, monkeypatch, capsys):
    from asdjax.__main__ import dispatch

    dispatch(["score", str(ran), "middle", "--power", "2"])
    assert folder.load(ran).system.scorer == Middle(2.0)
