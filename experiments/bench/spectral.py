"""A training step of the two spectral networks to time: start, and our side.

Midea's network: `ConvNet1d` on the spectrum and `ResNet` on the spectrogram, both with CBAM, a
softmax over scaled cosines to 172 classes, Adam; from int16 waves to updated weights. float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from finetune import CLASSES, SAMPLES, inputs

from asdjax.devices import copied, data_mesh
from asdjax.losses.margin import Margin
from asdjax.models.spectral import ConvNet1d, ResNet
from asdjax.models.system import Architecture, Task
from asdjax.train.batches import Batch
from asdjax.train.config import Train
from asdjax.train.loop import start
from asdjax.train.optimizer import Optimizer, Schedule, make_optimizer
from asdjax.train.step import make_front_ends, make_step

LEARNING_RATE, SCALE = 1e-3, 30.0
OPTIMIZER = Optimizer("adam", Schedule("constant", LEARNING_RATE))
ENCODERS = ConvNet1d(cbam=True), ResNet(cbam=True)
TASK = Task(Margin("softmax", scale=SCALE), (1,) * CLASSES)
SYSTEM = Architecture(tuple(encoder.network(SAMPLES) for encoder in ENCODERS), (TASK,))


def initial() -> tuple[dict, dict, dict]:
    """Return statistics, trainable and no frozen weights: where both sides start."""
    return SYSTEM.initialize(seed=0)


def step(batch: int) -> Callable[[], float]:
    """Return a function that does one training step on the same batch and returns its loss."""
    how = Train(batch=batch, optimizer=OPTIMIZER)
    mesh = data_mesh(jax.devices()[:1])
    parts = SYSTEM.parts(train=True)
    optimizer = make_optimizer(how.optimizer, parts.trainable, how.steps)
    statistics, trainable, frozen = initial()
    state = start(statistics, trainable, optimizer, how)
    state, frozen = jax.device_put((state, frozen), copied(mesh))
    front_ends = make_front_ends(SYSTEM.networks, mesh, padded=False)
    one_step = make_step(parts, front_ends, lambda _, sent: Batch(*sent), how, optimizer, SAMPLES)
    wave, label = inputs(batch)
    sent = wave, np.full(batch, SAMPLES, np.int32), label[:, None].astype(np.int32)
    sent = jax.device_put(sent)  # as PyTorch's, which lie on the device as well

    def one() -> float:
        nonlocal state
        state, metrics = one_step(state, frozen, (), sent)
        return float(metrics["loss"])

    return one
