"""Folders and file names of DCASE Task 2, 2020-2026: where clips are, and what a name says.

The organisers' layouts:

    2020        <machine>/{train,test}/[{normal|anomaly}_]id_01_00000000.wav
    2021        <machine>/{train,source_test,target_test}/section_00_...wav
    2022-2026   <machine>/{train,test}/section_00_...wav, <machine>/attributes_00.csv
    2025        <machine>/supplemental/section_00_<kind>_0001...wav as well

The counter in a name is nothing but a counter: it starts at 0 or 1 and has gaps. The attribute
string is one label and is never split, because parameter names contain `_` and values none.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asdjax.types import ANOMALY, NORMAL, Clip, Domain, InputError, Split, counted, preview

MOST_IN_NOTE = 5  # names in a line on the console
SECTION = "section_00"  # of a clip whose name has none
SPLIT_FOLDERS: dict[str, tuple[Split, Domain | None]] = {
    "train": ("train", None),
    "test": ("test", None),
    "source_test": ("test", "source"),  # 2021
    "target_test": ("test", "target"),  # 2021
    "supplemental": ("supplemental", None),  # 2025
}
AUDIO_SUFFIXES = (".wav", ".flac")
OTHER_SUFFIXES = (".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma", ".aif", ".aiff", ".caf", ".raw")
_NESTING = re.compile(r"dcase20\d\dt2|dev_data|eval_data|raw", re.IGNORECASE)
_COPIES = "test_rename"  # the official baseline puts renamed copies of the test clips there

_LABELS = {"normal": NORMAL, "anomaly": ANOMALY}
_SECTION = re.compile(  # 2021-2026; `train|test` is missing in full names of RoboticArm 2024
    r"(?P<section>section_\d\d)_"
    r"(?:(?P<domain>source|target)_(?:(?P<split>train|test)_)?(?:(?P<label>normal|anomaly)_)?)?"
    r"\d{4}(?:_(?P<attributes>.*))?"
)
_MACHINE_ID = re.compile(r"(?:(?P<label>normal|anomaly)_)?(?P<section>id_\d\d)_\d{8}")  # 2020
_SUPPLEMENTAL = re.compile(r"(?P<section>section_\d\d)_(?P<kind>\D*)_\d+_?(?P<attributes>.*)")


# --- folders


def machine_folders(root: Path) -> list[Path]:
    """Return the `<machine>` folders of `root`, also below `dcase20XXt2/{dev,eval}_data/raw`.

    Raises:
        InputError: there are none, or `root` is itself the folder of one machine.
    """
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        raise InputError(
            f"expected a directory of machine folders at {root}, got {what}; check the path"
        )
    if is_machine(root):
        raise InputError(
            f"expected a directory of machine folders, got the folder of one machine: {root}; "
            f"pass the directory above it, {root.absolute().parent}"
        )
    machines = [folder for base in bases(root) for folder in folders(base) if is_machine(folder)]
    if not machines:
        content = preview(sorted(child.name for child in root.iterdir()), 20) or "nothing"
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
        for path in files(machine / name)
    ]
    return sorted(clips, key=lambda clip: clip.path)


def find_problems(machines: Sequence[Path], found: Sequence[Clip]) -> list[str]:
    """Return a line for each folder of misplaced or unreadable recordings, each machine without
    any, and for recordings found twice."""
    problems = [
        f"{folder}: {counted(len(stray), 'recording')} outside <machine>/train and <machine>/test; "
        "move or remove them"
        for folder in sorted(_other_folders(machines))
        if (stray := files(folder))
    ]
    problems += [
        f"{machine / split}: {len(others)} recordings that are neither wav nor flac; convert or "
        f"remove them: {preview([path.name for path in others])}"
        for machine in machines
        for split in SPLIT_FOLDERS
        if (others := files(machine / split, OTHER_SUFFIXES))
    ]
    paths = [str(clip.path) for clip in found]
    if undecoded := [ascii(path) for path in paths if re.search("[\ud800-\udfff]", path)]:
        problems.append(f"names that are not UTF-8; rename them: {preview(undecoded)}")
    filled = {clip.path.parent.parent for clip in found}
    problems += [
        f"{machine}: no wav or flac files" for machine in machines if machine not in filled
    ]
    names = Counter((clip.machine, clip.split, clip.name) for clip in found)
    if doubled := [" ".join(name) for name, count in names.items() if count > 1]:
        problems.append(f"found more than once, keep one of each: {preview(doubled)}")
    return problems


def find_untrained(clips: Sequence[Clip]) -> list[str]:
    """Return a line for each machine and section without train clips."""
    trained = {clip.group for clip in clips if clip.split == "train"}
    counts = Counter(clip.group for clip in clips if clip.group not in trained)
    return [
        f"{machine} {section}: {counted(count, 'clip')} but none to train on; put normal "
        f"recordings into {machine}/train (the challenge's train part is an archive of its own)"
        for (machine, section), count in sorted(counts.items())
    ]


def refuse(where: Path, problems: Sequence[str]) -> None:
    """Raise one InputError that lists all problems, if there are any."""
    if problems:
        raise InputError(f"{where} cannot be used:\n" + "\n".join(f"- {line}" for line in problems))


def label_notes(tests: Sequence[Clip], origins: Mapping[Path, str], remedy: str) -> list[str]:
    """Return a line for each origin of the labels of test clips, and one on clips without.

    Args:
        tests: the test clips.
        origins: where the label of a path comes from; others come from file names.
        remedy: what to do about clips without.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for clip in tests:
        if clip.label is not None:
            counts[origins.get(clip.path, "file names")][clip.label] += 1
    lines = [
        f"labels: {count[NORMAL]} normal, {count[ANOMALY]} anomaly from {origin}"
        for origin, count in sorted(counts.items())
    ]
    if unknown := [clip.name for clip in tests if clip.label is None]:
        shown = preview(unknown, MOST_IN_NOTE)
        lines.append(f"labels: {counted(len(unknown), 'test clip')} without one: {shown}; {remedy}")
    return lines


