"""What a training run will do, decided on the host before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from asdjax.data.labels import bare, check_classes, class_name, encode, hold_out, vocabulary
from asdjax.losses.adacos import AdaCos
from asdjax.losses.margin import Margin, check_labels, subcenter_counts
from asdjax.models.heads import Task
from asdjax.train import optimizer
from asdjax.train.config import HeadConfig, Train
from asdjax.types import Clip, InputError, preview


class Plan(NamedTuple):
    """Classes, what every head does with them, and which clips train and which validate."""

    classes: tuple[tuple[str, ...], ...]  # per kind of labels: one for each of `Train.heads`
    tasks: tuple[Task, ...]  # of the heads
    label: np.ndarray  # [n, label kinds] int32
    held_out: np.ndarray  # [n] bool
    notes: tuple[str, ...]

    @property
    def described(self) -> dict[str, list[str]]:
        """Return the classes as `RUN/labels.json` has them."""
        return {str(i): list(names) for i, names in enumerate(self.classes)}


def make_plan(config: Train, clips: Sequence[Clip]) -> Plan:
    """Give every training clip its classes.

    Args:
      clips: normal training clips.

    Raises:
      InputError: no two classes, one name for two machines, a machine of one clip, a batch that is
        larger than the set or does not divide over the devices, a warm-up longer than the run,
        nothing held out to choose the best weights by.
    """
    optimizer.check(config.optimizer, config.steps)
    classes, labels, tasks, notes = [], [], [], []
    for i, head in enumerate(config.heads):
        names = vocabulary(clips, head.labels)
        label = encode(clips, names, head.labels)
        check_labels(label, len(names))
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
    _check_batch(config.batch, int((~held_out).sum()))
    return Plan(
        tuple(classes), tuple(tasks), np.stack(labels, 1), held_out, tuple(filter(None, notes))
    )


def center_counts(head: HeadConfig, clips: Sequence[Clip], names: Sequence[str]) -> np.ndarray:
    """Return `[C]`: centers of each class; in the head's table a class comes before its machine."""
    loss, table = head.loss, dict(head.subcenters)
    counts = np.ones(len(names), int)
    if isinstance(loss, AdaCos):
        counts = np.full(len(names), loss.subclusters)
    elif isinstance(loss, Margin):
        fewer = loss.subcenters if loss.bare_subcenters is None else loss.bare_subcenters
        counts = np.where(bare(clips, names, head.labels), fewer, loss.subcenters)
    machine = {class_name(clip, head.labels): clip.machine for clip in clips}
    listed = [
        table.get(name, table.get(machine[name], count))
        for name, count in zip(names, counts.tolist(), strict=True)
    ]
    return subcenter_counts(listed, len(names))


def unknown_in_table(head: HeadConfig, clips: Sequence[Clip], names: Sequence[str]) -> list[str]:
    """Return a note on what a head's table lists and the recordings do not have, or nothing."""
    known = {*names, *(clip.machine for clip in clips)}
    unknown = [name for name, _ in head.subcenters if name not in known]
    return [f"sub-centers of no machine or class here: {preview(unknown)}"] if unknown else []


def _together(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return `[n]`: one class for each combination of the heads' classes."""
    return np.unique(np.stack(labels, 1), axis=0, return_inverse=True)[1].reshape(-1)


def _check_batch(batch: int, clips: int) -> None:
    devices = len(jax.devices())
    if batch > clips:
        raise InputError(
            f"expected a batch of at most {clips} clips, which is all there are to train on, got "
            f"{batch}; set --train.batch"
        )
    if batch % devices:
        raise InputError(
            f"expected a batch that divides over {devices} devices, got {batch}; set --train.batch"
        )
