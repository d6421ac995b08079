"""Read the labels of evaluation clips that the organisers published after each challenge.

Two forms exist, and nearly no file has a header:

    evaluator repositories 2021-2026
        ground_truth_data/ground_truth_<machine>_section_<SS>_test.csv    name,<0 normal, 1 anomaly>
            (2021: ..._section_<SS>_<domain>_test.csv, and no further folder)
        ground_truth_domain/<same name>         name,<0 source, 1 target>
        ground_truth_attributes/<same name>     name,full name[,full name with true attributes]
            (2022: ground_truth_attributes/<machine>/attributes_<SS>.csv with a header)
    lists: 2020 Zenodo record 3951620, later years in the baseline repository
        eval_data_list[_20XX].csv               a line with the machine; name,full name[,label]

2022: the attribute files of ToyCar and ToyTrain, and the list copied from them, contradict the
labels that the official scores use; they are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from asdjax.data import layout
from asdjax.files import read_csv, read_rows
from asdjax.types import ANOMALY, NORMAL, Clip, InputError, preview

_FILE = re.compile(
    r"ground_truth_(?P<machine>.+)_(?P<section>section_\d\d)(?:_(?P<domain>source|target))?_test"
)
_LABELS = {"0": NORMAL, "1": ANOMALY}
_DOMAINS = {"0": "source", "1": "target"}


def read(path: Path | str) -> list[Clip]:
    """Return a test clip per labelled name: `path` is the released name, without a directory.

    Args:
        path: the folder of an evaluator repository, a folder with one `eval_data_list*.csv`, or
            that file itself.

    Returns:
        clips with label, domain (None in 2020), attributes where published, and `full_name`, the
        second column of the attribute files or lists with `.wav`, which score files may use instead
        of the released name (2024: it says `noAttribute` where `attributes` has the true ones).

    Raises:
        InputError: no or several label files, or everything that is wrong in them.
    """
    path = Path(path)
    if (path / "ground_truth_data").is_dir():
        return _read_evaluator(path)
    lists = [path] if path.is_file() else sorted(path.glob("eval_data_list*.csv"))
    if len(lists) != 1:
        raise InputError(
            f"expected ground_truth_data/ or one eval_data_list*.csv in {path}, got "
            f"{preview([file.name for file in lists]) or 'neither'}; pass an evaluator "
            "repository's folder or the list of one edition"
        )
    return _read_list(lists[0])


def _read_evaluator(root: Path) -> list[Clip]:
    problems: list[str] = []
    files = sorted((root / "ground_truth_data").glob("*.csv"))
    clips = [clip for file in files for clip in _read_section(root, file, problems)]
    if not files:
        problems.append("expected csv files in ground_truth_data, got none")
    layout.refuse(root, problems)
    return clips


def _read_section(root: Path, file: Path, problems: list[str]) -> list[Clip]:
    match = _FILE.fullmatch(file.stem)
    if match is None:
        problems.append(f"{file}: expected the name ground_truth_<machine>_section_<SS>_test.csv")
        return []
    machine, section, domain = match.group("machine", "section", "domain")
    labels = _read_column(file, _LABELS, problems)
    domains = dict.fromkeys(labels, domain)
    if domain is None:
        domain_file = root / "ground_truth_domain" / file.name
        domains = _read_column(domain_file, _DOMAINS, problems)
        if other := sorted(labels.keys() ^ domains.keys()):
            problems.append(f"{domain_file}: not the names of {file}: {preview(other)}")
    full = _read_full_names(root, machine, section, file.name, problems)
    return [
        Clip(Path(name), machine, section, "test", domains.get(name), label, *full.get(name, ()))
        for name, label in labels.items()
    ]


def _read_column(file: Path, meaning: Mapping[str, object], problems: list[str]) -> dict:
    """Return name -> meaning of its 0 or 1; wrong and doubled rows go to `problems`."""
    values = {}
    for line, row in read_rows(file):
        if len(row) != 2 or row[1] not in meaning:
            problems.append(
                f"{file} line {line}: expected <name>.wav,<0 or 1>, got {','.join(row)}"
            )
        elif row[0] in values:
            problems.append(f"{file} line {line}: {row[0]} is there twice")
        else:
            values[row[0]] = meaning[row[1]]
    return values


def _read_full_names(
    root: Path, machine: str, section: str, file_name: str, problems: list[str]
) -> dict[str, tuple[str, str]]:
    """Return released name -> (attributes, full name); empty where none are trustworthy."""
    file = root / "ground_truth_attributes" / file_name
    of_2022 = root / "ground_truth_attributes" / machine
    if of_2022.is_dir():
        file = of_2022 / f"attributes_{section.removeprefix('section_')}.csv"
        rows = [] if machine.startswith("Toy") else read_csv(file)[1:]
        rows = [[layout.stem(row[0]) + ".wav", row[-1]] for row in rows]  # between: the parameters
    else:
        rows = read_csv(file) if file.is_file() else []  # 2021 has none
    full = {}
    for released, *columns in rows:
        name = layout.parse(layout.stem(columns[-1])) if columns else None
        if name is None:
            problems.append(f"{file}: expected <name>.wav,<full name>, got {released}, {columns}")
        else:
            full[released] = name.attributes, layout.stem(columns[0]) + ".wav"
    return full


def _read_list(file: Path) -> list[Clip]:
    if file.name == "eval_data_list_2022.csv":
        raise InputError(
            f"{file} contradicts the official labels of ToyCar and ToyTrain in 2022; pass the "
            "folder of the 2022 evaluator repository instead"
        )
    clips: dict[tuple[str, str], Clip] = {}
    problems: list[str] = []
    machine = ""
    for line, row in read_rows(file):
        if len(row) == 1:
            machine = row[0]
            continue
        clip = _list_clip(machine, row)
        if clip is None:
            wanted = "<name>.wav,<full name>.wav[,<label>]"
            problems.append(f"line {line}: expected {wanted}, got {','.join(row)}")
        elif (machine, clip.name) in clips:
            problems.append(f"line {line}: {machine} {clip.name} is there twice")
        else:
            clips[machine, clip.name] = clip
    if not clips:
        problems.append("no labels")
    layout.refuse(file, problems)
    return list(clips.values())


def _list_clip(machine: str, row: list[str]) -> Clip | None:
    """Return the clip of one row, None when the row is not what a list holds."""
    name = layout.parse(layout.stem(row[1]))
    label = name and (_LABELS.get(row[2]) if len(row) == 3 else name.label)
    if name is None or label is None or not machine:
        return None
    attributes, full_name = name.attributes, layout.stem(row[1]) + ".wav"
    released = Path(row[0])
    return Clip(released, machine, name.section, "test", name.domain, label, attributes, full_name)
