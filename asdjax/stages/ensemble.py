"""The stage `ensemble`: the scores of several finished runs become those of one system.

OUT/scores/ensemble/*.csv   the challenge's anomaly score and decision files
OUT/ensemble.json           members, weights, and whether labels or test statistics were used
OUT/results.csv             machine,metric,value
OUT/finished.json           what the scores depend on (`artifact.py`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from asdjax.artifact import Product, make
from asdjax.config import to_json
from asdjax.data.labels import class_name
from asdjax.files import content_of, write_json
from asdjax.metrics import score_files
from asdjax.metrics.official import Metric, official_scores
from asdjax.report import console
from asdjax.scoring.combine import (
    EQUAL,
    Ensemble,
    accuracy,
    combine,
    normalize,
    search,
    varies,
)
from asdjax.scoring.score import threshold
from asdjax.stages import folder, stages
from asdjax.stages.folder import ENSEMBLE, RECORD, Group, Run
from asdjax.stages.lock import locked
from asdjax.stages.members import Member, labelled_clips, labels_of, load_members
from asdjax.types import Clip, InputError, preview
from asdjax.version import __version__


@dataclass(frozen=True)
class Normalized:
    """The members' scores of one machine and section on one scale."""

    clips: tuple[Clip, ...]  # test clips
    test: np.ndarray  # [m, n]
    left_out: np.ndarray | None  # [m, r], of its training clips, where all members have these


def ensemble(
    members: Sequence[Path], config: Ensemble, out: Path, force: bool = False
) -> list[Metric]:
    """Combine finished runs; return the official numbers, an empty list where labels are missing.

    Args:
      members: two or more folders on the same recordings: of runs, of ensembles, or with score
        files of any system; at least one of a run. Weights are in their order.
      config: how to combine.
      out: the ensemble's own folder; made if absent.
      force: combine again what an earlier call did.

    Raises:
      InputError: the runs do not fit together, or a search finds no labels.
    """
    with locked(Path(out)):
        return combine_members(members, config, Path(out), force)


def combine_members(
    members: Sequence[Path], config: Ensemble, out: Path, force: bool
) -> list[Metric]:
    """Do what `ensemble` does, in a folder that is locked."""
    run, found = load_members([Path(path) for path in members])
    weights = config.shares(len(found))
    refuse_run(out)
    key = {
        "asdjax": __version__,
        "ensemble": to_json(config),
        "members": [content_of(sorted(member.scores.items())) for member in found],
        "labels": content_of(list(labels_of(run).items())),  # a search uses them
        "year": run.year,
    }
    build = partial(_combine, run, found, config, weights, out)
    product = Product(out, ENSEMBLE, key, beside=(RECORD,))
    done = make(product, build, force=force, alone=True)
    console.note(f"{'already combined' if done == 'kept' else 'scores'}: {product.path}")
    marks = _marks(found, config)
    statistics = "statistics" if marks["transductive"] else "no statistics"
    labels = "weights as given" if config.weights else "no labels used"
    if config.uses_labels:
        what = "weights" if config.search else "systems"
        labels = f"{what} chosen on the labels of these clips"
    elif marks["labels_used"]:
        labels = "labels of these clips used by a system"
    title = f"{out}, {statistics} of test clips used, {labels}"
    return stages.report_numbers(out, run, score_files.load(product.path), title, marks)


def _marks(members: Sequence[Member], config: Ensemble) -> dict[str, bool]:
    """Return what a reader of the numbers has to know, also of members that are ensembles."""
    return {
        "transductive": config.transductive or any(one.transductive for one in members),
        "labels_used": config.uses_labels or any(one.labels_used for one in members),
    }


def refuse_run(out: Path) -> None:
    """Raise an InputError if a folder holds a run, whose scores an ensemble would mix with."""
    if (out / "config.json").exists():
        raise InputError(f"{out} holds a run; give the ensemble a folder of its own")


