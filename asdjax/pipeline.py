"""The stages, in order: train, embed, score, report; and evaluate for score files from anywhere.

They meet only in the files of a run's folder (`asdjax.runs`), so each can be repeated alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asdjax import pseudo, runs
from asdjax.config import SystemConfig
from asdjax.data import audio, dcase
from asdjax.data import ground_truth as labels
from asdjax.data.audio import AudioInfo
from asdjax.data.decode import kept_in_memory
from asdjax.devices import leads, together
from asdjax.embedding import embed_groups, load_embedder, prepare
from asdjax.files import write_csv
from asdjax.metrics import official, score_files
from asdjax.metrics.official import Metric
from asdjax.models.embedder import Embedder
from asdjax.options import Options
from asdjax.report import console, figures
from asdjax.scoring.score import changed, threshold
from asdjax.scoring.score import score as score_machines
from asdjax.training import fitted_scores, train_run
from asdjax.two_stage import with_labels
from asdjax.types import Clip, InputError, Scores

Infos = dict[Path, AudioInfo]
RESULTS = ("results.csv", "skipped.csv", "figures")  # what `report` writes


def run(config: SystemConfig, data: Path, out: Path, **options: Any) -> list[Metric]:
    """Run every stage; return the official numbers, an empty list where labels are missing.

    Args:
      config: the system.
      data: a directory as `asdjax.data.dcase.scan` takes it.
      out: the run's folder; made if absent.
      options: fields of `Options`.
    """
    out, told = Path(out), Options(**options)
    with nullcontext() if config.pseudo is None else kept_in_memory():  # for both its stages
        return _run(config, data, out, told)


def _run(config: SystemConfig, data: Path, out: Path, told: Options) -> list[Metric]:
    made, infos = _prepare(config, data, told)
    made = with_labels(made, infos, out, told)
    if config.train is not None:
        train_run(made, infos, out, force=told.force, reported=told.reported, reuse=told.reuse)
    embedder, made = load_embedder(made, out)
    if not told.force and _finished(made, out):
        console.note(f"already finished: {out}")
        return report_numbers(out, made, score_files.load(out / runs.SCORES), _title(out))
    _embed(made, embedder, infos, out, told)
    score(out)
    return report(out)


def train(config: SystemConfig, data: Path, out: Path, **options: Any) -> None:
    """Write `model.safetensors`; see `run` for the arguments.

    A training that was stopped goes on from its last checkpoint, one that is finished is kept.
    """
    if config.train is None:
        raise InputError("this system has nothing to train; use `run`")
    out, told = Path(out), Options(**options)
    # Several processes check the same files and say the same: the first is heard, errors of all.
    with nullcontext() if leads() else redirect_stderr(io.StringIO()):
        with together("recordings"):
            made, infos = _prepare(config, data, told)
            made = with_labels(made, infos, out, told)
        train_run(made, infos, out, force=told.force, reported=told.reported, reuse=told.reuse)


def embed(config: SystemConfig, data: Path, out: Path, **options: Any) -> None:
    """Write one file of embeddings per machine and section; see `run` for the arguments.

    A file that was made from the same clips by the same system and weights is kept.
    """
    out, told = Path(out), Options(**options)
    made, infos = _prepare(config, data, told)
    if config.pseudo is not None and pseudo.bare_machines(made.clips):
        told = replace(told, pseudo_labels=told.pseudo_labels or out / pseudo.LABELS)
    embedder, made = load_embedder(with_labels(made, infos, out, told), out)
    _embed(made, embedder, infos, out, told)


def _prepare(config: SystemConfig, data: Path, told: Options) -> tuple[runs.Run, Infos]:
    official.check_year(told.year)
    return prepare(config, data, told.year, told.ground_truth, told.skip_bad)


def _finished(made: runs.Run, out: Path) -> bool:
    """Tell whether `out` has all scores and the figures of exactly this run."""
    with suppress(InputError):
        for group in made.groups:
            runs.load_left_out(out, made, group)
        scored = {(file.machine, file.section) for file in score_files.load(out / runs.SCORES)}
        reported = (out / "skipped.csv").is_file() and (out / "figures").is_dir()
        return runs.load(out) == made and scored == made.groups.keys() and reported
    return False


def _embed(made: runs.Run, embedder: Embedder, infos: Infos, out: Path, told: Options) -> None:
    _note_lacking(made)
    runs.clear(out, *RESULTS, "scores")
    runs.save(out, made)
    embed_groups(made, embedder, infos, out, made.groups, force=told.force, reuse=told.reuse)


def score(out: Path, scorer: str | None = None, **changes: object) -> None:
    """Write the challenge's score and decision files from the embeddings of a run.

    Args:
      out: the run's folder.
      scorer: a name of `asdjax.scoring.score.SCORERS`; None: the run's own back end.
      changes: fields of the scorer to replace. Both are recorded as the run's.
    """
    out = Path(out)
    before = runs.load(out)
    config = changed(before.system.scorer, scorer, changes)
    made = replace(before, system=replace(before.system, scorer=config))
    machines = [runs.load_embeddings(out, made, group) for group in made.groups]
    if None in machines:
        raise InputError(f"the embeddings in {out} are not complete; give the run's command again")
    train, test = ([m.select(name) for m in machines] for name in ("train", "test"))
    found, left_out = score_machines(train, test, made.system.scorer, console.note)
    runs.clear(out, *RESULTS, "scores")
    if made != before:
        runs.save(out, made)
    for i, (values, normal) in enumerate(zip(found, left_out, strict=True)):
        limit = threshold(fitted_scores(made, out, test[i].clips[0].group, normal))
        write_scores(out / runs.SCORES, test[i].clips, values, limit, made.year)
        runs.save_left_out(out, train[i].clips, normal)
    console.note(f"scores: {out / runs.SCORES}")


def write_scores(
    folder: Path, clips: Sequence[Clip], values: np.ndarray, limit: float, year: int | None
) -> None:
    """Write the challenge's files of one machine and section.

    Args:
      folder: where the files go.
      clips: its test clips.
      values: `[n]`, their scores.
      limit: above it the decision is "anomaly".
      year: the edition whose files are written.
    """
    for scores in _score_files(clips, values, values > limit, year):
        score_files.save(folder, scores)


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
    return report_numbers(out, made, scores, _title(out))


def _title(out: Path) -> str:
    return f"{out}, no statistics of test clips used"


def report_numbers(
    out: Path,
    made: runs.Run,
    scores: Sequence[Scores],
    title: str,
    marks: Mapping[str, bool] | None = None,
) -> list[Metric]:
    """Write `results.csv` and print the table of the machines that can have official numbers.

    Args:
      out: the folder.
      made: whose clips and labels they are.
      scores: what is evaluated.
      title: of the table.
      marks: what a reader of the numbers has to know; each that is true becomes a row of "ALL".
    """
    lacking = _note_lacking(made)
    clips = [clip for clip in made.clips if clip.group not in lacking]
    if not clips:
        return []
    usable = [file for file in scores if (file.machine, file.section) not in lacking]
    metrics = official.evaluate(usable, clips, made.year)
    marked = [Metric(official.TOTAL, name, 1.0) for name, true in (marks or {}).items() if true]
    write_results(out / "results.csv", [*metrics, *marked])
    console.results_table(metrics, title)
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
