"""Scan a directory of recordings: DCASE Task 2 of any edition 2020-2026, or a user's own folder.

Every file is found by listing directories; no name is built from counts. `asdjax.data.layout` has
the organisers' folders and file names.

Attributes: the string in the file name wins, because the csv names only the parameters that shift
between the domains. Where the name has none (or `noAttribute`), the csv's row counts.

A copy that a desktop or browser made ("NAME (1).wav", "NAME - Copy.wav") is described as the
recording NAME, where that is in the same folder.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asdjax.data import attributes as csv_attributes
from asdjax.data import folder, layout
from asdjax.data import ground_truth as truths
from asdjax.data.audio import AudioInfo
from asdjax.types import Clip, DataSet, Domain, InputError, counted, preview

_YEAR = re.compile(r"dcase(20\d\d)t2", re.IGNORECASE)
_NESTING = ("raw", "dev_data", "eval_data")  # between an edition's folder and the machines
_COPY = re.compile(r"(?:[ _-]*(?:\(\d+\)|copy|kopie|copie)(?: \d+)?)+$", re.IGNORECASE)


def scan(root: Path | str, ground_truth: Path | str | None = None) -> DataSet:
    """Return the clips below a directory, sorted by path; no audio is read.

    Args:
        root: holds `<machine>/train/...`, or the `dcase20XXt2`, `dev_data`, `eval_data` or `raw`
            folders above them (one edition; both its parts may be there).
        ground_truth: where `asdjax.data.ground_truth.read` finds the labels of evaluation clips.
            They set label, domain and full name, which must not enter a score.

    Raises:
        InputError: one message with everything that is wrong with the folder.
    """
    root = Path(root)
    machines = layout.machine_folders(root)
    found = layout.recordings(machines)
    stems = _stems(clip.path for clip in found)
    if not any(layout.parse(stem) for stem in stems.values()):
        if ground_truth is not None:
            raise InputError(
                f"expected the challenge's file names in {root} to join with {ground_truth}, got "
                "none; label your own recordings in labels.csv instead"
            )
        return folder.describe(root, machines, found)

    attributes, problems, notes = csv_attributes.read(machines, found)
    described = [
        _describe(clip, stems[clip.path], attributes[clip.path.parent.parent]) for clip in found
    ]
    clips = [clip for clip in described if clip is not None]
    years = _years(machines, clips)
    problems += layout.find_problems(machines, found) + layout.find_untrained(clips)
    problems += _strange_names([c for c, d in zip(found, described, strict=True) if d is None])
    if len(years) > 1:
        problems.append(f"expected one edition, got {preview(sorted(years))}; pass one folder")
    layout.refuse(root, problems)
    origins = {clip.path: str(ground_truth) for clip in clips if clip.label is None}
    if ground_truth is not None:
        clips = _join(clips, stems, truths.read(Path(ground_truth)), Path(ground_truth))
    notes += _notes(clips, stems, origins)
    return DataSet(root, tuple(clips), next(iter(years), None), tuple(notes))


def _stems(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the stem of each path, without the mark of a copy if what was copied is beside it."""
    paths = list(paths)
    there = {path.with_suffix("") for path in paths}
    stems = {}
    for path in paths:
        original = _COPY.sub("", path.stem)
        stems[path] = original if path.with_name(original) in there else path.stem
    return stems


def _describe(clip: Clip, stem: str, attributes: Mapping[str, str]) -> Clip | None:
    """Add what the name and the csv say; None when the name does not belong into its folder."""
    parse = layout.parse_supplemental if clip.split == "supplemental" else layout.parse
    name = parse(stem)
    if name is None:
        return None
    pairs = [(name.split, clip.split), (name.domain, clip.domain), (name.label, clip.label)]
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return None
    return replace(
        clip,
        section=name.section,
        domain=name.domain or clip.domain,
        label=name.label if clip.label is None else clip.label,
        attributes=name.attributes or attributes.get(stem, ""),
        supplement=name.supplement,
    )


def _strange_names(clips: Sequence[Clip]) -> list[str]:
    by_folder: dict[Path, list[str]] = defaultdict(list)
    for clip in clips:
        by_folder[clip.path.parent].append(clip.name)
    return [
        f"{path}: {len(strange)} names that are not those of the challenge's clips there: "
        f"{preview(strange)}; remove or rename them"
        for path, strange in by_folder.items()
    ]


def _years(machines: Sequence[Path], clips: Sequence[Clip]) -> set[int]:
    """Return the editions that the organisers' folders say; empty when none does."""
    folders = {folder.parent for machine in machines for folder in (machine, machine.resolve())}
    years = {year for folder in folders if (year := _year_of(folder))}
    if any(clip.section.startswith("id_") for clip in clips):
        years.add(2020)
    if any(clip.path.parent.name in ("source_test", "target_test") for clip in clips):
        years.add(2021)
    return years


def _year_of(directory: Path) -> int | None:
    """Return the edition of the folder that holds machines: `dcase20XXt2[/dev_data][/raw]`."""
    while directory.name.lower() in _NESTING:
        directory = directory.parent
    match = _YEAR.fullmatch(directory.name)
    return int(match[1]) if match else None


