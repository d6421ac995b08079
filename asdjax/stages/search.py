"""The command `search`: many ways to score the embeddings of runs, without their encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax.config import SystemConfig
from asdjax.files import write_csv
from asdjax.metrics.official import official_scores
from asdjax.report import console
from asdjax.scoring import search as searching
from asdjax.scoring.knn import Knn
from asdjax.scoring.score import refuse_not_finite
from asdjax.scoring.search import Candidate, Views, consistency
from asdjax.stages import folder
from asdjax.stages.folder import Group, Run
from asdjax.stages.members import labelled_clips
from asdjax.types import Embeddings, InputError, preview

SHOWN = 15
FILE = "search.csv"
WORTH = (
    "ranked by how alike source and target training clips score, left out; that says next to "
    "nothing of how well anomalies are detected: in 3 of the 6 cases of QUALITY.md the first way "
    "was worse than the median of all"
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
    out = Path(paths[0]) / FILE if paths and out is None else out
    if not paths:
        raise InputError("expected one or more folders of runs, got none")
    if out.is_dir():
        raise InputError(f"expected a csv for --out, got the folder {out}; name a file in it")
    runs = {str(path): folder.load(Path(path)) for path in paths}
    system = next(iter(runs.values())).system
    if not system.takes(Knn):
        raise InputError("expected embeddings, got errors of autoencoders, which have no neighbors")
    if any(_embedded_by(run.system) != _embedded_by(system) for run in runs.values()):
        raise InputError(f"expected runs of one system, got others in {preview(runs)}")
    views = Views(*system.views)
    if not labels:
        _refuse_one_domain(runs)
    found = {path: _of_run(Path(path), run, views, labels) for path, run in runs.items()}
    name = "official score" if labels else "consistency"
    mean = np.mean([one.total for one in found.values()], 0)
    candidates, rows = next(iter(found.values())).candidates, []
    for i in np.argsort(-np.nan_to_num(mean, nan=-1.0), kind="stable"):
        scorer = searching.options(candidates[i].scorer)
        row = {"view": candidates[i].view, "scorer": scorer, f"mean {name}": mean[i]}
        for path, one in found.items():
            row[f"{name} of {path}"] = one.total[i]
            row |= {f"{machine} of {path}": x[i] for machine, x in one.machines.items()}
        rows.append({**row, "labels of test clips used": int(labels)})
    write_csv(out, [list(rows[0]), *(list(row.values()) for row in rows)])
    _show(rows, name, list(runs))
    for path, one in found.items():
        if lacking := int(np.isnan(one.total).sum()):
            console.note(f"{path}: {lacking} ways have no {name} there and come last")
    console.note(CHOSEN if labels else WORTH)
    console.note(f"all {len(rows)}, by machine: {out}")
    return rows


class Found(NamedTuple):
    """What the candidates of a run are ranked by; larger is better, nan where there is nothing."""

    candidates: list[Candidate]
    total: np.ndarray  # [W]
    machines: dict[str, np.ndarray]  # [W] of each machine and section


def _embedded_by(system: SystemConfig) -> tuple:
    """Return what decides how a system embeds, but for length and channel."""
    return system.encoders, system.train, system.pseudo


def _of_run(path: Path, run: Run, views: Views, labels: bool) -> Found:
    machines = [folder.load_embeddings(path, run, group) for group in run.groups]
    train, test = ([one.select(split) for one in machines] for split in ("train", "test"))
    refuse_not_finite(train, test)
    _note_few(run, train)
    domains = [np.array([clip.domain or "" for clip in one.clips]) for one in train]
    clips = labelled_clips(run) if labels else {}
    labelled = {
        group: [i for i, clip in enumerate(one.clips) if clip.label is not None]
        for group, one in zip(run.groups, test, strict=True)
        if group in clips
    }
    candidates, alike = [], []
    scores: dict[Group, list[np.ndarray]] = {group: [] for group in labelled}
    with console.progress(f"scoring {path.name}", searching.count(views), "ways") as advance:
        for candidate, tests, left_out in searching.score_all(train, test, views, advance):
            candidates.append(candidate)
            alike.append([consistency(*one) for one in zip(left_out, domains, strict=True)])
            for group, found in zip(run.groups, tests, strict=True):
                if group in labelled:
                    scores[group].append(found[labelled[group]])
    if not labels:
        each = dict(zip(run.groups, np.array(alike).T, strict=True))
        known = [x for x in each.values() if not np.isnan(x).all()]
        total = np.nanmean(known, 0) if known else np.full(len(candidates), np.nan)
    else:
        stacked = {group: np.stack(one) for group, one in scores.items()}
        total = official_scores(clips, list(stacked.values()), run.year)
        each = {
            group: official_scores({group: clips[group]}, [values], run.year)
            for group, values in stacked.items()
        }
    return Found(candidates, total, {"/".join(group): values for group, values in each.items()})


def _note_few(run: Run, train: Sequence[Embeddings]) -> None:
    most, named = max(searching.NEIGHBORS), zip(run.groups, train, strict=True)
    few = [f"{'/'.join(g)} ({len(one.clips)})" for g, one in named if len(one.clips) <= most]
    if few:
        console.note(
            f"with fewer than {most + 1} training clips local scales are from all there are: "
            f"{', '.join(few)}"
        )


def _refuse_one_domain(runs: Mapping[str, Run]) -> None:
    lacking = []
    for path, run in runs.items():
        domains = ({c.domain for c in run.select(group, "train")} for group in run.groups)
        if not any({"source", "target"} <= of for of in domains):
            lacking.append(path)
    if lacking:
        raise InputError(
            "expected machines with training clips of source and target to rank by, got none in "
            f"{preview(lacking)}; without domains nothing but --labels of test clips can rank"
        )


def _names(runs: Sequence[str]) -> list[str]:
    """Return the names of folders, or the paths where two have the same name."""
    names = [Path(run).name for run in runs]
    return names if len(set(names)) == len(names) else list(runs)


def _show(rows: Sequence[dict], name: str, runs: Sequence[str]) -> None:
    heading = ["scorer", "view", f"mean {name}", *_names(runs)]
    keys = ["scorer", "view", f"mean {name}", *(f"{name} of {run}" for run in runs)]
    if len(runs) == 1:
        heading, keys = heading[:3], keys[:3]
    shown = [
        [row[key] if key in ("scorer", "view") else f"{100 * row[key]:.2f}" for key in keys]
        for row in rows[:SHOWN]
    ]
    console.table(heading, shown, f"the first {len(shown)} of {len(rows)}, in per cent")
