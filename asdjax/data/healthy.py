"""Recordings of healthy machines alone, to fit a detector to: no test clips, no labels.

What is given may be folders or files:

    DIR/<machine>/train/*.wav     as for a run; test clips are left out
    DIR/train/*.wav               one machine, DIR
    DIR/<machine>/*.wav           a folder of each machine
    DIR/*.wav, FILES              one machine, called as the folder that they are in
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from asdjax.data import dcase, layout, words
from asdjax.types import ANOMALY, NORMAL, Clip, DataSet, InputError, counted, preview


def gather(sources: Sequence[Path]) -> DataSet:
    """Return the clips of folders or files, all of them to train on, in the order of their names.

    Raises:
      InputError: nothing there, sound in other formats, names that say anomaly, files given twice.
    """
    if not sources:
        raise InputError("expected a folder of healthy recordings, or files, got none")
    sources = [Path(source).absolute() for source in sources]
    clips, notes, year = [], [], None
    for source in sources:
        if not source.exists():
            raise InputError(f"{source}: no such folder or file; expected healthy recordings")
        dataset = _folder(source) if source.is_dir() else DataSet(source, (clip_of(source),))
        clips += dataset.clips
        notes += dataset.notes
        year = dataset.year or year
    _refuse(clips)
    clips.sort(key=lambda clip: natural(clip.path))
    root = sources[0] if sources[0].is_dir() else sources[0].parent
    return DataSet(root, tuple(clips), year, tuple(notes))


def natural(path: Path) -> list[tuple[int, str]]:
    """Return what paths are sorted by so that `clip 2` is before `clip 10`."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def recordings(sources: Iterable[Path]) -> Iterator[Path]:
    """Yield files, and the recordings at any depth of folders, each once, in natural order.

    Raises:
      InputError: no such file or folder, or a folder without recordings.
    """
    seen = set()
    if not (sources := list(sources)):
        raise InputError("expected recordings or folders of them, got none")
    for source in map(Path, sources):
        if not source.exists():
            raise InputError(f"{source}: no such folder or file")
        found = [source]
        if source.is_dir():
            every = [path for one in (source, *source.rglob("*/")) for path in layout.files(one)]
            found = sorted(every, key=natural)
        if not found:
            raise InputError(f"{source}: expected wav or FLAC recordings, got none")
        yield from (path for path in found if path not in seen)
        seen.update(found)


def _folder(folder: Path) -> DataSet:
    """Return the clips of a folder in any of its forms."""
    if layout.is_machine(folder):
        return DataSet(folder, _clips(layout.files(folder / "train"), folder))
    below = layout.folders(folder)
    if any(layout.is_machine(one) for base in layout.bases(folder) for one in layout.folders(base)):
        dataset = dcase.scan(folder)
        left = counted(len(dataset.clips) - len(dataset.select("train")), "clip")
        notes = () if left.startswith("0 ") else (f"{left} outside of train left out",)
        return replace(dataset, clips=dataset.select("train"), notes=notes)
    direct = _clips(layout.files(folder), _machine_of(folder))
    inside = [clip for child in below for clip in _clips(layout.files(child), child)]
    if direct and inside:
        raise InputError(
            f"{folder}: recordings in it and in folders below it; keep those of a machine in one "
            "folder"
        )
    if not (direct or inside):
        every = [p for one in (folder, *below) for p in layout.files(one, layout.OTHER_SUFFIXES)]
        got = f"{preview([p.name for p in every], 5)}; convert them" if every else "none"
        raise InputError(f"{folder}: expected wav or FLAC recordings, got {got}")
    tables = [path for one in (folder, *below) if (path := one / "labels.csv").is_file()]
    notes = [f"{path} is not read: it counts beside <machine>/train" for path in tables]
    return DataSet(folder, tuple(direct or inside), notes=tuple(notes))


def _clips(paths: Iterable[Path], machine: Path) -> tuple[Clip, ...]:
    return tuple(replace(clip_of(path), machine=machine.name) for path in sorted(paths))


def clip_of(path: Path) -> Clip:
    """Return a healthy clip of the machine whose folder it is in, with what its name says."""
    clip = Clip(path, _machine_of(path.parent).name, layout.SECTION, "train", None, NORMAL)
    if name := layout.parse(path.stem):
        clip = replace(clip, section=name.section, domain=name.domain, attributes=name.attributes)
    return clip


def _machine_of(folder: Path) -> Path:
    """Return the folder of the machine: the one above if recordings lie in its `train`."""
    return folder.parent if folder.name in layout.SPLIT_FOLDERS else folder


def _refuse(clips: Sequence[Clip]) -> None:
    by_name = words.labels(clip.path.stem for clip in clips)
    strange = [clip.path for clip in clips if by_name[clip.path.stem] == ANOMALY]
    doubled = [path for path, count in Counter(c.path for c in clips).items() if count > 1]
    problems = [f"names that say anomaly: {preview(strange, 10)}"] if strange else []
    problems += [f"given twice: {preview(doubled, 10)}"] if doubled else []
    if problems:
        raise InputError(
            f"expected healthy recordings, each once, got {'; '.join(problems)}; take them out, or "
            "rename them"
        )
