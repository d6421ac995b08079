"""Training of the official baseline's autoencoders to time: what both sides are given, our side.

Every side trains on batches of 256 vectors out of random frames that lie on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import optax

from asdjax.baseline.training import Frames, for_all, make_batches, start, train_epoch

FRAMES, BATCH, GFLOP = 50_000, 256, 0.369  # of a step


def frames() -> np.ndarray:
    """Return `[F, 128]`: what every side trains on."""
    return np.random.default_rng(0).normal(-40, 5, (FRAMES, 128)).astype(np.float32)


def train(machines: int, steps: int, at_once: bool) -> Callable[[], np.ndarray]:
    """Return a function that trains from the start, all machines at once or one after the other.

    It returns the mean error of each machine `[M]`.
    """
    adam, names = optax.adam(1e-3), list(map(str, range(machines)))
    own = dict.fromkeys(names, np.arange(BATCH * steps, dtype=np.int32))
    states = dict.fromkeys(names, start(adam, 0, steps))
    stored = Frames(frames(), np.zeros(FRAMES, bool))
    stored, batches = jax.device_put((stored, make_batches(own, BATCH, (0, 1))))
    epoch = for_all(partial(train_epoch, adam))
    parts = [names] if at_once else [[name] for name in names]
    calls = [({n: states[n] for n in part}, {n: batches[n] for n in part}) for part in parts]

    def run() -> np.ndarray:
        found: dict[str, np.ndarray] = {}
        for given in calls:
            for name, state in epoch(stored, *given).items():
                found[name] = np.asarray(state.losses).mean()
        return np.array([found[name] for name in names])

    return run
