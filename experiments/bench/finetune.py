"""A fine-tuning step to time: where both sides start, what they are given, and our side.

BEATs-base, EAT-base or both as branches of one system, attentive statistics pooling, a dense layer
to 128, ArcFace of 172 classes, AdamW, no dropout; from int16 waves to updated weights. float32, or
bfloat16 products on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import jax
import numpy as np

from asdjax.devices import copied, data_mesh
from asdjax.losses.margin import Margin
from asdjax.models.attention import Implementation
from asdjax.models.backbone import Structure
from asdjax.models.backbone import initialize as initialize_backbone
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.heads import Task
from asdjax.models.lora import Lora
from asdjax.models.system import Branch, Trained, initialize, take_apart
from asdjax.train.config import Train
from asdjax.train.loop import start
from asdjax.train.optimizer import make_optimizer
from asdjax.train.step import Batch, make_hear, make_step

Kind = Literal["lora", "full"]
SAMPLES, CLASSES = 160_000, 172
LOSS, ADAPTER = Margin(), Lora()
STRUCTURES = {"beats": BeatsConfig.base(), "eat": EatConfig.base()}


def config_of(
    kind: Kind,
    structures: Sequence[Structure],
    dtype: str = "float32",
    eat_attention: Implementation = "auto",
) -> Trained:
    adapter = ADAPTER if kind == "lora" else None
    branch = Branch(adapter=adapter, dropout=False, dtype=dtype)
    kernels = {EatConfig: eat_attention, BeatsConfig: "auto"}
    return Trained(tuple(replace(branch, attention=kernels[type(s)]) for s in structures))


def tasks(structures: Sequence[Structure]) -> list[Task]:
    """Return ArcFace on the embedding, and with two branches half as much on each, too."""
    whole = Task(LOSS, np.ones(CLASSES, int))
    parts = range(len(structures)) if len(structures) > 1 else ()
    return [whole, *(whole._replace(weight=0.5, branch=i) for i in parts)]


def initial(kind: Kind, structures: Sequence[Structure]) -> tuple[dict, dict, dict]:
    """Return statistics, trainable and frozen weights by our names: where both sides start."""
    bases = [initialize_backbone(one) for one in structures]
    return initialize(config_of(kind, structures), structures, tasks(structures), bases, seed=0)


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
    config = config_of(kind, structures, dtype, eat_attention)
    parts = take_apart(config, structures, tasks(structures), train=True)
    optimizer = make_optimizer(how.optimizer, parts.trainable, how.steps)
    statistics, trainable, frozen = initial(kind, structures)
    state = start(statistics, trainable, optimizer, how)
    state, frozen = jax.device_put((state, frozen), copied(mesh))
    hear = make_hear(structures, mesh, padded=False)
    one_step = make_step(parts, hear, lambda _, sent: Batch(*sent), how, optimizer, SAMPLES)
    wave, label = inputs(batch)
    sent = wave, np.full(batch, SAMPLES, np.int32), label[:, None].astype(np.int32)
    sent = jax.device_put(sent)  # as PyTorch's, which lie on the device as well

    def one() -> float:
        nonlocal state
        state, metrics = one_step(state, frozen, (), sent)
        return float(metrics["loss"])

    return one
