"""The stages in order: train, embed, score, report; and `evaluate` for score files from anywhere.

They meet only in the files of a run's folder (`asdjax.stages.folder`), so each can be repeated
alone.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asdjax.artifact import forget, gather, make
from asdjax.config import SystemConfig
from asdjax.data import audio, dcase, remarks
from asdjax.data import ground_truth as labels
from asdjax.data.audio import kept_in_memory
from asdjax.devices import agree, alone, leads, together
from asdjax.files import write_csv
from asdjax.metrics import official, score_files
from asdjax.metrics.official import Metric
from asdjax.report import console, figures
from asdjax.scoring.score import score as score_machines
from asdjax.scoring.score import threshold
from asdjax.stages import embed as embedding
from asdjax.stages import folder, pseudo_labels
from asdjax.stages import train as training
from asdjax.stages.earlier import note_changes, refuse_another
from asdjax.stages.folder import MODEL, SCORES, Run
from asdjax.stages.lock import locked
from asdjax.stages.options import Options
from asdjax.stages.recordings import prepare
from asdjax.types import ANOMALY, Clip, DataSet, InputError, Scores, counted, preview


def run(system: SystemConfig, data: Path, out: Path, **options: Any) -> list[Metric]:
    """Run a system on a folder of recordings: train (if it trains), embed, score, evaluate, plot.

    Args:
      system: the system.
      data: a folder as `asdjax.data.dcase.scan` takes it.
      out: the run's folder; made if absent.
      options: fields of `Options`.

    Returns:
      The official numbers, an empty list where labels are missing or another process writes them.
    """
    out, options = Path(out), Options(**options)
    with opened(out):
        made = _train_and_embed(system, data, out, options)
        return _score_and_report(made, out, options.force) if leads() else []


def run_members(members: Mapping[str, tuple[SystemConfig, Path, dict]], data: Path) -> None:
    """Run the systems of an ensemble, one after the other.

    Several processes train and embed all of them before the first scores any: it scores alone, and
    a process that waits for another one gives up after a while (on CPUs 30 minutes).

    Args:
      members: of each by its name: system, folder and options of `run`.
      data: as of `run`.
    """
    embedded = {}
    for name, (system, out, given) in members.items():
        console.note(f"member {name}")
        options = Options(**given)
        with opened(out):
            made = _train_and_embed(system, data, out, options)
            if alone():
                _score_and_report(made, out, options.force)
            else:
                embedded[name] = made, out, options.force
    for name, (made, out, force) in embedded.items() if leads() else ():
        console.note(f"member {name}")
        with locked(out):
            _score_and_report(made, out, force)


def train(system: SystemConfig, data: Path, out: Path, **options: Any) -> None:
    """Write `model.safetensors`; see `run` for the arguments.

    A training that was stopped is resumed, one that is finished is kept.
    """
    if system.train is None:
        raise InputError("this system has nothing to train; use `run`")
    out, options = Path(out), Options(**options)
    with opened(out):
        with together("recordings"):
            made = _checked(system, data, out, options)
        made = pseudo_labels.with_labels(made, out, options)
        training.train(made, out, options)


def embed(system: SystemConfig, data: Path, out: Path, **options: Any) -> None:
    """Write one file of embeddings per machine and section; see `run` for the arguments."""
    out, options = Path(out), Options(**options)
    with opened(out):
        made = _prepare(system, data, out, options, trains=False)
        with together("model"):
            embedding.refuse_untrained(made, out)
        _embed(made, out, options)


def fit(system: SystemConfig, dataset: DataSet, out: Path, **options: Any) -> Run:
    """Train (if it trains) and embed clips from anywhere, without a score; see `run`."""
    out = Path(out)
    with opened(out):
        return _train_and_embed(system, dataset, out, Options(**options))


def score(out: Path, scorer: Any = None) -> None:
    """Write the challenge's score and decision files from the embeddings of a run.

    Args:
      out: the run's folder.
      scorer: in place of the run's own, and recorded as the run's; None: its own.
    """
    out = Path(out)
    with locked(out):
        made = folder.load(out)
        if scorer is not None:
            made = replace(made, system=replace(made.system, scorer=scorer))
            made.system.refuse_parts()
        old = [name for name in ("results.csv", "figures") if (out / name).exists()]
        _score(made, out, force=True)
        gone = f"; removed: {' and '.join(old)} of those before" if old else ""
        console.note(f"numbers and figures of these scores: asdjax report {out}{gone}")


def report(out: Path) -> list[Metric]:
    """Write `results.csv`, `skipped.csv` and figures, and print the official numbers."""
    with locked(Path(out)):
        return _report(folder.load_scored(Path(out)), Path(out), force=True)


@contextmanager
def opened(out: Path) -> Iterator[None]:
    """Lock a run's folder.

    Several processes check the same files and note the same: the first locks the folder and prints
    what is noted, all print errors.
    """
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if leads() else redirect_stderr(io.StringIO()))
        with together("--out"):
            stack.enter_context(locked(out) if leads() else nullcontext())
        yield


def _train_and_embed(
    system: SystemConfig, data: Path | DataSet, out: Path, options: Options
) -> Run:
    with kept_in_memory() if system.pseudo else nullcontext():  # both its trainings read them
        made = _prepare(system, data, out, options)
        if system.train is not None:
            training.train(made, out, options)
        _embed(made, out, options)
    return made


def _score_and_report(made: Run, out: Path, force: bool) -> list[Metric]:
    _score(made, out, force)
    return _report(made, out, force)


def _embed(made: Run, out: Path, options: Options) -> None:
    """Embed the recordings; of several processes each its own machines, all in the same way."""
    what = "settings, weights and dtype of products (auto may differ: ask for one)"
    agree({what: json.dumps(made.encoding, sort_keys=True)})
    with together("config.json"):
        if leads():
            gather(out)  # of processes that were interrupted
            folder.save(out, made)
    with together("embeddings"):
        embedding.embed(made, out, embedding.own_groups(made.groups), options)
    if leads():
        gather(out)


def _prepare(
    system: SystemConfig, data: Path | DataSet, out: Path, options: Options, trains: bool = True
) -> Run:
    """Return the run, with its recordings checked and the labels that its training needs."""
    with together("recordings"):
        made = _checked(system, data, out, options)
        if not options.force:
            note_changes(out, made)
    return pseudo_labels.with_labels(made, out, options, trains)


def _checked(system: SystemConfig, data: Path | DataSet, out: Path, options: Options) -> Run:
    """Return the run, with its recordings checked, which may work in the folder."""
    system.refuse_parts()
    folder.refuse_others(out, options.force)
    made = prepare(system, data, options)
    up = 0 if isinstance(data, DataSet) else 1  # from a clip's folder to its machine's
    inside = {clip.path.parents[up].resolve() for clip in made.clips}
    if (
        inside.intersection((out.resolve(), *out.resolve().parents))
        or out.resolve() == made.data.resolve()
    ):
        raise InputError(
            f"expected --out outside of the recordings, got {out}; choose a new folder"
        )
    if not options.force:
        refuse_another(out, made)
    return made


def _score(made: Run, out: Path, force: bool = False) -> None:
    product = made.scores(out)
    if make(product, lambda: _write_scores(made, out), force=force, alone=True) == "kept":
        console.note("already scored")


def _write_scores(made: Run, out: Path) -> None:
    machines = {group: folder.load_embeddings(out, made, group) for group in made.groups}
    train, test = ([m.select(split) for m in machines.values()] for split in ("train", "test"))
    found, left_out = score_machines(train, test, made.system.scorer, console.note)
    folder.clear(out, *folder.AFTER_EMBEDDING)
    folder.save(out, made)  # the scorer may be another one
    limits = {}
    for i, (group, values, normal) in enumerate(zip(machines, found, left_out, strict=True)):
        how, of_normal = made.system, normal
        if how.train is not None:
            of_normal = how.train.normal_scores(out / MODEL, group, how.scorer, made.year, normal)
        limit, line = threshold(of_normal, made.challenge)
        for told in (line, _copies(train[i].values)):
            if told:
                console.note(f"{'/'.join(group)}: {told}")
        if limit is not None:
            limits[group] = limit
        write_scores(out / SCORES, test[i].clips, values, limit, made.year)
        folder.save_left_out(out / SCORES, train[i].clips, normal)
    folder.save_thresholds(out / SCORES, limits)
    console.note(f"scores: {out / SCORES}")


def _copies(values: np.ndarray) -> str:
    """Return a line on training clips with the embedding of another one; "" if there is none."""
    copies = len(values) - len({row.tobytes() for row in values})
    return f"training clips with the embedding of another one: {copies}" if copies else ""


def write_scores(
    to: Path, clips: Sequence[Clip], values: np.ndarray, limit: float | None, year: int | None
) -> None:
    """Write the challenge's files of one machine and section.

    Args:
      to: the folder of the files.
      clips: its test clips.
      values: `[n]`, their scores.
      limit: above it the decision is "anomaly"; None writes no decisions.
      year: the edition whose files are written; 2021 has one per domain, 2020 has no decisions.
    """
    for domain in sorted({clip.domain for clip in clips}, key=str) if year == 2021 else [None]:
        rows = [i for i, clip in enumerate(clips) if domain in (None, clip.domain)]
        decided = year != 2020 and limit is not None
        decisions = (values[rows] > limit).astype(int) if decided else None
        names = tuple(clips[i].name for i in rows)
        score_files.save(to, Scores(*clips[0].group, names, values[rows], decisions, domain))


def _report(made: Run, out: Path, force: bool = False) -> list[Metric]:
    """Write the numbers first, then the figures: a figure that fails loses no number."""
    scores = score_files.load(out / SCORES)
    write_csv(out / "skipped.csv", [("file", "reason"), *made.skipped.items()])
    if made.skipped:
        broken = counted(len(made.skipped), "broken file")
        console.note(f"{broken} left out: {out / 'skipped.csv'}")
    metrics = report_numbers(out, made, scores, f"{out}, no statistics of test clips used")
    product = made.figures(out)

    problems: list[str] = []

    def draw() -> None:
        channel = 0 if made.system.audio.both else made.system.audio.channel
        read = partial(audio.read, channel=channel, samples=figures.SAMPLES)
        limits = folder.load_thresholds(out / SCORES)
        figures.write(product.path, scores, made.clips, read, limits, problems.append)

    make(product, draw, force=force, alone=True)
    for line in problems:
        console.note(line)
    if problems:  # to be drawn again where that may succeed
        forget(product)
    console.note(f"figures: {product.path}")
    return metrics


def report_numbers(
    out: Path,
    made: Run,
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
    lacking = official.lacking(made.clips, made.year)
    for (machine, section), reason in lacking.items():
        console.note(f"no official numbers of {machine}/{section}: {reason}")
    for one in scores:
        if (one.machine, one.section) in lacking and one.decisions is not None:
            console.note(_verdicts(one))
    for line in remarks.unlike_lines(made.clips, made.unlike):
        console.note(line)
    clips = [clip for clip in made.clips if clip.group not in lacking]
    if not clips:
        folder.clear(out, "results.csv")
        return []
    _note_rule(clips, made.year)
    usable = [file for file in scores if (file.machine, file.section) not in lacking]
    metrics = official.evaluate(usable, clips, made.year)
    marked = [Metric(official.TOTAL, name, 1.0) for name, true in (marks or {}).items() if true]
    of_machine = Counter(clip.machine for clip in made.clips if str(clip.path) in made.unlike)
    marked += [Metric(machine, "unlike training", n) for machine, n in sorted(of_machine.items())]
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
        for line in dataset.notes:
            console.note(line)
    elif ground_truth is not None:
        clips = labels.read(ground_truth)
    else:
        raise InputError("expected the recordings (data) or labels (ground_truth), got neither")
    _note_rule(clips, year)
    found = score_files.load(Path(scores))
    _refuse_undecided(Path(scores), found)
    metrics = official.evaluate(found, clips, year)
    if out is not None:
        write_results(out, metrics)
    return metrics


def _verdicts(scores: Scores) -> str:
    """Return a line on the clips that are decided to be anomalies, the highest score first."""
    order = np.argsort(-scores.values, kind="stable")
    names = [scores.names[i] for i in order if scores.decisions[i] == ANOMALY]
    where = "/".join(filter(None, (scores.machine, scores.section, scores.domain)))
    of = f"{len(names)} of {counted(len(scores.names), 'test clip')} of {where}"
    listed = f", highest first: {preview(names, 10)}" if names else ""
    return f"{of} above the threshold{listed}"


def _note_rule(clips: Sequence[Clip], year: int | None) -> None:
    if year is None and any(clip.domain for clip in clips):
        console.note(
            "official numbers by the rule of 2023, as the edition is not known; see --year"
        )


def _refuse_undecided(where: Path, found: Sequence[Scores]) -> None:
    """Refuse files of which some have decisions and others, such as of a stopped run, have none."""
    limits = folder.load_thresholds(where)  # written last; lists those that have decisions
    lacking = [
        score_files.file_name(score_files.DECISION, one)
        for one in found
        if one.decisions is None and (not limits or (one.machine, one.section) in limits)
    ]
    if lacking and any(one.decisions is not None for one in found):
        raise InputError(
            f"{where} is not complete: no {preview(lacking)}; add it, or score the run again"
        )


def write_results(path: Path, metrics: Sequence[Metric]) -> None:
    write_csv(path, [("machine", "metric", "value"), *metrics])
