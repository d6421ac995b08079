"""A run's folder: what is in it, and the parts of it that are read back.

RUN/config.json                          system, data, weights, versions, what was skipped
RUN/clips.json                           the clips, with labels where they are known
RUN/finished.json                        what is finished, and what it depends on (`artifact.py`)
RUN/labels.json                          classes of each head of a trained system
RUN/checkpoints/                         states of a training that is not finished
RUN/log.jsonl                            a line per logged step of the training
RUN/model.safetensors                    what was trained: adapters, or all weights; pooling; heads
RUN/first-stage/                         with pseudo labels: the training they are from, embedded
RUN/pseudo/labels.csv, *.png             pseudo labels of clips without attributes; figures of them
RUN/*/finished.json                      as above, of the first stage and of the pseudo labels
RUN/embeddings/<machine>_<section>.npz   values [n, E], names [n]
RUN/embeddings/*.npz.part/               key.json, values.npy, done.npy of one that is not finished
RUN/scores/*.csv                         the challenge's anomaly score and decision files
RUN/scores/leave_one_out_*.csv           name,score of the normal training clips
RUN/scores/thresholds.csv                machine,section,threshold
RUN/results.csv                          machine,metric,value
RUN/search.csv                           ways to score the embeddings (`asdjax search`)
RUN/skipped.csv                          broken files left out with --skip-bad, and why
RUN/figures/*.png
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from asdjax.artifact import Product, is_finished, recorded
from asdjax.config import SystemConfig, from_json, to_json
from asdjax.data import layout
from asdjax.data.audio import AudioInfo
from asdjax.files import (
    atomic,
    content_of,
    content_of_file,
    mapped,
    read_csv,
    write_csv,
    write_json,
)
from asdjax.types import CONTENT, Clip, Embeddings, InputError, Split, preview
from asdjax.version import __version__

FORMAT = 4  # of the folder
MODEL = "model.safetensors"
SCORES = "scores"
LABELS = "pseudo/labels.csv"
RECORD = "ensemble.json"  # of an ensemble's folder
ENSEMBLE = "scores/ensemble"  # its scores
OF_TRAINING = (MODEL, "labels.json", "log.jsonl", "checkpoints", "first-stage")
AFTER_EMBEDDING = (SCORES, "results.csv", "skipped.csv", "figures")
PART = ".part"  # of a file of embeddings that is not finished
Group = tuple[str, str]  # machine and section


@dataclass(frozen=True)
class Run:
    """What a run computes, and on what.

    Args:
      system: the system.
      data: the folder of the recordings.
      clips: recordings to train on and to score.
      year: the edition whose rules apply; None where neither data nor user say.
      weights: SHA-256 of the weights of each encoder, "" without.
      skipped: broken files and what is wrong with them.
      unlike: test clips unlike all training clips of their machine, and in what.
      supplement: clips that only training uses.
      infos: what is known of each file while it is at hand; not stored.
    """

    system: SystemConfig
    data: Path
    clips: tuple[Clip, ...]
    year: int | None
    weights: tuple[str, ...]
    skipped: dict[str, str]
    unlike: dict[str, str] = field(default_factory=dict)
    supplement: tuple[Clip, ...] = ()
    infos: Mapping[Path, AudioInfo] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def groups(self) -> dict[Group, tuple[Clip, ...]]:
        """(machine, section) -> its clips, in the order of the clips."""
        groups: dict[Group, list[Clip]] = {}
        for clip in self.clips:
            groups.setdefault(clip.group, []).append(clip)
        return {group: tuple(clips) for group, clips in groups.items()}

    def select(self, group: Group, split: Split) -> tuple[Clip, ...]:
        """Return the clips of one machine and section in one split."""
        return tuple(clip for clip in self.groups[group] if clip.split == split)

    @property
    def training_clips(self) -> tuple[Clip, ...]:
        """Return the normal training clips and, behind them, the supplemental ones."""
        return (*(clip for clip in self.clips if clip.split == "train"), *self.supplement)

    @cached_property
    def challenge(self) -> bool:
        """Return whether the challenge's rules apply."""
        return is_challenge(self.clips, self.year)

    # What the products depend on.

    def model(self, out: Path) -> Product:
        """Return the product of the training."""
        train = to_json(self.system.train)
        for name in self.system.train.without_effect:
            del train[name]
        key = {**self.encoding, "train": train, "recordings": recordings(self.training_clips)}
        return Product(out, MODEL, key, beside=("labels.json",))

    def embeddings(self, out: Path, group: Group) -> Product:
        """Return the product of embedding one machine and section by the model in `out`."""
        key = {**self.encoding, "recordings": recordings(self.groups[group], labels=False)}
        if self.system.train is not None:
            key["trained"] = recorded(out, MODEL)["files"].get(MODEL, "")
        return Product(out, f"embeddings/{group[0]}_{group[1]}.npz", key)

    def scores(self, out: Path) -> Product:
        """Return the product of scoring the embeddings in `out`."""
        key = {
            "asdjax": __version__,
            "scorer": to_json(self.system.scorer),
            "year": self.year,
            "recordings": recordings(self.clips),
            "embeddings": content_of([self._embedded(out, group) for group in self.groups]),
        }
        return Product(out, SCORES, key)

    def _embedded(self, out: Path, group: Group) -> dict:
        """Return the content of the embeddings of a machine and section, {} before they are."""
        product = self.embeddings(out, group)
        found = recorded(out, product.name)
        return found["files"] if found["key"] == product.key else {}

    def figures(self, out: Path) -> Product:
        """Return the product of drawing the scores in `out`."""
        files = sorted((out / SCORES).glob("*.csv"))
        key = {
            "asdjax": __version__,
            "scores": content_of([(file.name, content_of_file(file)) for file in files]),
            "labels": content_of([(c.name, c.label, c.domain, c.content) for c in self.clips]),
        }
        return Product(out, "figures", key)

    @property
    def encoding(self) -> dict:
        """Return the part of these keys that says how a sound becomes a vector."""
        encoders = to_json(self.system.encoders)
        for encoder, sha256 in zip(encoders, self.weights, strict=True):
            if sha256:  # what the weights are, not where they lie
                encoder["weights"] = CONTENT + sha256
        return {
            "asdjax": __version__,
            "encoders": encoders,
            "audio": to_json(self.system.audio),
        }


