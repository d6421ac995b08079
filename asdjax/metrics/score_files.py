"""The challenge's score files: one csv pair per machine type and section, no header, any row order.

    anomaly_score_<machine>_section_00_test.csv     <file>.wav,<score>     larger = more anomalous
    decision_result_<machine>_section_00_test.csv   <file>.wav,<0 or 1>    1 = anomaly; optional

2021 has a pair per domain (`..._section_03_source_test.csv`); 2020 has IDs and no decisions
(`anomaly_score_<machine>_id_01.csv`). The names the official baseline writes are read as well
(`anomaly_score_DCASE2024T2<machine>_section_00_test_seed13711_id(0_)_Eval.csv`).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax.files import write_csv
from asdjax.types import Domain, InputError, Scores, preview

SCORE, DECISION = "anomaly_score", "decision_result"
_NAME = re.compile(
    r"(?:anomaly_score|decision_result)_(?:DCASE\d{4}T2)?(?P<machine>.+)_(?P<section>(?:section|id)_\d+)"
    r"(?:_(?P<domain>source|target))?(?:_test)?(?:_seed\d+.*)?\.csv"
)


class _Key(NamedTuple):
    machine: str
    section: str
    domain: Domain | None


def save(folder: Path, scores: Scores) -> None:
    """Write the pair of `scores` into `folder`; no decisions: remove an older decision file."""
    key = _Key(scores.machine, scores.section, scores.domain)
    name, decision = (file_name(kind, scores) for kind in (SCORE, DECISION))
    if _key(name) != key or Path(name).name != name:
        raise InputError(f"cannot name a score file after {key}: {name} would be read otherwise")
    write_csv(folder / name, list(zip(scores.names, scores.values.tolist(), strict=True)))
    decision_path = folder / decision
    if scores.decisions is None:
        decision_path.unlink(missing_ok=True)
    else:
        rows = zip(scores.names, (int(d) for d in scores.decisions), strict=True)
        write_csv(decision_path, list(rows))


def file_name(kind: str, scores: Scores) -> str:
    """Return the name of the file of one kind, `SCORE` or `DECISION`."""
    part = "_".join(filter(None, (scores.machine, scores.section, scores.domain)))
    return f"{kind}_{part}{'_test' if scores.section.startswith('section') else ''}.csv"


def load(folder: Path) -> list[Scores]:
    """Read every score file below `folder`, sorted by machine, section and domain.

    Raises:
      InputError: none is there, or anything in them is wrong; all problems are listed at once.
    """
    (score_paths, problems), (decision_paths, more) = _find(folder, SCORE), _find(folder, DECISION)
    problems += more
    if not score_paths and not problems:
        raise InputError(f"expected {SCORE}_<machine>_section_00_test.csv files below {folder}")
    lonely = decision_paths.keys() - score_paths.keys()
    problems += sorted(f"{decision_paths[key]}: no {SCORE} file belongs to it" for key in lonely)
    found = []
    for key, path in sorted(score_paths.items(), key=lambda item: tuple(map(str, item[0]))):
        scores, wrong = _load_pair(key, path, decision_paths.get(key))
        problems += wrong
        found.append(scores)
    if problems:
        raise InputError("cannot use these score files:\n  " + "\n  ".join(problems))
    return found


def _key(name: str) -> _Key | None:
    match = _NAME.fullmatch(name)
    return _Key(match["machine"], match["section"], match["domain"]) if match else None


def _find(folder: Path, kind: str) -> tuple[dict[_Key, Path], list[str]]:
    """Return the files of one kind below `folder`, and problems with their names."""
    found: dict[_Key, Path] = {}
    problems = []
    for path in sorted(folder.rglob(f"{kind}_*.csv")):
        key = _key(path.name)
        if key is None:
            problems.append(f"{path}: expected the name {kind}_<machine>_section_<SS>_test.csv")
        elif found.setdefault(key, path) != path:
            problems.append(f"{path} and {found[key]} are for the same clips; give one system's")
    return found, problems


def _load_pair(key: _Key, path: Path, decision_path: Path | None) -> tuple[Scores, list[str]]:
    score, problems = _read(path, "<file>.wav,<finite number>", math.isfinite)
    decision = None
    if decision_path is not None:
        decision, more = _read(decision_path, "<file>.wav,<0 or 1>", (0, 1).__contains__)
        problems += more
        if not problems and (differ := score.keys() ^ decision.keys()):
            problems.append(f"{decision_path}: names differ from {path}: {preview(sorted(differ))}")
    values = np.array(list(score.values()), dtype=np.float64)
    decided = decision is not None and not problems
    decisions = np.array([int(decision[name]) for name in score]) if decided else None
    scores = Scores(key.machine, key.section, tuple(score), values, decisions, key.domain)
    return scores, problems


def _read(
    path: Path, expected: str, valid: Callable[[float], bool]
) -> tuple[dict[str, float], list[str]]:
    """Return name -> value of one csv, and the problems in it."""
    values: dict[str, float] = {}
    bad, twice = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in filter(None, reader):
                name, value = _parse(row)
                if not name.strip() or not valid(value):
                    bad.append(f"line {reader.line_num} {','.join(row)!r}")
                elif name in values:
                    twice.append(name)
                else:
                    values[name] = value
    except (UnicodeDecodeError, csv.Error) as error:
        return {}, [f"{path}: not a csv text file ({error})"]
    problems = [f"{path}: expected rows {expected}, got {preview(bad)}"] if bad else []
    problems += [f"{path}: more than one row for {preview(twice)}"] if twice else []
    if not values and not bad:
        problems.append(f"{path}: no rows")
    return values, problems


def _parse(row: list[str]) -> tuple[str, float]:
    """Return name and value of a csv row, nan where it is malformed."""
    try:
        name, text = row
        plain = text.isascii() and "_" not in text  # float() takes 1_0 and digits of other scripts
        return name, float(text) if plain else math.nan
    except ValueError:
        return "", math.nan
