"""The stages, in order: train, embed, score, report; and evaluate for score files from anywhere.

They meet only in the files of a run's folder (`asdjax.runs`), so each can be repeated alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from asdjax import runs
from asdjax.config import SystemConfig
from asdjax.data import audio, dcase
from asdjax.data import ground_truth as labels
from asdjax.data.audio import AudioInfo
from asdjax.devices import agree, leads
from asdjax.embedding import load_embedder, load_trained, make_embed, prepare, training_of
from asdjax.files import write_csv
from asdjax.metrics import official, score_files
from asdjax.metrics.official import Metric
from asdjax.report import console, figures
from asdjax.scoring.score import score as score_machines
from asdjax.scoring.score import threshold
from asdjax.train.loop import train as fit
from asdjax.train.plan import make_plan
from asdjax.types import Clip, Embeddings, InputError, Scores
from asdjax.weights import load_backbone

Infos = dict[Path, AudioInfo]
RESULTS = ("results.csv", "skipped.csv", "figures")  # what `report` writes


def run(
    config: SystemConfig,
    data: Path,
    out: Path,
    year: int | None = None,
    ground_truth: Path | None = None,
    skip_bad: bool = False,
    force: bool = False,
    reported: str = "",
) -> list[Metric]:
    """Run every stage; return the official numbers, an empty list where labels are missing.

    Args:
      config: the system.
      data: a directory as `asdjax.data.dcase.scan` takes it.
      out: the run's folder; made if absent.
      year: the edition whose rules apply; None takes it from the data.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
      skip_bad: leave broken files out (listed in the results) instead of stopping.
      force: train and embed again what an earlier call did.
      reported: parameter counts of the system's report, to be printed beside ours.
    """
    out = Path(out)
    made, infos = _prepare(config, data, year, ground_truth, skip_bad)
    if config.train is not None:
        _train(made, infos, out, force, reported)
    _embed(made, infos, out, force)
    score(out)
    return report(out)


def train(
    config: SystemConfig,
    data: Path,
    out: Path,
    year: int | None = None,
    ground_truth: Path | None = None,
    skip_bad: bool = False,
    force: bool = False,
    reported: str = "",
) -> None:
    """Write `model.safetensors`; see `run` for the arguments.

    A training that was stopped goes on from its last checkpoint, one that is finished is kept.
    """
    if config.train is None:
        raise InputError("this system has nothing to train; use `run`")
    # Several processes check the same files and say the same: the first is heard, errors of all.
    with nullcontext() if leads() else redirect_stderr(io.StringIO()):
        made, infos = _prepare(config, data, year, ground_truth, skip_bad)
        _train(made, infos, Path(out), force, reported)


def embed(
    config: SystemConfig,
    data: Path,
    out: Path,
    year: int | None = None,
    ground_truth: Path | None = None,
    skip_bad: bool = False,
    force: bool = False,
) -> None:
    """Write one file of embeddings per machine and section; see `run` for the arguments.

    A file that was made from the same clips by the same system and weights is kept.
    """
    made, infos = _prepare(config, data, year, ground_truth, skip_bad)
    _embed(made, infos, Path(out), force)


def _prepare(config, data, year, ground_truth, skip_bad) -> tuple[runs.Run, Infos]:
    official.check_year(year)
    return prepare(config, data, year, ground_truth, skip_bad)


def _train(made: runs.Run, infos: Infos, out: Path, force: bool, reported: str) -> None:
    """Train the system of a run, unless `out` already holds what the training would give."""
    trained = not force and load_trained(made, out) is not None
    agree({"--out": str(trained)})
    if trained:
        console.note(f"already trained: {out / runs.MODEL}")
        return
    clips = [clip for clip in made.clips if clip.split == "train"]
    plan = make_plan(made.system.train, clips)
    for line in plan.notes:
        console.note(line)
    fit(
        made.system.embedder,
        made.system.train,
        load_backbone(made.system.embedder.weights, made.system.embedder.dtype),
        plan,
        clips,
        [infos[clip.path] for clip in clips],
        made.system.audio,
        out,
        out / runs.MODEL,
        training_of(made),
        reported,
        anew=force,
    )


def _embed(made: runs.Run, infos: Infos, out: Path, force: bool) -> None:
    embedder, weights_sha256 = load_embedder(made, out)
    made = replace(made, weights_sha256=weights_sha256).with_keys()
    _note_lacking(made)
    runs.clear(out, *RESULTS, "scores")
    runs.save(out, made)
    pending = {
        group: clips
        for group, clips in made.groups.items()
        if force or runs.load_embeddings(out, made, group) is None
    }
    kept = len(made.groups) - len(pending)
    console.note(f"{kept} of {len(made.groups)} machines are already embedded")
    with console.progress("embedding", sum(map(len, pending.values()))) as advance:
        compute = make_embed(embedder, made.system, max(map(len, made.groups.values())))
        for clips in pending.values():
            values = compute(clips, [infos[clip.path] for clip in clips], advance)
            runs.save_embeddings(out, made, Embeddings(clips, values))


def score(out: Path, **changes: object) -> None:
    """Write the challenge's score and decision files from the embeddings of a run.

    Args:
      out: the run's folder.
      changes: fields of the scorer to replace; they are recorded as the run's.
    """
    out = Path(out)
    made = runs.load(out)
    if changes:
        scorer = replace(made.system.scorer, **changes)
        made = replace(made, system=replace(made.system, scorer=scorer))
        runs.save(out, made)
    machines = [runs.load_embeddings(out, made, group) for group in made.groups]
    if None in machines:
        raise InputError(f"the embeddings in {out} are not complete; give the run's command again")
    train, test = ([_part(m, name) for m in machines] for name in ("train", "test"))
    found, left_out = score_machines(train, test, made.system.scorer, console.note)
    runs.clear(out, *RESULTS, "scores")
    folder = out / "scores" / "knn"
    for part, values, normal in zip(test, found, left_out, strict=True):
        for scores in _score_files(part.clips, values, values > threshold(normal), made.year):
            score_files.save(folder, scores)
    console.note(f"scores: {folder}")


def report(out: Path) -> list[Metric]:
    """Write figures, `skipped.csv` and the official numbers of the machines that can have them."""
    out = Path(out)
    made, scores = runs.load(out), score_files.load(out / "scores")
    runs.clear(out, *RESULTS)
    read = partial(audio.read, channel=made.system.audio.channel)
    console.note(f"figures: {figures.write(out / 'figures', scores, made.clips, read)}")
    write_csv(out / "skipped.csv", [("file", "reason"), *made.skipped.items()])
    if made.skipped:
        console.note(f"{len(made.skipped)} broken files left out: {out / 'skipped.csv'}")
    lacking = _note_lacking(made)
    clips = [clip for clip in made.clips if clip.group not in lacking]
    if not clips:
        return []
    usable = [file for file in scores if (file.machine, file.section) not in lacking]
    metrics = official.evaluate(usable, clips, made.year)
    write_results(out / "results.csv", metrics)
    console.results_table(metrics, f"{out}, no statistics of test clips used")
    return metrics


def evaluate(
    scores: Path,
    data: Path | None = None,
    ground_truth: Path | None = None,
    year: int | None = None,
    out: Path | None = None,
) -> list[Metric]:
    """Return the official numbers of a folder of score files.

    Args:
      scores: holds `anomaly_score_*.csv` and `decision_result_*.csv`, at any depth.
      data: the recordings, whose names or csv files have the labels; or
      ground_truth: an official evaluator's ground-truth folder (no recordings needed). With both,
        the ground truth labels the recordings.
      year: the edition; None takes it from the data.
      out: also write `machine,metric,value` to this csv.

    Raises:
      InputError: scores and labels do not match clip by clip, or a file is malformed.
    """
    if data is not None:
        dataset = dcase.scan(data, ground_truth)
        clips, year = dataset.clips, year or dataset.year
    elif ground_truth is not None:
        clips = labels.read(ground_truth)
    else:
        raise InputError("expected the recordings (data) or labels (ground_truth), got neither")
    metrics = official.evaluate(score_files.load(Path(scores)), clips, year)
    if out is not None:
        write_results(out, metrics)
    return metrics


def write_results(path: Path, metrics: Sequence[Metric]) -> None:
    write_csv(path, [("machine", "metric", "value"), *metrics])


def _note_lacking(made: runs.Run) -> dict[runs.Group, str]:
    """Tell which machines cannot have official numbers, and return them with the reasons."""
    lacking = official.lacking(made.clips, made.year)
    for (machine, section), reason in lacking.items():
        console.note(f"no official numbers of {machine}/{section}: {reason}")
    return lacking


def _part(embeddings: Embeddings, split: str) -> Embeddings:
    return embeddings.take([i for i, c in enumerate(embeddings.clips) if c.split == split])


def _score_files(
    clips: Sequence[Clip], values: np.ndarray, decided: np.ndarray, year: int | None
) -> list[Scores]:
    """Return a machine's score file; 2021 has one per domain, 2020 has no decisions."""
    files = []
    for domain in sorted({clip.domain for clip in clips}, key=str) if year == 2021 else [None]:
        rows = [i for i, clip in enumerate(clips) if domain in (None, clip.domain)]
        decisions = None if year == 2020 else decided[rows].astype(int)
        names = tuple(clips[i].name for i in rows)
        if rows:
            files.append(Scores(*clips[0].group, names, values[rows], decisions, domain))
    return files
