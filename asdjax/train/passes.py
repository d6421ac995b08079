"""Which clips each pass asks for: a function of seed and step number alone, on every host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from asdjax.train.balance import balance
from asdjax.train.batch import Asked
from asdjax.train.config import Train
from asdjax.train.supplement import choose_noise
from asdjax.types import Clip

Ask = Callable[[int], Asked]  # of a step number


def training_passes(
    clips: Sequence[Clip], label: np.ndarray, noise: Sequence[Clip], how: Train
) -> tuple[Ask, str]:
    """Return what the passes of a training ask for, and a line for the console, "" for none.

    Args:
      clips: those trained on.
      label: `[n, label kinds]`, their classes.
      noise: clips to be added to them, numbered behind them.
      how: batch, seed, balance and supplement.
    """
    entries = balance(label, how.balance, how.seed) if how.balance else None
    numbers = order(len(entries.clip if entries else clips), how.batch, how.seed)
    choose = choose_noise(clips, noise, how.supplement.noise, how.seed) if noise else None

    def ask(step: int) -> Asked:
        asked = entries.ask(numbers(step)) if entries else Asked(numbers(step))
        return asked._replace(noise=choose(step, asked.clip)) if choose else asked

    return ask, entries.note(len(clips)) if entries else ""


def one_after_another(count: int, batch: int) -> Ask:
    """Return what the passes of a validation ask for: all clips, then from the first again."""
    return lambda step: Asked((step * batch + np.arange(batch, dtype=np.int32)) % count)


def order(count: int, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """Return `numbers(step) [batch]`: each once in every pass over the set, newly shuffled."""

    @lru_cache(maxsize=2)  # a batch may lie across the end of a pass
    def shuffled(turn: int) -> np.ndarray:
        return np.random.default_rng((seed, turn)).permutation(count).astype(np.int32)

    def numbers(step: int) -> np.ndarray:
        turn, position = np.divmod(step * batch + np.arange(batch), count)
        return np.concatenate(
            [shuffled(t)[position[turn == t]] for t in range(turn[0], turn[-1] + 1)]
        )

    return numbers
