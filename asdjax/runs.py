"""A run's folder: what is in it, and the parts of it that are read back.

RUN/config.json                          system, data, weights, versions, what was skipped
RUN/clips.json                           the clips, with labels where they are known
RUN/embeddings/<machine>_<section>.npz   values [n, E], names [n], key
RUN/scores/knn/*.csv                     the challenge's anomaly score and decision files
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
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from asdjax.config import SystemConfig, digest, from_json, to_json
from asdjax.files import atomic, write_json
from asdjax.types import Clip, Embeddings, InputError
from asdjax.version import __version__

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

    @property
    def groups(self) -> dict[Group, tuple[Clip, ...]]:
        """(machine, section) -> its clips, in the order of the clips."""
        groups: dict[Group, list[Clip]] = {}
        for clip in self.clips:
            groups.setdefault(clip.group, []).append(clip)
        return {group: tuple(clips) for group, clips in groups.items()}

    def key(self, clips: Sequence[Clip]) -> str:
        """Return what an embedding of these clips depends on, as a digest."""
        files = [(clip.name, clip.path.stat()) for clip in clips]
        content = [(name, status.st_size, status.st_mtime_ns) for name, status in files]
        return digest(self.system.embedder, self.system.audio, self.weights_sha256, content)


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
        "transductive": False,  # no scorer uses statistics of test clips
    }
    write_json(out / "config.json", described)
    write_json(
        out / "clips.json", [{**dataclasses.asdict(c), "path": str(c.path)} for c in run.clips]
    )


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
    return Run(
        from_json(described["system"]),
        Path(described["data"]),
        tuple(Clip(**{**clip, "path": Path(clip["path"])}) for clip in clips),
        described["year"],
        described["weights_sha256"],
        described["skipped"],
    )


def save_embeddings(out: Path, embeddings: Embeddings, key: str) -> None:
    """Write the rows of one machine and section."""
    names = np.array([clip.name for clip in embeddings.clips])
    path = embeddings_path(out, embeddings.clips[0].group)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values=embeddings.values, names=names, key=np.array(key))


def load_embeddings(out: Path, clips: Sequence[Clip], key: str | None = None) -> Embeddings | None:
    """Read the rows of one machine and section; None when made under another key.

    Raises:
      InputError: without a key: no such file, a damaged one, or one of other clips.
    """
    path = embeddings_path(out, clips[0].group)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            made_by, names, values = str(file["key"]), list(file["names"]), file["values"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # absent or damaged
        made_by, names, values = None, None, None
    if key is not None:
        return Embeddings(tuple(clips), values) if made_by == key else None
    if names != [clip.name for clip in clips]:
        raise InputError(f"expected the clips of clips.json in {path}; run it again to the end")
    return Embeddings(tuple(clips), values)


def embeddings_path(out: Path, group: Group) -> Path:
    return out / "embeddings" / f"{group[0]}_{group[1]}.npz"