def is_challenge(clips: Iterable[Clip], year: int | None) -> bool:
    """Return whether clips are the challenge's: by their names, or a year that is given."""
    return year is not None or any(layout.parse(clip.path.stem) for clip in clips)


def recordings(clips: Iterable[Clip], labels: bool = True) -> dict[str, dict]:
    """Return by machine and section how many clips there are, and digests of what they are.

    Args:
      labels: domains and attributes count, too.
    """
    found: dict[str, list[Clip]] = {}
    for clip in clips:
        found.setdefault(" ".join(clip.group), []).append(clip)
    counted = {}
    for group, own in found.items():
        sounds = [(clip.name, clip.split, clip.supplement, clip.content) for clip in own]
        counted[group] = {"clips": len(own), "content": content_of(sounds)}
        if labels:
            counted[group]["labels"] = content_of([(c.domain, c.attributes) for c in own])
    return counted


def save(out: Path, run: Run) -> None:
    """Write `clips.json` and `config.json`; what does not follow from them is removed."""
    if not is_finished(run.scores(out)):
        clear(out, *AFTER_EMBEDDING)
    if run.system.train is None:
        clear(out, *OF_TRAINING)
    own = {run.embeddings(out, group).path.name for group in run.groups}
    for path in out.glob("embeddings/*.npz*"):
        if path.name.removesuffix(PART) not in own:
            clear(path.parent, path.name)
    described = {
        "format": FORMAT,
        "asdjax": __version__,
        "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.local_devices()],
        "system": to_json(run.system),
        "data": str(run.data),
        "year": run.year,
        "weights": run.weights,
        "skipped": run.skipped,
        "unlike": run.unlike,
        "transductive": False,  # no scorer uses statistics of test clips
    }
    clips = [*run.clips, *run.supplement]
    write_json(out / "clips.json", [{**dataclasses.asdict(c), "path": str(c.path)} for c in clips])
    write_json(out / "config.json", described)  # where it is, the clips are


