"""The stage `pseudo`: labels of training clips whose machine has no attributes.

OUT/labels.csv                machine,section,file,label: one row per such clip; may be edited
OUT/<machine>_<section>.png   the clusters, to judge their number by eye
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asdjax import runs
from asdjax.files import read_csv, write_csv
from asdjax.report import clusters, console
from asdjax.runs import Group
from asdjax.scoring.balance import unit
from asdjax.scoring.pseudo import Clusters, Pseudo, cluster
from asdjax.types import Clip, Embeddings, InputError, preview

FOLDER = "pseudo"  # in a run's folder
FILE = "labels.csv"
LABELS = f"{FOLDER}/{FILE}"
HEADER = ["machine", "section", "file", "label"]
MOST_IN_LINE = 10  # rows shown of one kind of mistake

Key = tuple[str, str, str]  # machine, section and file name of a training clip
Labels = dict[Key, str]


def cluster_run(run: Path, config: Pseudo, out: Path | None = None) -> Path:
    """Label the machines without attributes from a finished run's embeddings; return the folder.

    Args:
      run: any run, of a frozen or a trained system.
      config: how to cluster.
      out: gets the files; None: RUN/pseudo.

    Raises:
      InputError: all machines have attributes, or embeddings are missing.
    """
    run, out = Path(run), Path(out or Path(run) / FOLDER)
    made = runs.load(run)
    bare = bare_machines(made.clips)
    if not bare:
        raise InputError(
            f"expected a run with a machine without attributes, got {run}, where all have them "
            "(pseudo labels count); give the run of a system without pseudo labels"
        )
    machines = [runs.load_embeddings(run, made, group) for group in bare]
    if None in machines:
        raise InputError(f"the embeddings in {run} are not complete; give the run's command again")
    write(out, [machine.select("train") for machine in machines], config)
    console.note(f"pseudo labels and figures: {out}")
    return out


def write(
    out: Path, embeddings: Sequence[Embeddings], config: Pseudo, keep: bool = False
) -> Labels:
    """Cluster machines; write figures and labels, print a table, return the labels.

    Args:
      out: the folder.
      embeddings: of the training clips of one machine and section each.
      config: how to cluster.
      keep: do not replace other labels, which a training was made with.

    Raises:
      InputError: machines that cannot be clustered; other labels to be kept.
    """
    found = make(embeddings, config, console.note)
    labels = {
        _key(clip): f"pseudo_{label:02d}"
        for machine in embeddings
        for clip, label in zip(machine.clips, found[machine.clips[0].group].labels, strict=True)
    }
    if not written(out, labels, keep):
        for machine in embeddings:
            group = machine.clips[0].group
            path = out / f"{group[0]}_{group[1]}.png"
            clusters.write(path, machine.clips, unit(machine.values), found[group].labels)
        save(out / FILE, labels)  # last: it tells that the figures are complete
    _print(found, config)
    return labels


def written(out: Path, labels: Labels, keep: bool) -> bool:
    """Tell whether a folder has exactly these labels.

    Raises:
      InputError: it has others that are to be kept.
    """
    path = out / FILE
    rows = read_csv(path)[1:] if path.is_file() else []
    same = {tuple(row[:3]): row[-1] for row in rows} == labels
    if keep and rows and not same:
        raise InputError(
            f"{path} has other pseudo labels, and a training was made with them; choose another "
            "--out, or --force to train anew, or give that file with --pseudo-labels"
        )
    return same


def make(
    embeddings: Sequence[Embeddings], config: Pseudo, note: Callable[[str], object]
) -> dict[Group, Clusters]:
    """Cluster the training clips of each machine and section.

    Args:
      embeddings: of one machine and section each.
      config: how to cluster.
      note: called with a line on machines that have a number of clusters and are not there: a
        system lists those of several data sets.

    Raises:
      InputError: all machines that cannot be clustered, and why.
    """
    machines = [machine.clips[0].group for machine in embeddings]
    counts = dict(config.counts)
    if unused := sorted(counts.keys() - {machine for machine, _ in machines}):
        note(f"clusters asked for, but no such machine without attributes: {preview(unused)}")
    found, problems = {}, []
    for group, machine in zip(machines, embeddings, strict=True):
        try:
            found[group] = cluster(machine.values, counts.get(group[0]), config)
        except InputError as error:
            problems.append(f"{' '.join(group)}: {error}")
    if problems:
        raise InputError("cannot cluster these machines:\n- " + "\n- ".join(problems))
    return found


def check(clips: Sequence[Clip], config: Pseudo) -> None:
    """Refuse more clusters than clips, which needs no embeddings to be known.

    Raises:
      InputError: every machine without attributes that has fewer training clips.
    """
    wanted, found = dict(config.counts), Counter(clip.group for clip in _unlabelled(clips))
    if few := {g: n for g, n in found.items() if n < wanted.get(g[0], 1)}:
        listed = "\n- ".join(f"{' '.join(g)}: {wanted[g[0]]} of {n} clips" for g, n in few.items())
        raise InputError(
            f"expected no more clusters than training clips, got:\n- {listed}\n"
            "give smaller numbers with --pseudo.counts MACHINE NUMBER ..."
        )


def bare_machines(clips: Iterable[Clip]) -> list[Group]:
    """Return each machine and section whose training clips all have no attributes, in order."""
    training = [clip for clip in clips if clip.split == "train"]
    described = {clip.group for clip in training if clip.attributes}
    return [g for g in dict.fromkeys(clip.group for clip in training) if g not in described]


def apply(clips: Sequence[Clip], labels: Labels) -> tuple[Clip, ...]:
    """Return the clips; training clips of machines without attributes have their label as such."""
    wanted = set(_unlabelled(clips))
    return tuple(replace(c, attributes=labels[_key(c)]) if c in wanted else c for c in clips)


def save(path: Path, labels: Labels) -> None:
    """Write `machine,section,file,label`, in the order of the labels."""
    write_csv(path, [HEADER, *([*key, label] for key, label in labels.items())])


def load(path: Path, clips: Sequence[Clip]) -> Labels:
    """Read labels for these clips; any text of one line is a label.

    Raises:
      InputError: everything in the file that is not one row for each training clip of a machine
        without attributes.
    """
    header, *rows = read_csv(path) or [[]]
    if header != HEADER:
        got = ",".join(header)
        raise InputError(f"{path}: expected the first line {','.join(HEADER)}, got {got!r}")
    wanted, bare = {_key(clip) for clip in _unlabelled(clips)}, set(bare_machines(clips))
    malformed = [",".join(row) for row in rows if not _well_formed(row)]
    given = Counter(tuple(row[:3]) for row in rows if _well_formed(row))
    described = {clip.group for clip in clips} - bare
    mistakes = {
        "expected rows machine,section,file,label of one line": malformed,
        "more than one row for": [key for key, count in given.items() if count > 1],
        "rows of machines that have attributes, remove them": [
            key for key in given if key[:2] in described
        ],
        "rows of no training clip, correct or remove them": [
            key for key in given if key not in wanted and key[:2] not in described
        ],
        "no row for training clips, add": sorted(wanted - given.keys()),
    }
    if any(mistakes.values()):
        raise InputError(f"{path} has no labels for these clips:\n" + _listed(mistakes))
    return {(machine, section, file): label for machine, section, file, label in rows}


def _well_formed(row: Sequence[str]) -> bool:
    return len(row) == len(HEADER) and row[-1].splitlines() == [row[-1]]


def _listed(mistakes: dict[str, list]) -> str:
    """Return a line for each kind of mistake that occurs."""
    return "\n".join(
        f"- {what}: {preview([r if isinstance(r, str) else '/'.join(r) for r in of], MOST_IN_LINE)}"
        for what, of in mistakes.items()
        if of
    )


def _unlabelled(clips: Iterable[Clip]) -> list[Clip]:
    clips = list(clips)
    bare = set(bare_machines(clips))
    return [clip for clip in clips if clip.split == "train" and clip.group in bare]


def _key(clip: Clip) -> Key:
    return *clip.group, clip.name


def _print(found: dict[Group, Clusters], config: Pseudo) -> None:
    """Print a row per machine."""
    given = dict(config.counts)
    rows = []
    for group, (labels, count, _) in found.items():
        sizes = np.bincount(labels)
        chosen = "given" if group[0] in given else "silhouette"
        score = f"{found[group].silhouette:.2f}" if count > 1 else "-"
        rows.append(
            [" ".join(group), len(labels), count, chosen, score, f"{sizes[0]} to {sizes[-1]}"]
        )
    heading = ["", "clips", "clusters", "chosen by", "mean silhouette", "clips per cluster"]
    console.table(heading, rows, f"pseudo labels, {config.method}")
