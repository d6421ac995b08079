"""A run's folder: what is in it, and the parts of it that are read back.

RUN/config.json                          system, data, weights, versions, what was skipped
RUN/clips.json                           the clips, with labels where they are known
RUN/labels.json                          classes of each head of a trained system
RUN/checkpoints/                         states of the training to go on from
RUN/log.jsonl                            a line per logged step of the training
RUN/model.safetensors                    what was trained: adapters, or all weights; pooling; heads
RUN/first-stage/                         with pseudo labels: the training they are from, embedded
RUN/pseudo/labels.csv, *.png             pseudo labels of clips without attributes; figures of them
RUN/embeddings/<machine>_<section>.npz   values [n, E], names [n], key
RUN/scores/*.csv                         the challenge's anomaly score and decision files
RUN/scores/leave_one_out_*.csv           name,score of the normal training clips
RUN/results.csv                          machine,metric,value
RUN/skipped.csv                          broken files left out with --skip-bad, and why
RUN/figures/*.png
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np

from asdjax.config import SystemConfig, digest, from_json, to_json
from asdjax.files import atomic, read_csv, write_csv, write_json
from asdjax.types import Clip, Embeddings, InputError, Split, preview
from asdjax.version import __version__

MODEL = "model.safetensors"
SCORES = "scores"
Group = tuple[str, str]  # machine and section


@dataclass(frozen=True)
class Run:
    """How a run was made and on what."""

    system: SystemConfig
    data: Path
    clips: tuple[Clip, ...]
    year: int | None  # the edition whose rules apply; None where neither data nor user tell
    weights_sha256: str  # "" where the embedder has no weights
    skipped: dict[str, str]  # broken files and what is wrong with them
    keys: dict[str, str] = field(default_factory=dict)  # embeddings file -> what it is made from
    supplement: tuple[Clip, ...] = ()  # clips that training uses besides; nothing else sees them

    @property
    def groups(self) -> dict[Group, tuple[Clip, ...]]:
        """(machine, section) -> its clips, in the order of the clips."""
        groups: dict[Group, list[Clip]] = {}
        for clip in self.clips:
            groups.setdefault(clip.group, []).append(clip)
        return {group: tuple(clips) for group, clips in groups.items()}

    def select(self, group: Group, split: Split) -> tuple[Clip, ...]:
        return tuple(clip for clip in self.groups[group] if clip.split == split)

    def with_keys(self) -> Run:
        """Return the run with a digest of what each file of embeddings depends on."""
        return replace(self, keys={_name(g): self._key(clips) for g, clips in self.groups.items()})

    def _key(self, clips: Sequence[Clip]) -> str:
        files = [(clip.name, clip.split, clip.path.stat()) for clip in clips]
        content = [(name, split, s.st_size, s.st_mtime_ns) for name, split, s in files]
        system = self.system.embedder, self.system.audio, self.weights_sha256, __version__
        return digest(*system, content)


def save(out: Path, run: Run) -> None:
    """Write `config.json` and `clips.json`."""
    described = {
        "asdjax": __version__,
        "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.local_devices()],
        "system": to_json(run.system),
        "system_sha256": digest(run.system),
        "data": str(run.data),
        "data_sha256": digest([(*clip.group, clip.name, clip.label) for clip in run.clips]),
        "year": run.year,
        "weights_sha256": run.weights_sha256,
        "skipped": run.skipped,
        "embeddings": run.keys,
        "transductive": False,  # no scorer uses statistics of test clips
    }
    write_json(out / "config.json", described)
    clips = [*run.clips, *run.supplement]
    write_json(out / "clips.json", [{**dataclasses.asdict(c), "path": str(c.path)} for c in clips])


def clear(out: Path, *names: str) -> None:
    """Remove files and folders of a run that no longer follow from its configuration."""
    for path in (out / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def load(out: Path) -> Run:
    """Read what `save` wrote; InputError when `out` is no run's folder."""
    try:
        described = json.loads((out / "config.json").read_text())
        clips = json.loads((out / "clips.json").read_text())
    except FileNotFoundError as error:
        raise InputError(f"expected a run's folder, got {out} without {error.filename}") from error
    except ValueError as error:
        raise InputError(f"{out}: config.json or clips.json is damaged; run it again") from error
    clips = [Clip(**{**clip, "path": Path(clip["path"])}) for clip in clips]
    return Run(
        from_json(described["system"]),
        Path(described["data"]),
        tuple(clip for clip in clips if clip.split != "supplemental"),
        described["year"],
        described["weights_sha256"],
        described["skipped"],
        described["embeddings"],
        tuple(clip for clip in clips if clip.split == "supplemental"),
    )


def save_embeddings(out: Path, run: Run, embeddings: Embeddings) -> None:
    """Write the rows of one machine and section."""
    name = _name(embeddings.clips[0].group)
    names = np.array([clip.name for clip in embeddings.clips])
    with atomic(out / "embeddings" / name) as temporary, temporary.open("wb") as file:
        np.savez(file, values=embeddings.values, names=names, key=np.array(run.keys[name]))


def load_embeddings(out: Path, run: Run, group: Group) -> Embeddings | None:
    """Read the rows of a machine and section; None if absent, damaged or made from other things."""
    name = _name(group)
    try:
        with (out / "embeddings" / name).open("rb") as stream, np.load(stream) as file:
            key, values = str(file["key"]), file["values"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return Embeddings(run.groups[group], values) if key == run.keys[name] else None


def save_left_out(out: Path, clips: Sequence[Clip], values: np.ndarray) -> None:
    """Write the leave-one-out scores `[n]` of the training clips of one machine and section."""
    names = [clip.name for clip in clips]
    write_csv(_left_out(out, clips[0].group), list(zip(names, values.tolist(), strict=True)))


def load_left_out(out: Path, run: Run, group: Group) -> np.ndarray:
    """Read the leave-one-out scores of a machine and section, in the order of its training clips.

    Returns:
      `[n]` float64.
    Raises:
      InputError: the run was scored before they were kept, the file is damaged or of other clips,
        or a score is not finite.
    """
    path, names = _left_out(out, group), [clip.name for clip in run.select(group, "train")]
    again = f"give `asdjax score {out}` again"
    if not path.is_file():
        raise InputError(f"expected leave-one-out scores of training clips in {path}: {again}")
    try:
        rows = [(name, float(value)) for name, value in read_csv(path)]
    except ValueError as error:
        raise InputError(f"{path}: expected rows <file>.wav,<number> ({error}): {again}") from error
    if [name for name, _ in rows] != names:
        raise InputError(f"{path}: expected the {len(names)} training clips of the run: {again}")
    if bad := [name for name, value in rows if not np.isfinite(value)]:
        raise InputError(f"{path}: expected finite scores, got others of {preview(bad)}")
    return np.array([value for _, value in rows])


def _left_out(out: Path, group: Group) -> Path:
    return out / SCORES / f"leave_one_out_{'_'.join(group)}_train.csv"


def _name(group: Group) -> str:
    return f"{group[0]}_{group[1]}.npz"
