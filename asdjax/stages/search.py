"""The command `search`: many ways to score the embeddings of runs, without their encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax.config import SystemConfig
from asdjax.data.batches import Audio
from asdjax.files import write_csv
from asdjax.metrics.official import official_scores
from asdjax.report import console
from asdjax.scoring import search as searching
from asdjax.scoring.knn import Knn
from asdjax.scoring.search import Candidate, Views, consistency
from asdjax.stages import folder
from asdjax.stages.folder import Run
from asdjax.stages.members import labelled_clips
from asdjax.types import InputError, preview

SHOWN = 15
FILE = "search.csv"
WORTH = (
    "ranked by how alike source and target training clips score, left out; that says little of how "
    "well anomalies are told (see the README): on labelled recordings look with --labels"
)
CHOSEN = "ranked by the labels of test clips: a system chosen so is not comparable with others"


def search(paths: Sequence[Path], labels: bool = False, out: Path | None = None) -> list[dict]:
    """Score the embeddings of runs in many ways, rank these, print the best, and write all.

    Args:
      paths: folders of runs of the same system, such as on several years.
      labels: rank by the official score on the labels of test clips, the mean over runs.
      out: the csv that gets all; None: `search.csv` in the first folder.

    Returns:
      What is written, a row for each way, the best first.

    Raises:
      InputError: runs of other systems, without embeddings, or that nothing can be ranked by.
    """
    runs = {str(path): folder.load(Path(path)) for path in paths}
    systems = [replace(run.system, scorer=Knn(), audio=Audio()) for run in runs.values()]
    if any(system != systems[0] for system in systems):
        raise InputError(f"expected runs of one system, got others in {preview(runs)}")
    if systems[0].train is not None and len(runs) > 1:
        console.note("each run scores the embeddings of its own training")
    views = views_of(systems[0])
    found = [_of_run(Path(path), run, views, labels) for path, run in runs.items()]
    quality = np.mean([one.quality for one in found], 0)
    if np.isnan(quality).all():
        raise InputError(
            "expected training clips of source and target domains to rank by, got none of both; "
            "rank by --labels of test clips"
        )
    name = "official score" if labels else "consistency"
    rows = []
    for i in np.argsort(-np.nan_to_num(quality, nan=-1.0), kind="stable"):
        one = found[0].candidates[i]
        each = {f"{name} of {path}": of.quality[i] for path, of in zip(runs, found, strict=True)}
        own = {"view": one.view, "scorer": str(one), f"mean {name}": quality[i], **each}
        rows.append({**own, "labels of test clips used": int(labels)})
    out = Path(paths[0]) / FILE if out is None else out
    write_csv(out, [list(rows[0]), *(list(row.values()) for row in rows)])
    _show(rows, name, list(runs))
    console.note(CHOSEN if labels else WORTH)
    console.note(f"all {len(rows)}: {out}")
    return rows


class Found(NamedTuple):
    """The candidates of a run, and what they are ranked by."""

    candidates: list[Candidate]
    quality: np.ndarray  # [W], larger is better; nan where there is none


def _of_run(path: Path, run: Run, views: Views, labels: bool) -> Found:
    machines = [folder.load_embeddings(path, run, group) for group in run.groups]
    train, test = ([one.select(split) for one in machines] for split in ("train", "test"))
    domains = [np.array([clip.domain or "" for clip in one.clips]) for one in train]
    clips = labelled_clips(run) if labels else {}
    labelled = [
        [i for i, clip in enumerate(one.clips) if clip.label is not None] if g in clips else []
        for g, one in zip(run.groups, test, strict=True)
    ]
    candidates, quality, kept = [], [], [[] for rows in labelled if rows]
    with console.progress(f"scoring {path.name}", searching.count(views), "ways") as advance:
        for candidate, tests, left_out in searching.score_all(train, test, views, advance):
            candidates.append(candidate)
            quality.append(consistency(left_out, domains))
            usable = [scores[rows] for scores, rows in zip(tests, labelled, strict=True) if rows]
            for whole, scores in zip(kept, usable, strict=True):
                whole.append(scores)
    if labels:
        quality = official_scores(clips, list(map(np.stack, kept)), run.year)
    return Found(candidates, np.asarray(quality))


def views_of(system: SystemConfig) -> Views:
    """Return what the vectors of a system hold side by side."""
    if len(system.encoders) > 1:
        return Views(("all encoders",))
    return Views(*getattr(system.encoders[0], "views", (("embedding",), 1)))


def _show(rows: Sequence[dict], name: str, runs: Sequence[str]) -> None:
    heading = ["scorer", "view", f"mean {name}", *(Path(run).name for run in runs)]
    keys = ["scorer", "view", f"mean {name}", *(f"{name} of {run}" for run in runs)]
    if len(runs) == 1:
        heading, keys = heading[:3], keys[:3]
    shown = [
        [row[key] if key in ("scorer", "view") else f"{100 * row[key]:.2f}" for key in keys]
        for row in rows[:SHOWN]
    ]
    console.table(heading, shown, f"the first {len(shown)} of {len(rows)}, in per cent")
