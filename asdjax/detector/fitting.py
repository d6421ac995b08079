"""From healthy recordings, or from a finished run, to a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.data import audio, healthy
from asdjax.data.audio import AudioInfo
from asdjax.detector.alarms import Confirm, Cusum, Healthy, KOfN, Rule, calibrate, count_blocks
from asdjax.detector.detector import Detector, Machine, condition_of, date_of, heard
from asdjax.models import weights_file
from asdjax.recipes import RECIPES
from asdjax.report import console
from asdjax.scoring import Scorer
from asdjax.scoring.folds import Machines
from asdjax.stages import folder, stages
from asdjax.stages.folder import MODEL, Run
from asdjax.types import Clip, DataSet, Embeddings, InputError, check, counted

RECIPE = "beyond/logmel"  # where none is named
HELD_OUT = 1 / 4  # of the blocks, the last ones, that a training does not see
FOLDS = 5  # of consecutive blocks, each compared with the others; neighbors in time are too alike
LEAST_CLIPS = 5  # of a block


@dataclass(frozen=True)
class Alarms:
    """What is asked of alarms.

    Args:
      alarms_per_week: false alarms a week of each machine that are tolerated, on average.
      every: seconds from the beginning of a recording to that of the next; None: their length, as
        of a recording without gaps.
      confirm: k and n: an alarm begins with k of n consecutive clips above the limit.
      cusum: in place of that by a cumulative sum with this allowance: finds faults that raise
        scores little, but for long.
    """

    alarms_per_week: float = 1.0
    every: float | None = None
    confirm: tuple[int, int] = (2, 3)
    cusum: float | None = None

    def __post_init__(self):
        every = 1.0 if self.every is None else self.every
        check(
            self,
            ("alarms_per_week", "above 0", 0 < self.alarms_per_week < float("inf")),
            ("every", "above 0 or none", 0 < every < float("inf")),
        )
        _ = self.rule

    @property
    def rule(self) -> Confirm:
        """Return how scores become an alarm."""
        return KOfN(*self.confirm) if self.cusum is None else Cusum(self.cusum)


def fit(
    sources: Path | str | Sequence[Path | str],
    recipe: str | SystemConfig = RECIPE,
    alarms: Alarms | None = None,
    work: Path | None = None,
    skip_bad: bool = False,
) -> Detector:
    """Fit a detector to recordings of healthy machines.

    A system that trains does so without the last quarter of the time, whose clips then set the
    limit of alarms. One that does not train compares each fifth with the others.

    Args:
      sources: as of `asdjax.data.healthy.gather`.
      recipe: the name of a system, or the system.
      alarms: what is asked of alarms.
      work: a folder for what is finished if the fit is interrupted, to be removed by the caller;
        None: a temporary one.
      skip_bad: leave broken files out.

    Raises:
      InputError: recordings that cannot be used, an unknown recipe, no weights.
    """
    alarms, system = alarms or Alarms(), recipe
    if isinstance(recipe, str) and recipe in RECIPES:
        system = RECIPES[recipe].config
    if not isinstance(system, SystemConfig):
        what = "an ensemble" if isinstance(system, EnsembleConfig) else f"{recipe!r}"
        raise InputError(f"expected the name of a single system (`asdjax recipes`), got {what}")
    dataset = healthy.gather([sources] if isinstance(sources, str | Path) else list(sources))
    if system.train is not None:
        dataset = _held_out(dataset)
    if work is None:
        with TemporaryDirectory() as temporary:
            return _fit(system, dataset, Path(temporary) / "run", alarms, skip_bad)
    return _fit(system, dataset, work, alarms, skip_bad)


def _fit(system, dataset: DataSet, work: Path, alarms: Alarms, skip_bad: bool) -> Detector:
    run = stages.fit(system, dataset, work, skip_bad=skip_bad)
    machines = [_in_memory(folder.load_embeddings(work, run, group)) for group in run.groups]
    known = [[run.infos[clip.path] for clip in machine.clips] for machine in machines]
    if run.system.train is None:
        return _detector(run, work, machines, known, _left_out(machines, run.system.scorer), alarms)
    train, late = ([one.select(split) for one in machines] for split in ("train", "test"))
    scores = run.system.scorer.fit(train, _silent)[0](late)
    parts = zip(late, scores, strict=True)
    found = [(one.clips, own, _blocks(one.clips)) for one, own in parts]
    return _detector(run, work, machines, known, found, alarms)


def of_run(run: Path, alarms: Alarms | None = None) -> Detector:
    """Return the detector of a finished run, whose scores it gives.

    The limit of alarms is from the run's training clips, each compared with those of other parts
    of the time. If the system was trained on them, that limit is too low, which is told.

    Args:
      run: its folder.
      alarms: what is asked of alarms.

    Raises:
      InputError: no run, one that is not complete, or lengths of clips that are not known.
    """
    alarms, made = alarms or Alarms(), folder.load_scored(run)
    machines = [
        _in_memory(folder.load_embeddings(run, made, group).select("train"))
        for group in made.groups
    ]
    paths = [clip.path for one in machines for clip in one.clips]
    infos, _ = audio.verify(paths, made.system.audio.channel)
    known = [[infos[c.path] for c in one.clips if c.path in infos] for one in machines]
    if made.system.train is not None:
        console.note(
            "the system was trained on the clips that set the limit: expect more alarms than "
            "stated; `asdjax fit` holds clips out of the training"
        )
    found = _left_out(machines, made.system.scorer)
    return _detector(made, run, machines, known, found, alarms)


def _detector(
    run: Run,
    out: Path,
    machines: Machines,
    known: Sequence[Sequence[AudioInfo]],
    found: Sequence[tuple],
    alarms: Alarms,
) -> Detector:
    """Return the detector of a run in `out`.

    Args:
      machines: the embeddings of the normal clips of each machine.
      known: what is known of their files.
      found: of each machine healthy clips, their scores and blocks of time, `[n]` each.
    """
    trained = weights_file.load(out / MODEL).arrays if run.system.train is not None else {}
    kept = {name: value for name, value in trained.items() if not name.startswith("heads.")}
    made = []
    for normal, infos, own in zip(machines, known, found, strict=True):
        seconds = _seconds(normal, infos, run.system)
        every = alarms.every or seconds
        scores, rule = _rule("/".join(normal.clips[0].group), *own, every, alarms)
        dates = tuple(date_of(clip.path) for clip in normal.clips)
        made.append(Machine(normal, scores, rule, heard(infos), dates, seconds, every))
        for line in rule.lines(made[-1].name) if rule else ():
            console.note(line)
    return Detector(run.system, run.weights, kept, tuple(made))


def _seconds(machine: Embeddings, infos: Sequence[AudioInfo], system: SystemConfig) -> float:
    """Return the usual length of a machine's clips."""
    if infos:
        return float(np.median([info.seconds for info in infos]))
    if system.audio.seconds:
        return system.audio.seconds
    raise InputError(
        f"{machine.clips[0].path.parent}: the recordings are gone, and with them their length; put "
        "them back, or fit a detector with `asdjax fit`"
    )


