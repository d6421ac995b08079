"""What travels between rooms: clips, embeddings, scores, and the one error meant for the user.

Arrays here are numpy on the host. File formats of these values are in `asdjax.files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np

SAMPLE_RATE_HZ = 16_000  # every DCASE Task 2 edition and every backbone here

Domain = Literal["source", "target"]
Split = Literal["train", "test", "supplemental"]
NORMAL, ANOMALY = 0, 1
BOTH = "wiener", "magnitude", "residual"  # ways to use a near and a far microphone together
CONTENT = "content:"  # begins the digests that keys hold
ORDER, NOISE, HELD_OUT, SYNTHETIC = range(4)  # streams of random numbers of one seed


class InputError(ValueError):
    """A user's mistake: the message says what was expected, what came, where, and what to do.

    The command line prints it without a traceback and exits with 1.
    """


def preview(names: Iterable[object], most: int = 200) -> str:
    """Return names in one line for a message, those beyond `most` as a number."""
    names = list(map(str, names))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(count: int, noun: str) -> str:
    """Return e.g. "1 copy" or "2 copies"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def random_numbers(seed: int, stream: int, number: int = 0) -> np.random.Generator:
    """Return the random numbers of a step or turn; two streams of one seed never coincide."""
    return np.random.default_rng((seed, number, stream))


def check(config: object, *rules: tuple[str, str, bool]) -> None:
    """Refuse a configuration with all that is wrong in it.

    Args:
      rules: the name of a field, what is expected of it, and whether that holds.

    Raises:
      InputError: rules that do not hold, and fields of a `Literal` type with another value.
    """
    words = [
        (name, " or ".join(map(repr, get_args(kind))), getattr(config, name) in get_args(kind))
        for name, kind in get_type_hints(type(config)).items()
        if get_origin(kind) is Literal
    ]
    wrong = [
        f"{type(config).__name__}.{name}: expected {expected}, got {getattr(config, name)!r}"
        for name, expected, holds in (*words, *rules)
        if not holds
    ]
    if wrong:
        raise InputError("; ".join(wrong))


@dataclass(frozen=True)
class Reported:
    """What a report says of the training of its system, to be told beside ours.

    Args:
      parameters: all and trained weights as it counts them, e.g. "90M / 3.73M"; "": it does not.
      classes: that it trained on; 0: it does not say.
      machines: types in the development and additional training sets of its year; 0: none.
    """

    parameters: str = ""
    classes: int = 0
    machines: int = 0


@dataclass(frozen=True)
class Clip:
    """One recording and what its name, folder and csv files say of it (no audio)."""

    path: Path
    machine: str  # machine type, e.g. "ToyCar"; case sensitive
    section: str  # "section_00"; the machine ID "id_01" in 2020
    split: Split
    domain: Domain | None = None  # None: no domains (2020, own folder) or hidden (evaluation test)
    label: int | None = None  # NORMAL, ANOMALY, or None when unknown
    attributes: str = ""  # the whole attribute string, one class label; "" when absent or hidden
    full_name: str = ""  # the name with attributes that the organisers published later, if known
    supplement: Literal["clean", "noise", "unknown"] | None = None  # 2025 supplemental clips only
    content: str = ""  # digest of the decoded samples, once the file was decoded

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def group(self) -> tuple[str, str]:
        """Clips of one group share a reference set, a threshold and a score file."""
        return self.machine, self.section


@dataclass(frozen=True)
class DataSet:
    """The clips below one directory, sorted by path, and the challenge edition they come from."""

    root: Path
    clips: tuple[Clip, ...]
    year: int | None = None  # 2020..2026 when the layout or the path tells, else None
    notes: tuple[str, ...] = ()  # lines for the console: where labels came from, what was not used

    def select(self, split: Split) -> tuple[Clip, ...]:
        return tuple(clip for clip in self.clips if clip.split == split)


def take_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return rows of an array; a view where they follow each other, so that a mapped file stays."""
    if len(rows) and (np.diff(rows) == 1).all():
        return values[rows[0] : rows[-1] + 1]
    return values[rows]


@dataclass(frozen=True)
class Embeddings:
    """One row per clip."""

    clips: tuple[Clip, ...]
    values: np.ndarray  # [n, E] float32; of a run's file it is memory-mapped

    def take(self, rows: Sequence[int] | np.ndarray) -> Embeddings:
        rows = np.asarray(rows, dtype=int)
        return Embeddings(tuple(self.clips[i] for i in rows), take_rows(self.values, rows))

    def select(self, split: Split) -> Embeddings:
        return self.take([i for i, clip in enumerate(self.clips) if clip.split == split])


@dataclass(frozen=True)
class Scores:
    """Anomaly scores of one score file: one machine type and section (2021: and one domain).

    Larger = more anomalous, always.
    """

    machine: str
    section: str  # as in `Clip.section`
    names: tuple[str, ...]  # file names as in the challenge's csv, e.g. "section_00_0000.wav"
    values: np.ndarray  # [n] float64
    decisions: np.ndarray | None = None  # [n] int, 1 = anomaly; None in 2020
    domain: Domain | None = None  # 2021 only: one file per domain
