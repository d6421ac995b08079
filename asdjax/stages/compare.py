"""The command `compare`: official scores of several systems on the same clips, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asdjax.files import write_csv
from asdjax.metrics import bootstrap, official
from asdjax.metrics.bootstrap import Comparison
from asdjax.report import console
from asdjax.stages.members import labelled_clips, load_members
from asdjax.types import InputError


def compare(paths: Sequence[Path], out: Path | None = None, times: int = 2000) -> list[Comparison]:
    """Print and return the scores of systems, and by how much they differ from the first one.

    Args:
      paths: two or more folders on the same recordings: of runs, of ensembles, or with score
        files of any system; at least one of a run.
      out: also write the comparison to this csv.
      times: how often clips are drawn for the intervals.

    Raises:
      InputError: the folders do not fit together, or no machine can have official numbers.
    """
    if times < 100:
        raise InputError(f"--times: expected 100 or more, got {times}")
    run, members = load_members([Path(path) for path in paths])
    clips = labelled_clips(run)
    for (machine, section), reason in official.lacking(run.clips, run.year).items():
        console.note(f"no official numbers of {machine}/{section}: {reason}")
    systems = {
        str(one.path): {group: one.of(own) for group, own in clips.items()} for one in members
    }
    used = {
        str(one.path): " and ".join(
            ["statistics"] * one.transductive + ["labels"] * one.labels_used
        )
        for one in members
    }
    found = bootstrap.compare(clips, systems, run.year, times)
    found = [one._replace(used=used[one.system]) for one in found]
    console.differences_table(found, f"{run.data}, {times} draws of the test clips")
    if out is not None:
        write_csv(out, [Comparison._fields, *found])
    return found