def clear(out: Path, *names: str) -> None:
    """Remove files and folders that no longer follow from a run's configuration."""
    for path in (out / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def load(out: Path) -> Run:
    """Read what `save` wrote; InputError when `out` is no run's folder."""
    described, clips = _read(out, "config.json"), _read(out, "clips.json")
    refuse_others(out)
    clips = [Clip(**{**clip, "path": Path(clip["path"])}) for clip in clips]
    return Run(
        from_json(described["system"]),
        Path(described["data"]),
        tuple(clip for clip in clips if clip.split != "supplemental"),
        described["year"],
        tuple(described["weights"]),
        described["skipped"],
        described["unlike"],
        tuple(clip for clip in clips if clip.split == "supplemental"),
    )


def load_scored(out: Path) -> Run:
    """Read a run as `load` does.

    Raises:
      InputError: also where its scores are missing, or not those of its embeddings.
    """
    run = load(out)
    if not is_finished(run.scores(out)):
        raise InputError(
            f"{out / SCORES} is not complete, or not of the embeddings and the scorer of this run; "
            f"give `asdjax score {out}`"
        )
    return run


def refuse_others(out: Path, force: bool = False) -> None:
    """Raise an InputError if a folder holds an ensemble, or a run of another form than today's.

    Args:
      force: an old run may be replaced.
    """
    config = out / "config.json"
    if not force and config.is_file() and _read(out, config.name).get("format") != FORMAT:
        raise InputError(
            f"{out} holds a run of another version of asdjax; run again into another folder, or "
            "into this one with --force"
        )
    if (out / RECORD).is_file():
        raise InputError(f"{out} holds an ensemble; give the run a folder of its own")


def _read(out: Path, name: str):
    try:
        return json.loads((out / name).read_text())
    except FileNotFoundError as error:
        raise InputError(f"expected a run's folder, got {out} without {name}") from error
    except ValueError as error:
        raise InputError(f"{out}: {name} is damaged; run it again with --force") from error


def save_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write the rows of one machine and section."""
    names = np.array([clip.name for clip in embeddings.clips])
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values=embeddings.values, names=names)


def load_embeddings(out: Path, run: Run, group: Group) -> Embeddings:
    """Return the rows of a machine and section, which stay in their file.

    Raises:
      InputError: they are absent, damaged, or made from other things.
    """
    product = run.embeddings(out, group)
    if not is_finished(product):
        raise InputError(
            f"{product.path} is not there, or not of this system, model and recordings; give the "
            "run's command again"
        )
    return Embeddings(run.groups[group], mapped(product.path, "values"))


def save_left_out(folder: Path, clips: Sequence[Clip], values: np.ndarray) -> None:
    """Write the leave-one-out scores `[n]` of the training clips of one machine and section."""
    rows = zip([clip.name for clip in clips], values.tolist(), strict=True)
    write_csv(folder / left_out_name(clips[0].group), list(rows))


def load_left_out(folder: Path, group: Group) -> dict[str, float]:
    """Return what `save_left_out` wrote, by name of clip; empty where there is no such file.

    The score of the only clip of a set is inf.

    Args:
      folder: of score files, which may lie at any depth.

    Raises:
      InputError: several such files, rows that are not a name and a number, a name given twice.
    """
    paths = sorted(folder.rglob(left_out_name(group)))
    if len(paths) > 1:
        raise InputError(f"expected scores of the same clips once, got {preview(paths)}")
    rows = read_csv(paths[0]) if paths else []
    try:
        found = {name: float(score) for name, score in rows}
    except ValueError as error:
        raise InputError(f"{paths[0]}: expected rows <file>.wav,<score> ({error})") from error
    if len(found) < len(rows) or any(map(math.isnan, found.values())):
        raise InputError(f"{paths[0]}: expected one number for each clip")
    return found


def save_thresholds(folder: Path, thresholds: Mapping[Group, float]) -> None:
    """Write the threshold of each machine and section: above it a clip is an anomaly."""
    rows = [(*group, value) for group, value in thresholds.items()]
    write_csv(folder / "thresholds.csv", [("machine", "section", "threshold"), *rows])


def load_thresholds(folder: Path) -> dict[Group, float]:
    """Read what `save_thresholds` wrote; empty where there is no such file."""
    path = folder / "thresholds.csv"
    rows = read_csv(path)[1:] if path.is_file() else []
    return {(machine, section): float(value) for machine, section, value in rows}


def left_out_name(group: Group) -> str:
    return f"leave_one_out_{'_'.join(group)}_train.csv"
