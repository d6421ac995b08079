"""Which class a clip belongs to when a classifier is trained, and which clips are held out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from asdjax.types import HELD_OUT, Clip, InputError, preview, random_numbers

LabelKind = Literal["machine", "attributes"]
MOST_IN_NOTE = 10  # class names in a line on the console


def class_name(clip: Clip, kind: LabelKind) -> str:
    """Return the class of a clip, e.g. "ToyCar section_00" or "ToyCar section_00 car_A1_spd_28V".

    Args:
      clip: any.
      kind: "machine" makes one class of a machine type and section (or ID, in 2020); "attributes"
        one of each attribute string in it, and one of its clips that have none.
    """
    return " ".join(filter(None, _parts(clip, kind)))


def vocabulary(clips: Iterable[Clip], kind: LabelKind) -> tuple[str, ...]:
    """Return the sorted class names of the clips.

    Raises:
      InputError: different classes with one name, or machines that differ only in case or spaces.
    """
    classes = sorted({_parts(clip, kind) for clip in clips})
    names = [" ".join(filter(None, parts)) for parts in classes]
    machines = sorted({machine for machine, _, _ in classes})
    problems = [
        f"classes with the same name {name!r}: {same}; rename a machine's folder or an attribute"
        for name, same in _doubled(names, classes)
    ]
    problems += [
        f"two machines with the same label: {same}; rename one of the folders, or give "
        "both the same name if they are one machine"
        for _, same in _doubled(["".join(m.split()).casefold() for m in machines], machines)
    ]
    if problems:
        raise InputError("\n".join(problems))
    return tuple(sorted(names))


def encode(clips: Sequence[Clip], vocabulary: Sequence[str], kind: LabelKind) -> np.ndarray:
    """Return the position of each clip's class in the vocabulary: `[n]` int32.

    Raises:
      InputError: classes that are not in it.
    """
    index = {name: row for row, name in enumerate(vocabulary)}
    names = [class_name(clip, kind) for clip in clips]
    if unknown := sorted(set(names) - index.keys()):
        raise InputError(
            f"expected clips of the {len(index)} classes {preview(vocabulary, MOST_IN_NOTE)}, got "
            f"{len(unknown)} others: {preview(unknown)}"
        )
    return np.array([index[name] for name in names], np.int32)


def check_classes(clips: Sequence[Clip], kind: LabelKind) -> str:
    """Return a note on classes of a single training clip, "" when there are none.

    Such classes are legitimate: in the challenge some attributes of the target domain occur once.

    Args:
      clips: those trained on.
      kind: of their labels.

    Raises:
      InputError: fewer than 2 classes, or a machine of a single clip.
    """
    counts = Counter(class_name(clip, kind) for clip in clips)
    problems = []
    if len(counts) < 2:
        finer = len({class_name(clip, "attributes") for clip in clips})
        remedy = f'use the labels "attributes" ({finer} classes), or ' if finer >= 2 else ""
        problems.append(
            f"expected at least 2 classes to tell apart, got {len(counts)} by the labels {kind!r} "
            f"({preview(counts) or 'no clips'}); {remedy}add machines"
        )
    machines = Counter(clip.group for clip in clips)
    if lonely := sorted("/".join(group) for group, count in machines.items() if count == 1):
        problems.append(
            f"expected at least 2 training clips of every machine, got 1 of {preview(lonely)}; "
            "add recordings, or remove the machine's folder"
        )
    if problems:
        raise InputError("\n".join(problems))
    single = sorted(name for name, count in counts.items() if count == 1)
    if not single:
        return ""
    return (
        f"{len(single)} of {len(counts)} classes have a single training clip: "
        f"{preview(single, MOST_IN_NOTE)}"
    )


def without_attributes(
    clips: Sequence[Clip], vocabulary: Sequence[str], kind: LabelKind
) -> np.ndarray:
    """Return `[C]` bool: True for the classes with clips of which none has attributes."""
    label = encode(clips, vocabulary, kind)
    described = np.array([bool(clip.attributes) for clip in clips], bool)
    present = np.bincount(label, minlength=len(vocabulary)) > 0
    return present & (np.bincount(label[described], minlength=len(vocabulary)) == 0)


def hold_out(label: np.ndarray, fraction: float, seed: int, least: int = 10) -> np.ndarray:
    """Choose clips of every class that are not trained on, for validation.

    Args:
      label: `[n]` class of each clip.
      fraction: 0 to 0.5; `round(fraction * count)` clips of a class are chosen.
      seed: another one chooses others.
      least: classes with fewer clips keep all of them.

    Returns:
      `[n]` bool, True = held out.
    """
    rng, held = random_numbers(seed, HELD_OUT), np.zeros(len(label), bool)
    for one in np.unique(label):
        rows = np.flatnonzero(label == one)
        if len(rows) >= least:
            held[rng.choice(rows, round(fraction * len(rows)), replace=False)] = True
    return held


def _parts(clip: Clip, kind: LabelKind) -> tuple[str, str, str]:
    return clip.machine, clip.section, clip.attributes if kind == "attributes" else ""


def _doubled(names: Sequence[str], things: Sequence) -> list[tuple[str, str]]:
    """Return each name that several things have, with those things, quoted."""
    having: dict[str, list[str]] = defaultdict(list)
    for name, thing in zip(names, things, strict=True):
        having[name].append(repr(thing))
    return [(name, " and ".join(same)) for name, same in having.items() if len(same) > 1]