def _combine(
    run: Run, members: Sequence[Member], config: Ensemble, weights: np.ndarray, out: Path
) -> None:
    """Write the score files and `ensemble.json`."""
    every, quality = members, _quality(run, members, config.keep)
    kept = np.array(quality) >= np.average(quality, weights=weights) - EQUAL
    members, weights = [m for m, k in zip(every, kept, strict=True) if k], weights[kept]
    for one, value, stays in zip(every, quality, kept, strict=True):
        if config.keep != "all":
            console.note(f"{config.keep} {value:.2%}{'' if stays else ', left out'}: {one.path}")
    weights = weights / weights.sum()
    best, machines = None, _normalized(run, members, config)
    if config.search:
        weights, best = _search(machines, run, config.step)
    elif config.weights and not math.isclose(sum(config.weights), 1):
        console.note(f"weights divided by their sum, {sum(config.weights):g}")
    used = None if config.combine == "minimum" else weights
    if used is not None:
        shares = zip(used, members, strict=True)
        console.note("weights: " + ", ".join(f"{w:.3g} {m.path}" for w, m in shares))
    if any(machine.left_out is None for machine in machines.values()):
        console.note("no decisions: not all of these systems have scores of training clips")
    folder.clear(out, RECORD, "results.csv", ENSEMBLE)
    for group, machine in machines.items():
        values, limit = combine(machine.test, used), None
        if machine.left_out is not None:
            left_out = combine(machine.left_out, used)
            limit, line = threshold(left_out, run.challenge)
            folder.save_left_out(out / ENSEMBLE, run.select(group, "train"), left_out)
            if line:
                console.note(f"{'/'.join(group)}: {line}")
        stages.write_scores(out / ENSEMBLE, machine.clips, values, limit, run.year)
    described = {
        "asdjax": __version__,
        "config": to_json(config),
        "members": [
            {"path": str(one.path), "system": one.run and to_json(one.run.system)} for one in every
        ],
        "kept": kept.tolist(),
        "weights": None if used is None else _placed(used, kept).tolist(),
        **_marks(every, config),
        "searched": best,
        "year": run.year,
    }
    write_json(out / RECORD, described)


def _placed(weights: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return a weight for each system, 0 for those that are left out."""
    every = np.zeros(len(kept))
    every[kept] = weights
    return every


def _quality(run: Run, members: Sequence[Member], keep: str) -> list[float]:
    """Return by what systems are kept, as `Ensemble.keep` says, one for each."""
    if keep == "score":
        clips = labelled_clips(run)
        scores = [[one.of(own)[None] for own in clips.values()] for one in members]
        return [float(official_scores(clips, own, run.year)[0]) for own in scores]
    if keep == "all":
        return [0.0] * len(members)
    if without := [one.path for one in members if one.run is None]:
        raise InputError(f"no embeddings to tell the accuracy of {preview(without)}; --keep all")
    found = []
    for one in members:
        train = [
            folder.load_embeddings(one.path, one.run, group).select("train")
            for group in one.run.groups
        ]
        labels = [class_name(clip, "attributes") for part in train for clip in part.clips]
        found.append(accuracy(np.concatenate([part.values for part in train]), labels))
    return found


def _normalized(run: Run, members: Sequence[Member], config: Ensemble) -> dict[Group, Normalized]:
    """Return the members' scores of each machine and section on one scale.

    Raises:
      InputError: reference scores that are missing or do not vary, all at once.
    """
    split = "test" if config.transductive else "train"
    training = [clip for clip in run.clips if clip.split == "train"]
    lacking = [one for one in members if not one.knows(training)]
    if lacking and not config.transductive:
        name = folder.left_out_name(next(iter(run.groups)))
        raise InputError(
            f"no scores of training clips in {preview(one.path for one in lacking)}: they set the "
            f"scale of a system. Add them (in {name} and so on, a row <file>.wav,<score> for each "
            "clip), or take the scale from the test clips with --transductive"
        )
    references = {g: [m.of(run.select(g, split)) for m in members] for g in run.groups}
    flat = [
        f"{member.path}: {'/'.join(group)}"
        for group, found in references.items()
        for member, reference in zip(members, found, strict=True)
        if not varies(reference)
    ]
    if flat:
        head = f"scores of {split} clips that do not vary set no scale; leave these runs out"
        raise InputError(head + ":\n  " + "\n  ".join(flat))
    machines = {}
    for group, found in references.items():
        test, normal = (run.select(group, name) for name in ("test", "train"))
        pairs = list(zip(members, found, strict=True))
        scaled = [
            np.stack([normalize(m.of(clips), r, config.normalize) for m, r in pairs])
            for clips in ([test] if lacking else [test, normal])
        ]
        machines[group] = Normalized(test, scaled[0], None if lacking else scaled[1])
    return machines


def _search(
    machines: Mapping[Group, Normalized], run: Run, step: float
) -> tuple[np.ndarray, float]:
    """Return the best weights `[m]` by `official_scores` of the labelled test clips, and theirs."""
    clips = labelled_clips(run)
    rows = {g: [c.label is not None for c in machines[g].clips] for g in clips}
    weights, best = search(
        [machines[group].test[:, rows[group]] for group in clips],
        lambda scores: official_scores(clips, scores, run.year),
        step,
    )
    console.note(f"best of the grid on the labels of the test clips: {100 * best:.2f}")
    return weights, best
