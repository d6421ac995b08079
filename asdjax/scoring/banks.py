"""Which training clips of a machine are compared with together, and the smallest score of several.

A bank is a machine and some rows of its training clips. A machine may have several; its clips then
get the smallest score over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asdjax.types import Embeddings, InputError

Bank = tuple[int, np.ndarray]  # the machine's place in the list, rows of its training clips
SMALLEST = 1e-12  # length below which a row counts as zero


def name(machine: Embeddings) -> str:
    """Return machine/section, for messages."""
    return "/".join(machine.clips[0].group)


def banks(train: Sequence[Embeddings], how: str) -> list[Bank]:
    """Return the banks of all machines: of all clips ("pooled"), or one per "domain"."""
    return [(g, rows) for g, machine in enumerate(train) for rows in _rows(machine, how)]


def _rows(train: Embeddings, how: str) -> list[np.ndarray]:
    domains = np.array([clip.domain or "" for clip in train.clips])
    if how == "pooled":
        return [np.arange(len(domains))]
    return [np.flatnonzero(domains == domain) for domain in np.unique(domains)]


def split_target(train: Sequence[Embeddings]) -> tuple[list[Bank], list[Bank]]:
    """Return the banks of clips that are not of the target domain, and those of clips that are."""
    is_target = [np.array([clip.domain == "target" for clip in m.clips], bool) for m in train]
    others = [(g, np.flatnonzero(~target)) for g, target in enumerate(is_target)]
    targets = [(g, np.flatnonzero(target)) for g, target in enumerate(is_target)]
    return [bank for bank in others if len(bank[1])], [bank for bank in targets if len(bank[1])]


def smallest(scores: Sequence[np.ndarray], of: Sequence[Bank]) -> list[np.ndarray]:
    """Return per machine the smallest scores `[n]` over its banks."""
    machines = [g for g, _ in of]
    found = {g: [s for s, m in zip(scores, machines, strict=True) if m == g] for g in machines}
    return [np.min(found[g], 0) for g in sorted(found)]


def unit(values: np.ndarray) -> np.ndarray:
    """Return rows `[n, E]` divided by their length; zeros stay zeros."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), SMALLEST)


def unit_rows(machines: Sequence[Embeddings]) -> list[Embeddings]:
    return [replace(machine, values=unit(machine.values)) for machine in machines]


def refuse_not_finite(train: Sequence[Embeddings], test: Sequence[Embeddings]) -> None:
    """Raise InputError naming the machines whose embeddings hold infinities or nan."""
    bad = []
    for machines in (train, test):
        for machine in machines:
            wrong = int((~np.isfinite(machine.values)).any(1).sum())
            if wrong:
                clips = f"{wrong} of {len(machine.clips)} {machine.clips[0].split} clips"
                bad.append(f"{name(machine)} ({clips})")
    if bad:
        raise InputError(
            f"expected finite embeddings, got others of {', '.join(bad)}; a training that diverged "
            "gives such: lower its learning rate"
        )
