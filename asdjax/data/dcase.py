"""Scan a directory of recordings: DCASE Task 2 of any edition 2020-2026, or a user's own folder.

Every file is found by listing directories; no name is built from counts. The organisers' layouts:

    2020        <machine>/{train,test}/[{normal|anomaly}_]id_01_00000000.wav
    2021        <machine>/{train,source_test,target_test}/section_00_...wav
    2022-2026   <machine>/{train,test}/section_00_...wav, <machine>/attributes_00.csv
    2025        <machine>/supplemental/section_00_<kind>_0001...wav as well

Attributes: the string in the file name wins, because the csv names only the parameters that shift
between the domains. Where the name has none (or `noAttribute`), the csv's row is joined with `_`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asdjax.data import folder, names, tree
from asdjax.data import ground_truth as truths
from asdjax.files import read_csv
from asdjax.types import Clip, DataSet, InputError, preview

_YEAR = re.compile(r"dcase(20\d\d)t2", re.IGNORECASE)


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
    machines = tree.machine_folders(root)
    found = tree.recordings(machines)
    if not any(names.parse(clip.path.stem) for clip in found):
        if ground_truth is not None:
            raise InputError(
                f"expected the challenge's file names in {root} to join with {ground_truth}, got "
                "none; label your own recordings in labels.csv instead"
            )
        return folder.describe(root, machines, found)

    attributes = {machine: _read_attributes(machine) for machine in machines}
    described = [_describe(clip, attributes[clip.path.parent.parent]) for clip in found]
    clips = [clip for clip in described if clip is not None]
    years = _years(machines, clips)
    problems = tree.find_problems(machines, found) + tree.find_untrained(clips)
    problems += _strange_names([c for c, d in zip(found, described, strict=True) if d is None])
    if len(years) > 1:
        problems.append(f"expected one edition, got {preview(sorted(years))}; pass one folder")
    tree.refuse(root, problems)
    if ground_truth is not None:
        clips = _join(clips, truths.read(Path(ground_truth)), Path(ground_truth))
    return DataSet(root, tuple(clips), next(iter(years), None))


def _describe(clip: Clip, attributes: dict[str, str]) -> Clip | None:
    """Add what the name and the csv say; None when the name does not belong into its folder."""
    parse = names.parse_supplemental if clip.split == "supplemental" else names.parse
    name = parse(clip.path.stem)
    if name is None or _contradicts(name, clip):
        return None
    return replace(
        clip,
        section=name.section,
        domain=name.domain or clip.domain,
        label=name.label if clip.label is None else clip.label,
        attributes=name.attributes or attributes.get(clip.path.stem, ""),
        supplement=name.supplement,
    )


def _contradicts(name: names.Name, clip: Clip) -> bool:
    """Return whether the name tells another split, domain or label than the folder."""
    return (
        name.split not in (None, clip.split)
        or (clip.domain is not None and name.domain not in (None, clip.domain))
        or (clip.label is not None and name.label not in (None, clip.label))
    )


def _read_attributes(machine: Path) -> dict[str, str]:
    """Return stem -> attributes of `attributes_<SS>.csv`, whose `file_name` has three spellings."""
    rows = [row for path in machine.glob("attributes_[0-9][0-9].csv") for row in read_csv(path)]
    return {names.stem(row[0]): names.shown("_".join(filter(None, row[1:]))) for row in rows}


def _strange_names(clips: Sequence[Clip]) -> list[str]:
    by_folder: dict[Path, list[str]] = {}
    for clip in clips:
        by_folder.setdefault(clip.path.parent, []).append(clip.name)
    return [
        f"{path}: {len(strange)} names that are not those of the challenge's clips there: "
        f"{preview(strange)}; remove or rename them"
        for path, strange in by_folder.items()
    ]


def _years(machines: Sequence[Path], clips: Sequence[Clip]) -> set[int]:
    """Return the editions that the paths and the layout tell; empty when neither does."""
    told = [_YEAR.findall(f"{path.resolve()} {path.absolute()}") for path in machines]
    years = {int(found[-1]) for found in told if found}
    if any(clip.section.startswith("id_") for clip in clips):
        years.add(2020)
    if any(clip.path.parent.name in ("source_test", "target_test") for clip in clips):
        years.add(2021)
    return years


def _join(clips: Sequence[Clip], labelled: Sequence[Clip], where: Path) -> list[Clip]:
    """Give the test clips what is known of the same (machine, section, stem).

    Machines or sections without any clip here were not downloaded, which is no mistake. Within one
    that is here, every labelled name needs a file and every file a label.
    """
    known = {_key(clip): clip for clip in labelled}
    tests = {_key(clip): clip for clip in clips if clip.split == "test"}
    groups = {clip.group for clip in clips}
    absent = [key for key, clip in known.items() if clip.group in groups and key not in tests]
    unlabelled = [key for key, c in tests.items() if c.label is None and key not in known]
    problems = [
        f"{len(keys)} {what}: {preview([' '.join(key) for key in sorted(keys)])}; {remedy}"
        for keys, what, remedy in (
            (absent, "labelled names have no file", "download the test part again"),
            (unlabelled, "test files have no label", "pass the ground truth of their edition"),
        )
        if keys
    ]
    if groups.isdisjoint(clip.group for clip in labelled):
        problems.append("none of these labels is of a machine and section in the recordings")
    tree.refuse(where, problems)
    return [
        _label(clip, known[_key(clip)]) if clip.split == "test" and _key(clip) in known else clip
        for clip in clips
    ]


def _key(clip: Clip) -> tuple[str, str, str]:
    return clip.machine, clip.section, clip.path.stem


def _label(clip: Clip, truth: Clip) -> Clip:
    return replace(
        clip,
        label=truth.label,
        domain=truth.domain,
        full_name=truth.full_name,
        attributes=truth.attributes or clip.attributes,
    )