def _notes(
    clips: Sequence[Clip], stems: Mapping[Path, str], origins: Mapping[Path, str]
) -> list[str]:
    """Return where labels came from, and which files are copies by name."""
    tests = [clip for clip in clips if clip.split == "test"]
    lines = layout.label_notes(tests, origins, "--ground-truth labels an evaluation set")
    if copies := [path.name for path, stem in stems.items() if stem != path.stem]:
        shown = preview(copies, layout.MOST_IN_NOTE)
        lines.append(f"{counted(len(copies), 'copy')} by name, described as the original: {shown}")
    return lines


def _join(
    clips: Sequence[Clip], stems: Mapping[Path, str], labelled: Sequence[Clip], where: Path
) -> list[Clip]:
    """Give the test clips what is known of the same (machine, section, stem).

    Machines or sections without any clip here were not downloaded, which is no mistake. Within one
    that is here, every labelled name needs a file and every file a label.
    """

    def key(clip: Clip) -> tuple[str, str, str]:
        return clip.machine, clip.section, stems.get(clip.path, clip.path.stem)

    known = {key(clip): clip for clip in labelled}
    tests = {key(clip): clip for clip in clips if clip.split == "test"}
    groups = {clip.group for clip in clips}
    absent = [one for one, clip in known.items() if clip.group in groups and one not in tests]
    unlabelled = [one for one, c in tests.items() if c.label is None and one not in known]
    problems = [
        f"{len(keys)} {what}: {preview([' '.join(one) for one in sorted(keys)])}; {remedy}"
        for keys, what, remedy in (
            (absent, "labelled names have no file", "download the test part again"),
            (unlabelled, "test files have no label", "pass the ground truth of their edition"),
        )
        if keys
    ]
    if groups.isdisjoint(clip.group for clip in labelled):
        problems.append("none of these labels is of a machine and section in the recordings")
    layout.refuse(where, problems)

    def label(clip: Clip) -> Clip:
        truth = known.get(key(clip)) if clip.split == "test" else None
        if truth is None:
            return clip
        attributes = truth.attributes or clip.attributes
        full_name = truth.full_name if stems[clip.path] == clip.path.stem else ""  # not of a copy
        return replace(truth, path=clip.path, attributes=attributes, full_name=full_name)

    return [label(clip) for clip in clips]


def supplemental(dataset: DataSet, kinds: Collection[str]) -> tuple[tuple[Clip, ...], list[str]]:
    """Return the supplemental clips of some kinds (2025), and lines for the console.

    Args:
      dataset: all clips.
      kinds: of "clean" (clean recordings) and "noise" (without the machine), those to train with.

    Raises:
      InputError: there is no such clip at all.
    """
    every = dataset.select("supplemental")
    chosen = tuple(clip for clip in every if clip.supplement in kinds)
    wanted = " or ".join(kinds)
    if not chosen:
        got = Counter(clip.supplement for clip in every)
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(got.items())) or "none"
        raise InputError(
            f"expected supplemental clips ({wanted}) in {dataset.root}/*/supplemental, as "
            f"train.supplement asks for, got {found}; complete the data, or leave "
            "--train.supplement out"
        )
    counts = Counter((clip.machine, clip.supplement) for clip in chosen)
    lines = [
        f"{counted(count, f'{kind} supplemental clip')} of {machine}"
        for (machine, kind), count in sorted(counts.items())
    ]
    machines = {clip.machine for clip in dataset.clips}
    if without := sorted(machines - {machine for machine, _ in counts}):
        lines.append(f"no {wanted} supplemental clip of {preview(without)}: left as they are")
    if unknown := [clip.name for clip in every if clip.supplement == "unknown"]:
        left_out = counted(len(unknown), "supplemental clip")
        lines.append(
            f"{left_out} left out, whose names say neither machine nor noise: {preview(unknown, 3)}"
        )
    return chosen, lines


@dataclass(frozen=True)
class Summary:
    """One machine and section. Counts keep None for clips whose domain or label is unknown."""

    machine: str
    section: str
    train: Counter[Domain | None]  # clips per domain
    test: Counter[Domain | None]  # clips per domain
    labels: Counter[int | None]  # test clips per label
    supplemental: int
    attributes: int  # distinct attribute strings
    seconds: tuple[float, float] | None  # shortest and longest clip; None: no header known
    rates_hz: tuple[int, ...]
    channels: tuple[int, ...]


def summarize(dataset: DataSet, infos: Mapping[Path, AudioInfo]) -> list[Summary]:
    """Return one row per machine and section; `infos` may lack files (broken ones)."""
    rows = []
    for machine, section in sorted({clip.group for clip in dataset.clips}):
        clips = [clip for clip in dataset.clips if clip.group == (machine, section)]
        test = [clip for clip in clips if clip.split == "test"]
        known = [infos[clip.path] for clip in clips if clip.path in infos]
        seconds = [info.seconds for info in known]
        row = Summary(
            machine,
            section,
            train=Counter(clip.domain for clip in clips if clip.split == "train"),
            test=Counter(clip.domain for clip in test),
            labels=Counter(clip.label for clip in test),
            supplemental=sum(clip.split == "supplemental" for clip in clips),
            attributes=len({clip.attributes for clip in clips} - {""}),
            seconds=(min(seconds), max(seconds)) if seconds else None,
            rates_hz=tuple(sorted({info.rate_hz for info in known})),
            channels=tuple(sorted({info.channels for info in known})),
        )
        rows.append(row)
    return rows
