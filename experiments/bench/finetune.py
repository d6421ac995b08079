"""A fine-tuning step to time: where both sides start, what they are given, and our side.

BEATs-base, EAT-base or both as encoders of one system, attentive statistics pooling, a dense layer
to 128, ArcFace of 172 classes, AdamW, no dropout; from int16 waves to updated weights. float32, or
bfloat16 products on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from asdjax.devices import copied, data_mesh
from asdjax.losses.margin import Margin
from asdjax.models.attention import Implementation
from asdjax.models.backbone import Backbone, Structure, initialize
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.layers import Remat
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.models.speech import SpeechConfig
from asdjax.models.system import Architecture, Task
from asdjax.train.batches import Batch
from asdjax.train.config import Train
from asdjax.train.loop import start
from asdjax.train.optimizer import make_optimizer
from asdjax.train.step import make_front_ends, make_step

Kind = Literal["lora", "full"]
SAMPLES, CLASSES = 160_000, 172
LOSS, ADAPTER = Margin(), Lora()
STRUCTURES = {"beats": BeatsConfig.base(), "eat": EatConfig.base(), "hubert": SpeechConfig.base()}
# GFLOP of a clip of 10 s: forward; back to the first layer; adapters. Forward are 24 L D^2 of dense
# and 4 L^2 D of attention in each of 12 layers (L 496 and 513, D 768) and what lies before them;
# back the same, attention twice, without q, k and v of the first layer.
# Of HuBERT (L 499) 48.9 are convolutions, to which nothing flows back: they have no adapter.
BEATS, EAT, HUBERT = (98.5, 100.6, 3.5), (97.0, 104.7, 3.6), (147.9, 101.4, 3.5)
LORA = {
    name: forward + back + 3 * adapters
    for name, (forward, back, adapters) in (("BEATs", BEATS), ("EAT", EAT), ("HuBERT", HUBERT))
}


def encoder(
    kind: Kind,
    structure: Structure,
    dtype: str = "float32",
    eat_attention: Implementation = "auto",
    remat: Remat = "nothing",
    dropout: bool = False,
) -> Pretrained:
    adapter = ADAPTER if kind == "lora" else None
    attention = eat_attention if isinstance(structure, EatConfig) else "auto"
    how = {"dtype": dtype, "attention": attention, "remat": remat, "dropout": dropout}
    return Pretrained(adapter=adapter, **how)


def system(
    kind: Kind,
    structures: Sequence[Structure],
    dtype: str = "float32",
    eat_attention: Implementation = "auto",
    remat: Remat = "nothing",
    dropout: bool = False,
) -> Architecture:
    """Return encoders with random weights, and ArcFace on the embedding.

    With two encoders there is half as much of it on each one's part, too.
    """
    encoders = (encoder(kind, one, dtype, eat_attention, remat, dropout) for one in structures)
    networks = tuple(
        made.network_of(Backbone(one, initialize(one)))
        for made, one in zip(encoders, structures, strict=True)
    )
    whole = Task(LOSS, (1,) * CLASSES)
    parts = range(len(structures)) if len(structures) > 1 else ()
    return Architecture(networks, (whole, *(whole._replace(weight=0.5, branch=i) for i in parts)))


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 waves `[B, 160000]` and labels `[B]`."""
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.standard_normal((batch, SAMPLES))
    return np.round(32_767 * wave.clip(-1, 1)).astype(np.int16), rng.integers(CLASSES, size=batch)


def step(
    kind: Kind,
    structures: Sequence[Structure],
    batch: int,
    dtype: str,
    eat_attention: Implementation = "auto",
) -> Callable[[], float]:
    """Return a function that does one training step on the same batch and returns its loss."""
    how, mesh = Train(batch=batch), data_mesh(jax.devices()[:1])
    made = system(kind, structures, dtype, eat_attention)
    parts = made.parts(train=True)
    optimizer = make_optimizer(how.optimizer, parts.trainable, how.steps)
    statistics, trainable, frozen = made.initialize(seed=0)
    state = start(statistics, trainable, optimizer, how)
    state, frozen = jax.device_put((state, frozen), copied(mesh))
    front_ends = make_front_ends(made.networks, mesh, padded=False)
    one_step = make_step(parts, front_ends, lambda _, sent: Batch(*sent), how, optimizer, SAMPLES)
    wave, label = inputs(batch)
    sent = wave, np.full(batch, SAMPLES, np.int32), label[:, None].astype(np.int32)
    sent = jax.device_put(sent)  # as PyTorch's, which lie on the device as well

    def one() -> float:
        nonlocal state
        state, metrics = one_step(state, frozen, (), sent)
        return float(metrics["loss"])

    return one
