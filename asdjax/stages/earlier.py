"""What an earlier command left in a folder: the work of another run is refused, not replaced.

A folder belongs to the system, the machines and the recordings that it was begun with. Test clips
may be added or taken away, and labels, year and scorer may change: that costs no training, and it
is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from asdjax.artifact import differences
from asdjax.config import to_json
from asdjax.report import console
from asdjax.stages.folder import MODEL, SCORES, Run, load
from asdjax.types import InputError, counted, preview
from asdjax.version import __version__

MOST = 3  # of clips, in a line


def refuse_another(out: Path, run: Run) -> None:
    """Refuse to replace what took another run its time.

    Raises:
      InputError: lists what differs.
    """
    trains, trained = run.system.train is not None, (out / MODEL).exists()
    unfinished = not trained and any(out.glob("checkpoints/step_*"))
    lines = []
    if not trains and (trained or unfinished):
        lines = ["a training before, a system without training now"]
    elif _is_embedded(out) and not unfinished:  # which says itself what it is of
        before = load(out)
        lines = differences(_described(before, _version(out)), _described(run, __version__))
        lines += [line for line, added in _changes(before, run) if not added]
        if trained and not all(line.startswith("test") for line in lines):
            return  # the finished training says it, with all that differs in its settings
    if lines:
        raise InputError(
            f"{out} holds the work of another run:\n  " + "\n  ".join(lines) + "\nchoose another "
            "--out, or replace it with --force"
        )


def note_changes(out: Path, run: Run) -> None:
    """Say in one line what an earlier run had otherwise: what depends on it is made again."""
    if not _is_embedded(out):
        return
    before = load(out)
    lines = [line for line, added in _changes(before, run) if added]
    then, now = (
        {(c.group, c.split, c.name): (c.label, c.domain) for c in r.clips} for r in (before, run)
    )
    if count := sum(then[clip] != now[clip] for clip in then.keys() & now.keys()):
        lines.append(f"labels of {counted(count, 'clip')}")
    rules = ({"scorer": to_json(r.system.scorer), "year": r.year} for r in (before, run))
    lines += differences(*rules)
    if lines:
        console.note(f"what depends on these is made again: {'; '.join(lines)}")


def _is_embedded(out: Path) -> bool:
    names = "embeddings", SCORES
    return (out / "config.json").is_file() and any((out / name).exists() for name in names)


def _version(out: Path) -> str:
    return json.loads((out / "config.json").read_text())["asdjax"]


def _described(run: Run, version: str) -> dict:
    return run.encoding | {"asdjax": version, "trains": run.system.train is not None}


def _changes(before: Run, now: Run) -> Iterator[tuple[str, bool]]:
    """Yield what differs in the clips of a machine, and whether only other test clips are there."""
    then, today = _sounds(before), _sounds(now)
    for where in sorted(then.keys() | today.keys()):
        old, current = then.get(where, {}), today.get(where, {})
        new, gone = current.keys() - old.keys(), old.keys() - current.keys()
        other = {name for name in current.keys() & old.keys() if current[name] != old[name]}
        kinds = {"new": new, "gone": gone, "of other content": other}
        told = [f"{len(n)} {kind} ({preview(sorted(n), MOST)})" for kind, n in kinds.items() if n]
        if told:
            added = where.startswith("test") and current and old and not other
            yield f"{where}: {', '.join(told)}", added


def _sounds(run: Run) -> dict[str, dict[str, str]]:
    """Return by machine, training and test clips apart, the content of each clip by its name."""
    found: dict[str, dict[str, str]] = {}
    for clip in (*run.clips, *run.supplement):
        kind = "test" if clip.split == "test" else "training"
        name = clip.name if clip.supplement is None else f"{clip.supplement} {clip.name}"
        found.setdefault(f"{kind} clips of {' '.join(clip.group)}", {})[name] = clip.content
    return found
