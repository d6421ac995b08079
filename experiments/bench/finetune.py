"""A fine-tuning step to time: where both sides start, what they are given, and our side.

BEATs-base, attentive statistics pooling, a dense layer to 128, ArcFace of 172 classes, AdamW, no
dropout; from int16 waves to updated weights. float32, or bfloat16 products on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from asdjax.devices import copied, data_mesh
from asdjax.losses.margin import Margin
from asdjax.models.backbone import initialize as initialize_backbone
from asdjax.models.beats import BeatsConfig
from asdjax.models.lora import Lora
from asdjax.models.system import Branch, FineTuned, Task, initialize, take_apart
from asdjax.train.config import Train
from asdjax.train.loop import start
from asdjax.train.optimizer import make_optimizer
from asdjax.train.step import Batch, make_hear, make_step

Kind = Literal["lora", "full"]
SAMPLES, CLASSES = 160_000, 172
LOSS, ADAPTER = Margin(), Lora()
TASKS = [Task(LOSS, np.ones(CLASSES, int))]


def config_of(kind: Kind, dtype: str = "float32") -> FineTuned:
    adapter = ADAPTER if kind == "lora" else None
    return FineTuned((Branch(adapter=adapter, dropout=False, dtype=dtype),))


def initial(kind: Kind, structure: BeatsConfig) -> tuple[dict, dict, dict]:
    """Return statistics, trainable and frozen weights by our names: where both sides start."""
    base = initialize_backbone(structure)
    return initialize(config_of(kind), [structure], TASKS, [base], seed=0)


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 waves `[B, 160000]` and labels `[B]`."""
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.standard_normal((batch, SAMPLES))
    return np.round(32_767 * wave.clip(-1, 1)).astype(np.int16), rng.integers(CLASSES, size=batch)


def step(kind: Kind, batch: int, dtype: str) -> Callable[[], float]:
    """Return a function that does one training step on the same batch and returns its loss."""
    structure, how, mesh = BeatsConfig.base(), Train(batch=batch), data_mesh(jax.devices()[:1])
    parts = take_apart(config_of(kind, dtype), [structure], TASKS, train=True)
    optimizer = make_optimizer(how.optimizer, parts.trainable, how.steps)
    statistics, trainable, frozen = initial(kind, structure)
    state = start(statistics, trainable, optimizer, how)
    state, frozen = jax.device_put((state, frozen), copied(mesh))
    hear = make_hear([structure], mesh, padded=False)
    one_step = make_step(parts, hear, lambda _, sent: Batch(*sent), how, optimizer, SAMPLES)
    wave, label = inputs(batch)
    sent = wave, np.full(batch, SAMPLES, np.int32), label[:, None].astype(np.int32)
    sent = jax.device_put(sent)  # as PyTorch's, which lie on the device as well

    def one() -> float:
        nonlocal state
        state, metrics = one_step(state, frozen, (), sent)
        return float(metrics["loss"])

    return one
