"""The stage `train`: what a run's folder holds of a training, and what it depends on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from asdjax import params
from asdjax.config import SystemConfig, digest, to_json
from asdjax.data.audio import AudioInfo
from asdjax.devices import agree, leads
from asdjax.files import atomic
from asdjax.models.system import Base, Branch, Scratch, Untrained
from asdjax.params import Params
from asdjax.report import console
from asdjax.runs import MODEL, Group, Run
from asdjax.train import autoencoders, loop
from asdjax.train.autoencoders import FitAutoencoders, name_of
from asdjax.train.frames import cut_vectors, read_frames
from asdjax.train.plan import make_plan
from asdjax.types import InputError
from asdjax.weights import load_backbone


def train_run(
    run: Run,
    infos: Mapping[Path, AudioInfo],
    out: Path,
    *,
    force: bool,
    reported: str,
    reuse: Sequence[Path] = (),
) -> None:
    """Train the system of a run, unless `out` already holds what the training would give.

    Args:
      infos: what is known of each file.
      force: train again all the same.
      reported: parameter counts of the report, to be printed beside ours.
      reuse: other runs' folders; the training is taken from one where it is the very same.

    Raises:
      InputError: `out` has what another training gave, and it is not to be replaced by force.
    """
    trained = not force and is_trained(run, out)
    agree({"--out": str(trained)})
    if trained:
        console.note(f"already trained: {out / MODEL}")
        return
    if _take_over(run, out, () if force else reuse):
        return
    if not force and (out / MODEL).exists() and not (out / "checkpoints").exists():
        raise InputError(
            f"{out / MODEL} is of another training (other settings, weights or recordings); choose "
            "another --out, or train anew with --force"
        )
    if isinstance(run.system.train, FitAutoencoders):
        _fit_autoencoders(run, infos, out, force, reported)
        return
    clean = [clip for clip in run.supplement if clip.supplement == "clean"]
    clips = [*(clip for clip in run.clips if clip.split == "train"), *clean]
    plan = make_plan(run.system.train, clips)
    for line in plan.notes:
        console.note(line)
    loop.train(
        run.system.embedder,
        run.system.train,
        load_bases(run.system),
        plan,
        clips,
        [infos[clip.path] for clip in clips],
        run.system.audio,
        out,
        out / MODEL,
        training_of(run),
        reported,
        anew=force,
        noise=[(c, infos[c.path]) for c in run.supplement if c.supplement == "noise"],
    )


def _take_over(run: Run, out: Path, reuse: Sequence[Path]) -> bool:
    """Copy the training of this very run from another folder; tell whether that was done.

    Not over a model of another training, which `out` then holds.
    """
    known = () if (out / MODEL).exists() else reuse
    other = next((folder for folder in known if is_trained(run, folder)), None)
    agree({"--reuse": str(other)})
    if other is None:
        return False
    if leads():
        console.note(f"the training of {other}")
        for path in (other / "labels.json", other / MODEL):  # the model ends a training
            if path.exists():  # autoencoders have no classes
                with atomic(out / path.name) as temporary:
                    shutil.copyfile(path, temporary)
    return True


def _fit_autoencoders(
    run: Run, infos: Mapping[Path, AudioInfo], out: Path, force: bool, reported: str
) -> None:
    """Train the autoencoders of a run, all at once."""
    clips = [clip for clip in run.clips if clip.split == "train"]
    with console.progress("log-mel", len(clips)) as advance:
        mels = read_frames(clips, [infos[c.path] for c in clips], run.system.audio, advance)
    frames, machines = cut_vectors(mels, clips)
    del mels  # as much again
    autoencoders.train(
        run.system.train,
        frames,
        machines,
        out,
        out / MODEL,
        training_of(run),
        reported,
        anew=force,
    )


def fitted_scores(run: Run, out: Path, group: Group, train_scores: np.ndarray) -> np.ndarray:
    """Return the scores `[n]` of normal sounds to which a threshold is fitted.

    Those of the training clips, but from 2023 on the baseline's of mini-batches, which training
    left in `out`. They scatter less: its threshold lies close to the average score.

    Args:
      train_scores: `[n]`, of the training clips.
    """
    if not isinstance(run.system.train, FitAutoencoders) or (run.year or 0) < 2023:
        return train_scores
    return params.load(out / MODEL)[0][f"{name_of(group)}.batches.{run.system.scorer.kind}"]


def load_bases(system: SystemConfig) -> list[Base]:
    """Return what each branch begins with."""
    return [
        load_backbone(branch.weights, branch.dtype)
        if isinstance(branch, Branch)
        else Untrained(Scratch(branch, system.audio.samples), {})
        for branch in system.embedder.branches
    ]


def is_trained(run: Run, out: Path) -> bool:
    """Tell whether `out` has what the training of this very run gives."""
    with suppress(InputError):
        return params.read_header(out / MODEL).config == training_of(run)
    return False


def load_trained(run: Run, out: Path) -> Params | None:
    """Return what the training of this very run left in `out`; None if that is not there."""
    return params.load(out / MODEL)[0] if is_trained(run, out) else None


def training_of(run: Run) -> dict:
    """Return, as plain values, everything that the trained weights of a run depend on.

    Recordings count by name, domain, attributes, size and time of change.
    """
    system = to_json(run.system)
    kept = {name: system[name] for name in ("embedder", "audio", "train")}
    changes_nothing = ["log_every", "source"]
    if kept["train"].get("select") != "best":  # of those saved
        changes_nothing.append("save_every")
    for name in changes_nothing:
        kept["train"].pop(name, None)
    for branch in kept["embedder"].get("branches", ()):
        branch.pop("weights", None)  # where they lie; their SHA-256 says what they are
    used = [*(clip for clip in run.clips if clip.split == "train"), *run.supplement]
    files = [(clip, clip.path.stat()) for clip in used]
    clips = [
        (*c.group, c.name, c.domain, c.attributes, file.st_size, file.st_mtime_ns)
        for c, file in files
    ]
    return kept | {"data_sha256": digest(clips), "weights_sha256": run.weights_sha256}