def bases(directory: Path) -> list[Path]:
    """Return the directories that may hold machine folders."""
    nested = [folder for folder in folders(directory) if _NESTING.fullmatch(folder.name)]
    return [directory] + [base for folder in nested for base in bases(folder)]


def _other_folders(machines: Sequence[Path]) -> set[Path]:
    """Return the folders around and in the machines' where recordings belong to no split."""
    above = {machine.parent for machine in machines}
    near = above.union(*map(folders, above), *map(folders, machines))
    near.update(*[folders(folder) for folder in near if folder.name in SPLIT_FOLDERS])
    return {f for f in near if f.name not in SPLIT_FOLDERS and f.name != _COPIES}


def folders(directory: Path) -> list[Path]:
    """Return the folders directly in `directory`; none that are hidden."""
    return sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))


def is_machine(folder: Path) -> bool:
    """Return whether a folder has one of the organisers' folders of a machine."""
    return any((folder / name).is_dir() for name in SPLIT_FOLDERS)


def files(folder: Path, suffixes: Iterable[str] = AUDIO_SUFFIXES) -> list[Path]:
    """Return the files directly in `folder` with these endings; none that are hidden."""
    files = folder.iterdir() if folder.is_dir() else ()
    return [p for p in files if p.suffix.lower() in suffixes and not p.name.startswith(".")]


# --- file names


@dataclass(frozen=True)
class Name:
    """What a file name says; None or "" where it is silent."""

    section: str  # "section_00", or "id_01" in 2020
    domain: Domain | None = None
    split: Literal["train", "test"] | None = None
    label: int | None = None
    attributes: str = ""
    supplement: Literal["clean", "noise", "unknown"] | None = None


def stem(file_name: str) -> str:
    """Return the name without directory and audio suffix; a dot inside (`volt_1.5`) stays."""
    name = file_name.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] if name.lower().endswith(AUDIO_SUFFIXES) else name


def parse(stem: str) -> Name | None:
    """Return what the stem of a train or test clip says, None when it is not a DCASE name."""
    match = _SECTION.fullmatch(stem) or _MACHINE_ID.fullmatch(stem)
    if match is None:
        return None
    parts = match.groupdict()
    label, attributes = _LABELS.get(parts["label"]), visible(parts.get("attributes"))
    return Name(parts["section"], parts.get("domain"), parts.get("split"), label, attributes)


def parse_supplemental(stem: str) -> Name | None:
    """Return what the stem of a supplemental clip (2025) says, None when it is not one.

    The kind stands between section and counter, in several spellings; an attribute behind the
    counter may contain `noise` too and means nothing here.
    """
    match = _SUPPLEMENTAL.fullmatch(stem)
    if match is None:
        return None
    kind = match["kind"]
    supplement = "noise" if "noise" in kind else "clean" if "machine" in kind else "unknown"
    domain = next((domain for domain in ("source", "target") if domain in kind.split("_")), None)
    return Name(match["section"], domain, None, None, visible(match["attributes"]), supplement)


def visible(attributes: str | None) -> str:
    """Return the attribute string, "" where there is none or `noAttribute` hides it."""
    return "" if attributes in (None, "noAttribute") else attributes
