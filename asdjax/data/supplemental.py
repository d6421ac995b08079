"""Which supplemental clips of 2025 (clean recordings, or noise without the machine) there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from asdjax.types import Clip, DataSet, InputError, preview


def supplemental(dataset: DataSet, kinds: Collection[str]) -> tuple[tuple[Clip, ...], list[str]]:
    """Return the supplemental clips of some kinds, and lines for the console.

    Args:
      dataset: all clips.
      kinds: of "clean" and "noise", those that training asks for.

    Raises:
      InputError: there is no such clip at all.
    """
    every = dataset.select("supplemental")
    chosen = tuple(clip for clip in every if clip.supplement in kinds)
    asked = " or ".join(kinds)
    if not chosen:
        got = Counter(clip.supplement for clip in every)
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(got.items())) or "none"
        raise InputError(
            f"expected supplemental clips ({asked}) in {dataset.root}/*/supplemental, as "
            f"train.supplement asks for, got {found}; complete the data, or leave "
            "--train.supplement out"
        )
    counts = Counter((clip.machine, clip.supplement) for clip in chosen)
    lines = [
        f"{count} {kind} supplemental clips of {machine}"
        for (machine, kind), count in sorted(counts.items())
    ]
    machines = {clip.machine for clip in dataset.clips}
    if without := sorted(machines - {machine for machine, _ in counts}):
        lines.append(f"no {asked} supplemental clip of {preview(without)}: left as they are")
    if unknown := [clip.name for clip in every if clip.supplement == "unknown"]:
        lines.append(
            f"{len(unknown)} supplemental clips left out, whose names say neither machine nor "
            f"noise: {preview(unknown, 3)}"
        )
    return chosen, lines