def _rule(
    name: str,
    clips: Sequence[Clip],
    scores: np.ndarray,
    blocks: np.ndarray,
    every: float,
    alarms: Alarms,
) -> tuple[Healthy, Rule] | tuple[None, None]:
    """Return scores and rule of a machine; None, with a line, where its clips make none."""
    usable = np.isfinite(scores)
    if usable.sum() < 2:
        console.note(f"{name}: no limit of alarms, as there are too few clips to compare")
        return None, None
    rows = np.flatnonzero(usable)
    order = sorted(rows, key=lambda i: (blocks[i], healthy.natural(clips[i].path)))
    conditions = tuple(condition_of(clips[i]) for i in order)
    known = Healthy(scores[order], conditions, blocks[order])
    return known, calibrate(known, every, alarms.alarms_per_week, alarms.rule)


def _left_out(machines: Machines, scorer: Scorer) -> list[tuple]:
    """Return of each machine its clips, their scores by those of other parts of the time (inf
    without any), and blocks of time."""
    blocks = [_blocks(one.clips) for one in machines]
    folds = [own * min(FOLDS, own.max() + 1) // (own.max() + 1) for own in blocks]
    found = [np.full(len(one.clips), np.inf, np.float32) for one in machines]
    for fold in range(FOLDS):
        inside = [np.flatnonzero(own == fold) for own in folds]
        others = [np.flatnonzero(own != fold) for own in folds]
        some = [g for g, rows in enumerate(inside) if len(rows) and len(others[g])]
        if not some:
            continue
        scored, _ = scorer.fit([machines[g].take(others[g]) for g in some], _silent)
        test = [machines[g].take(inside[g]) for g in some]
        for g, own in zip(some, scored(test), strict=True):
            found[g][inside[g]] = own
    return list(zip([one.clips for one in machines], found, blocks, strict=True))


def _blocks(clips: Sequence[Clip], least: int = 1) -> np.ndarray:
    """Return the block of time of each clip, `[n]` int, of at least `least` blocks.

    Each operating condition that has enough clips is cut by itself, so that no block holds all
    that is known of it.
    """
    names = np.array([condition_of(clip) for clip in clips], dtype=object)
    count = max(count_blocks(len(clips), LEAST_CLIPS), least)
    own = {name: int((names == name).sum()) for name in set(names)}
    common = np.array([name if own[name] >= count else "" for name in names], dtype=object)
    blocks = np.zeros(len(clips), int)
    for name in set(common):
        rows = np.flatnonzero(common == name)
        order = sorted(rows, key=lambda i: healthy.natural(clips[i].path))
        blocks[order] = np.arange(len(order)) * count // len(order)
    return blocks


def _held_out(dataset: DataSet) -> DataSet:
    """Return the clips with the last blocks of each machine as test clips."""
    clips = list(dataset.clips)
    for group in {clip.group for clip in clips}:
        rows = [i for i, clip in enumerate(clips) if clip.group == group]
        own = [clips[i] for i in rows]
        blocks = _blocks(own, round(1 / HELD_OUT))
        for i, block in zip(rows, blocks, strict=True):
            if block >= round((1 - HELD_OUT) * (blocks.max() + 1)):
                clips[i] = replace(clips[i], split="test")
    count = sum(clip.split == "test" for clip in clips)
    console.note(
        f"{counted(count, 'clip')} of {len(clips)} held out of the training, for the limit"
    )
    return replace(dataset, clips=tuple(clips))


def _in_memory(machine: Embeddings) -> Embeddings:
    return replace(machine, values=np.array(machine.values))


def _silent(line: str) -> None:
    """Lines on scores that are for the limit alone; those on the machine are told elsewhere."""
