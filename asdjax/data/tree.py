"""Walk `<machine>/{train,test,...}` directories, and say what is wrong with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from asdjax.data.names import AUDIO_SUFFIXES
from asdjax.types import NORMAL, Clip, Domain, InputError, Split, preview

SECTION = "section_00"  # of a clip whose name tells none
SPLIT_FOLDERS: dict[str, tuple[Split, Domain | None]] = {
    "train": ("train", None),
    "test": ("test", None),
    "source_test": ("test", "source"),  # 2021
    "target_test": ("test", "target"),  # 2021
    "supplemental": ("supplemental", None),  # 2025
}
OTHER_SUFFIXES = (".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma", ".aif", ".aiff", ".caf", ".raw")
_NESTING = re.compile(r"dcase20\d\dt2|dev_data|eval_data|raw", re.IGNORECASE)
_COPIES = "test_rename"  # the official baseline puts renamed copies of the test clips there


def machine_folders(root: Path) -> list[Path]:
    """Return the `<machine>` folders of `root`, also below `dcase20XXt2/{dev,eval}_data/raw`.

    Raises:
        InputError: there are none, or `root` is itself the folder of one machine.
    """
    if not root.is_dir():
        raise InputError(f"expected a directory of machine folders, got {root}; check the path")
    if _is_machine(root):
        raise InputError(
            f"expected a directory of machine folders, got the folder of one machine: {root}; "
            f"pass the directory above it, {root.absolute().parent}"
        )
    machines = [folder for base in _bases(root) for folder in _folders(base) if _is_machine(folder)]
    if not machines:
        content = preview(sorted(child.name for child in root.iterdir())) or "nothing"
        raise InputError(
            f"expected machine folders {root}/<machine>/train/*.wav, got {content}; "
            "check the path, or move each machine's recordings into <machine>/train"
        )
    return machines


def recordings(machines: Sequence[Path]) -> list[Clip]:
    """Return a clip for each recording with what its folder says, sorted by path."""
    clips = [
        Clip(path, machine.name, SECTION, split, domain, NORMAL if split == "train" else None)
        for machine in machines
        for name, (split, domain) in SPLIT_FOLDERS.items()
        for path in _audio_files(machine / name)
    ]
    return sorted(clips, key=lambda clip: clip.path)


def find_problems(machines: Sequence[Path], found: Sequence[Clip]) -> list[str]:
    """Return a line for each folder of misplaced recordings, empty machine, and for doubles."""
    filled = {clip.path.parent.parent for clip in found}
    empty = [f"{machine}: no wav or flac files" for machine in machines if machine not in filled]
    names = Counter((clip.machine, clip.split, clip.name) for clip in found)
    doubled = [" ".join(name) for name, count in names.items() if count > 1]
    if doubled:
        doubled = [f"found more than once, keep one of each: {preview(doubled)}"]
    return _find_misplaced(machines) + _find_other_formats(machines) + empty + doubled


def _find_other_formats(machines: Sequence[Path]) -> list[str]:
    """Return a line for each folder that holds recordings of a format that is not read."""
    folders = [machine / split for machine in machines for split in SPLIT_FOLDERS]
    files = {folder: _files(folder, OTHER_SUFFIXES) for folder in folders}
    return [
        f"{folder}: {len(found)} recordings that are neither wav nor flac; convert or remove them: "
        f"{preview([path.name for path in found])}"
        for folder, found in files.items()
        if found
    ]


def find_untrained(clips: Sequence[Clip]) -> list[str]:
    """Return a line for each machine and section without train clips."""
    trained = {clip.group for clip in clips if clip.split == "train"}
    counts = Counter(clip.group for clip in clips if clip.group not in trained)
    return [
        f"{machine} {section}: {count} clips but none to train on; put normal recordings into "
        f"{machine}/train (the challenge has the train part in an archive of its own)"
        for (machine, section), count in sorted(counts.items())
    ]


def refuse(where: Path, problems: Sequence[str]) -> None:
    """Raise one InputError that lists all problems, if there are any."""
    if problems:
        raise InputError(f"{where} cannot be used:\n" + "\n".join(f"- {line}" for line in problems))


def _bases(directory: Path) -> list[Path]:
    nested = [folder for folder in _folders(directory) if _NESTING.fullmatch(folder.name)]
    return [directory] + [base for folder in nested for base in _bases(folder)]


def _folders(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_machine(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in SPLIT_FOLDERS)


def _audio_files(folder: Path) -> list[Path]:
    return _files(folder, AUDIO_SUFFIXES)


def _files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files directly in `folder` with these endings; none that are hidden."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]


def _find_misplaced(machines: Sequence[Path]) -> list[str]:
    """Return a line for each folder that holds recordings where no clip is looked for."""
    folders = {machine.parent for machine in machines}
    folders |= {folder for base in folders for folder in _folders(base)}
    folders |= {folder for machine in machines for folder in _folders(machine)}
    folders |= {
        folder for path in folders if path.name in SPLIT_FOLDERS for folder in _folders(path)
    }
    return [
        f"{folder}: {len(files)} recordings outside <machine>/train and <machine>/test; "
        "move or remove them"
        for folder in sorted(folders)
        if folder.name not in SPLIT_FOLDERS and folder.name != _COPIES
        if (files := _audio_files(folder))
    ]
