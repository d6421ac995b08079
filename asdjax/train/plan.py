"""What a training run will do, decided on the host before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from asdjax.data.labels import (
    check_classes,
    class_name,
    encode,
    hold_out,
    vocabulary,
    without_attributes,
)
from asdjax.frontend.augment import Augment
from asdjax.models.system import Network, Task
from asdjax.train import optimizer
from asdjax.train.config import HeadConfig, Train
from asdjax.types import Clip, InputError, Reported, counted, preview


class Plan(NamedTuple):
    """Classes, what every head does with them, and which clips train and which validate."""

    how: Train  # with a batch that these clips can fill
    classes: tuple[tuple[str, ...], ...]  # per kind of labels: one for each of `Train.heads`
    tasks: tuple[Task, ...]  # of the heads
    label: np.ndarray  # [n, label kinds] int32
    held_out: np.ndarray  # [n] bool
    notes: tuple[str, ...]


def make_plan(config: Train, clips: Sequence[Clip]) -> Plan:
    """Give every training clip its classes.

    Args:
      clips: normal training clips.

    Raises:
      InputError: no two classes, one name for two machines, a machine of one clip, a batch that
        does not divide over the devices, a warm-up longer than the run, nothing held out to choose
        the best weights by.
    """
    optimizer.check_length(config.optimizer, config.steps)
    classes, labels, tasks, notes = [], [], [], []
    for i, head in enumerate(config.heads):
        names = vocabulary(clips, head.labels)
        label = encode(clips, names, head.labels)
        notes.append(check_classes(clips, head.labels))
        classes.append(names)
        labels.append(label)
        notes += unknown_in_table(head, clips, names)
        task = Task(head.loss, center_counts(head, clips, names), i, head.weight)
        parts = enumerate(head.branch_weights)
        tasks += [task, *(task._replace(weight=weight, branch=b) for b, weight in parts)]
    held_out = hold_out(_together(labels), config.held_out, config.seed)
    if config.select == "best" and not held_out.any():
        raise InputError(
            'expected clips to hold out with train.select "best", got none: no class has 10 '
            "training clips or held_out is too small; set --train.select last"
        )
    config, line = _fitting(config, int((~held_out).sum()))
    notes.append(line)
    return Plan(
        config,
        tuple(classes),
        tuple(tasks),
        np.stack(labels, 1),
        held_out,
        tuple(filter(None, notes)),
    )


def beside(reported: Reported, plan: Plan, clips: Sequence[Clip]) -> list[str]:
    """Return lines that set a report's numbers beside those here, where they differ."""
    machines, classes = {clip.machine for clip in clips}, max(map(len, plan.classes))
    lines = []
    if len(machines) < reported.machines:
        lines.append(
            f"{counted(len(machines), 'machine type')} to train on; the development and "
            f"additional sets of the report's year have {reported.machines} "
            "(`asdjax data fetch --part all`)"
        )
    if reported.classes and classes != reported.classes:
        lines.append(f"{classes:,} classes; the report has {reported.classes}")
    return lines


def refuse_for_waves(how: Augment, networks: Sequence[Network]) -> None:
    """Refuse what changes inputs that have time and frequency, where an encoder is given waves."""
    if not any(network.wave for network in networks):
        return
    if how.mask:
        raise InputError(
            f"train.augment.mask: expected 0, got {how.mask}: a speech model is given the wave, "
            "which has no frequencies to mask; set --train.augment.mask 0"
        )
    if how.mixup and how.mixup_on == "input":
        raise InputError(
            "train.augment.mixup_on: expected wave, got input: a speech model is given the wave; "
            "set --train.augment.mixup-on wave"
        )


def center_counts(head: HeadConfig, clips: Sequence[Clip], names: Sequence[str]) -> tuple[int, ...]:
    """Return the centers of each class; in the head's table a class comes before its machine."""
    if not head.loss.has_classes:
        return ()
    counts = head.loss.center_counts(without_attributes(clips, names, head.labels))
    table = dict(head.subcenters)
    machine = {class_name(clip, head.labels): clip.machine for clip in clips}
    return tuple(
        table.get(name, table.get(machine[name], count))
        for name, count in zip(names, counts.tolist(), strict=True)
    )


def unknown_in_table(head: HeadConfig, clips: Sequence[Clip], names: Sequence[str]) -> list[str]:
    """Return a note on what a head's table lists and the recordings do not have, or nothing."""
    known = {*names, *(clip.machine for clip in clips)}
    unknown = [name for name, _ in head.subcenters if name not in known]
    return [f"sub-centers of no machine or class here: {preview(unknown)}"] if unknown else []


def _together(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return `[n]`: one class for each combination of the heads' classes."""
    return np.unique(np.stack(labels, 1), axis=0, return_inverse=True)[1].reshape(-1)


def _fitting(config: Train, clips: int) -> tuple[Train, str]:
    """Return the training with a batch of at most `clips`, and a line if that made it smaller.

    The smaller batch is a power of two, the same on any number of devices.

    Raises:
      InputError: a batch that does not divide over the devices.
    """
    devices, batch, line = len(jax.devices()), config.batch, ""
    if batch > clips:
        batch = 1 << clips.bit_length() - 1
        line = f"batch of {batch} instead of {config.batch}: there are {clips} training clips"
    if batch % devices:
        raise InputError(
            f"expected a batch that divides over {devices} devices, got {batch} for {clips} "
            "training clips; set --train.batch, or use fewer devices"
        )
    return replace(config, batch=batch), line
