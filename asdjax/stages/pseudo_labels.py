"""Pseudo labels: clusters of training clips become the classes that a training tells apart.

They come from a file, from a first training without them (`SystemConfig.pseudo`), or, where a
training would find fewer than three classes, from statistics of the log-mel.

OUT/labels.csv                machine,section,file,label: one row per such clip; may be edited
OUT/<machine>_<section>.png   the clusters, to judge their number by eye
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax.artifact import Product, make
from asdjax.config import SystemConfig, to_json
from asdjax.data.labels import LabelKind, class_name
from asdjax.devices import alone
from asdjax.files import content_of, read_csv, write_csv
from asdjax.models.logmel import LogMel
from asdjax.report import console, figures
from asdjax.scoring.clusters import Clusters, Pseudo, cluster, cluster_domains
from asdjax.scoring.folds import unit
from asdjax.stages.embed import embed, embed_in_memory, embedder, make_embed
from asdjax.stages.folder import LABELS, MODEL, Group, Run, load, load_embeddings, recordings, save
from asdjax.stages.lock import locked
from asdjax.stages.options import Options
from asdjax.stages.train import train
from asdjax.types import Clip, Embeddings, InputError, Reported, preview
from asdjax.version import __version__

HEADER = ["machine", "section", "file", "label"]
FEWEST_CLASSES = 3
MOST_IN_LINE = 10  # rows shown of one kind of mistake

Key = tuple[str, str, str]  # machine, section and file name of a training clip
Labels = dict[Key, str]


def with_labels(run: Run, out: Path, options: Options, trains: bool = True) -> Run:
    """Return the run with the labels that its training needs.

    Args:
      trains: whether a training follows; else the labels of the earlier one are read.

    Raises:
      InputError: the labels given are not of these clips, the clips cannot be clustered, or `out`
        has a training with other labels.
    """
    if run.system.pseudo is None and options.pseudo_labels is None:
        return with_enough_classes(run, out, options, trains)
    groups = without_attributes(run.clips)
    if options.pseudo_labels is None and not groups:
        console.note("all machines have attributes: no pseudo labels are made")
        return with_enough_classes(run, out, options, trains)
    if options.pseudo_labels is None and not trains:
        return with_usable_heads(labelled(run, out / LABELS))
    if options.pseudo_labels is not None:
        given = load_labels(options.pseudo_labels, run.clips)
        if (out / LABELS).is_file() and _read_labels(out / LABELS) == given:
            return with_usable_heads(labelled(run, out / LABELS))  # wherever they are from
        key = {"given": content_of(sorted(map(list, given.items())))}

        def build() -> None:
            save_labels(out / LABELS, given)
    else:
        check(run.clips, run.system.pseudo)
        first = replace(run, system=replace(run.system, pseudo=None))
        first = with_enough_classes(first, out / "first-stage", options)
        key = {"first stage": first.model(out).key, "pseudo": to_json(run.system.pseudo)}

        def build() -> None:
            machines = _first_stage(first, out / "first-stage", groups, options)
            others = {class_name(c, "attributes") for c in run.training_clips if c.attributes}
            fewest = -(-(FEWEST_CLASSES - len(others)) // len(machines))
            write(out / LABELS, machines, run.system.pseudo, fewest)

    _make_labels(out, key, build, options)
    return with_usable_heads(labelled(run, out / LABELS))


def labelled(run: Run, path: Path) -> Run:
    """Return the run with the labels of a csv for machines without attributes, if it has such."""
    if not without_attributes(run.clips):
        return run
    return replace(run, clips=apply(run.clips, load_labels(path, run.clips)))


def with_usable_heads(run: Run) -> Run:
    """Return a run whose heads have classes to tell apart.

    Heads of a single class are left out. Where no head has three classes, all take the attributes.
    """
    heads = run.system.train.heads if run.system.train else ()
    counts = [_count_classes(run, head.labels) for head in heads]
    told = [n for head, n in zip(heads, counts, strict=True) if head.loss.has_classes]
    if max(told, default=FEWEST_CLASSES) >= FEWEST_CLASSES:
        kept = tuple(head for head, count in zip(heads, counts, strict=True) if count > 1)
        if len(kept) < len(heads):
            console.note(f"{len(heads) - len(kept)} of {len(heads)} heads left out: a single class")
    else:
        kept = tuple(replace(head, labels="attributes") for head in heads)
        if kept != heads and _count_classes(run, "attributes") > max(counts):
            console.note("fewer than three machines: their attributes are the classes")
    return _with_heads(run, kept) if kept != heads else run


def _count_classes(run: Run, kind: LabelKind) -> int:
    clips = (clip for clip in run.training_clips if clip.supplement != "noise")
    return len({class_name(clip, kind) for clip in clips})


def with_enough_classes(run: Run, out: Path, options: Options, trains: bool = True) -> Run:
    """Return a run whose training by classes has three or more of them.

    Where neither machines nor attributes are three, the training clips of each machine are
    clustered by their log-mel statistics; a cluster within an attribute string is then a class.

    Args:
      trains: as of `with_labels`.

    Raises:
      InputError: clips that cannot be clustered, or `out` has a training with other labels.
    """
    run = with_usable_heads(run)
    heads = run.system.train.heads if run.system.train else ()
    count = max((_count_classes(run, head.labels) for head in heads), default=FEWEST_CLASSES)
    if count >= FEWEST_CLASSES or not (trains or (out / LABELS).exists()):
        return run

    def build() -> None:
        fewest = -(-FEWEST_CLASSES // len(run.groups))
        if few := [g for g in run.groups if len(run.select(g, "train")) < fewest]:
            raise InputError(
                f"a training needs {FEWEST_CLASSES} classes, so {fewest} or more different "
                f"training clips of each machine; got fewer of {preview(map(' '.join, few))}; "
                "record more, or use a system without training, such as frozen/logmel"
            )
        save_labels(out / LABELS, _labels(cluster_all(_log_mel(run), Pseudo("kmeans"), fewest)))

    key = {
        "clusters of": "log-mel statistics",
        "audio": to_json(run.system.audio),
        "recordings": recordings(run.training_clips, labels=False),
    }
    _make_labels(out, key, build, options)
    labels = _read_labels(out / LABELS)
    found = len({(*key[:2], label) for key, label in labels.items()})
    console.note(
        f"too few classes to train on ({count}): the training clips were clustered into {found} by "
        f"log-mel statistics; see {out / LABELS}"
    )
    return replace(
        run,
        clips=tuple(
            replace(c, attributes=" ".join(filter(None, (c.attributes, labels[_key(c)]))))
            if c.split == "train"
            else c
            for c in run.clips
        ),
    )


def _with_heads(run: Run, heads: tuple) -> Run:
    return replace(run, system=replace(run.system, train=replace(run.system.train, heads=heads)))


def _make_labels(out: Path, key: dict, build: Callable[[], object], options: Options) -> None:
    """Make OUT/pseudo/labels.csv; a training that used other labels is not left without them."""
    trained = any((out / name).exists() for name in (MODEL, "checkpoints"))
    folder, name = (out / LABELS).parent, (out / LABELS).name
    product = Product(folder, name, {"asdjax": __version__, **key})
    make(product, build, force=options.force, replaces=not trained)


def _first_stage(
    first: Run, folder: Path, groups: Sequence[Group], options: Options
) -> list[Embeddings]:
    """Train without pseudo labels; return the embeddings of training clips without attributes."""
    if not alone():
        raise InputError(
            "pseudo labels are made by one process; give this training the labels of another with "
            "--pseudo-labels"
        )
    train(first, folder, replace(options, reported=Reported()))  # told by the second training
    save(folder, first)
    embed(first, folder, groups, options)
    return [load_embeddings(folder, first, group).select("train") for group in groups]


def _log_mel(run: Run) -> list[Embeddings]:
    """Return the log-mel statistics of the training clips of each machine and section."""
    frozen = replace(run, system=SystemConfig((LogMel(),), audio=run.system.audio))
    groups = [run.select(group, "train") for group in run.groups]
    with console.progress("log-mel", sum(map(len, groups))) as advance:
        compute = make_embed(embedder(frozen, Path()), frozen.system, max(map(len, groups)))
        found = []
        for clips in groups:
            values = embed_in_memory(compute, clips, [run.infos[clip.path] for clip in clips])
            found.append(Embeddings(clips, values))
            advance(len(clips))
    return found


def cluster_run(folder: Path, config: Pseudo, out: Path | None = None) -> Path:
    """Label the machines without attributes from a finished run's embeddings; return the csv.

    Args:
      folder: any run, of a frozen or a trained system.
      config: how to cluster.
      out: gets the files; None: RUN/pseudo.

    Raises:
      InputError: all machines have attributes, or embeddings are missing.
    """
    folder, to = Path(folder), Path(out or (Path(folder) / LABELS).parent)
    with locked(to if out else folder):
        run = load(folder)
        groups = without_attributes(run.clips)
        if not groups:
            raise InputError(
                f"expected a run with a machine without attributes, got {folder}, where all have "
                "them (pseudo labels count); give the run of a system without pseudo labels"
            )
        machines = [load_embeddings(folder, run, group).select("train") for group in groups]
        write(to / "labels.csv", machines, config)
    console.note(f"pseudo labels and figures: {to}")
    return to / "labels.csv"


def write(path: Path, machines: Sequence[Embeddings], config: Pseudo, fewest: int = 1) -> None:
    """Cluster machines; write labels and figures, and print a table.

    Args:
      path: of the csv; figures go beside it.
      machines: embeddings of the training clips of one machine and section each.
      fewest: as of `cluster_all`.

    Raises:
      InputError: machines that cannot be clustered.
    """
    found = cluster_all(machines, config, fewest)
    save_labels(path, _labels(found))
    _print(found, config)
    for clips, values, clusters in found:
        picture = path.with_name(f"{'_'.join(clips[0].group)}.png")
        figures.write_clusters(picture, clips, unit(values), clusters.labels, console.note)


class Clustered(NamedTuple):
    """The training clips of a machine and section, their embeddings and their clusters."""

    clips: tuple[Clip, ...]
    values: np.ndarray  # [n, E]
    clusters: Clusters


def cluster_all(machines: Sequence[Embeddings], config: Pseudo, fewest: int = 1) -> list[Clustered]:
    """Cluster the training clips of each machine and section.

    Args:
      machines: embeddings of one machine and section each.
      config: how to cluster.
      fewest: clusters of a machine whose number is not given.

    Raises:
      InputError: all machines that cannot be clustered, and why.
    """
    counts = dict(config.counts)
    names = {machine.clips[0].machine for machine in machines}
    if unused := sorted(counts.keys() - names):
        # A system lists the machines of several data sets.
        console.note(f"clusters given, but no such machine without attributes: {preview(unused)}")
    found, problems = [], []
    for clips, values in ((machine.clips, machine.values) for machine in machines):
        try:
            if config.by_domain and clips[0].machine not in counts:
                domains = [clip.domain for clip in clips]
                found.append(Clustered(clips, values, cluster_domains(values, domains, config)))
                continue
            clusters = cluster(values, counts.get(clips[0].machine), config)
            if clusters.count < fewest and clips[0].machine not in counts:
                clusters = cluster(values, fewest, config)
            found.append(Clustered(clips, values, clusters))
        except InputError as error:
            problems.append(f"{' '.join(clips[0].group)}: {error}")
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


def without_attributes(clips: Iterable[Clip]) -> list[Group]:
    """Return each machine and section whose training clips all have no attributes, in order."""
    training = [clip for clip in clips if clip.split == "train"]
    described = {clip.group for clip in training if clip.attributes}
    return [g for g in dict.fromkeys(clip.group for clip in training) if g not in described]


def apply(clips: Sequence[Clip], labels: Labels) -> tuple[Clip, ...]:
    """Return the clips; training clips of machines without attributes have their label as such."""
    wanted = set(_unlabelled(clips))
    return tuple(replace(c, attributes=labels[_key(c)]) if c in wanted else c for c in clips)


def save_labels(path: Path, labels: Labels) -> None:
    """Write `machine,section,file,label`, in the order of the labels."""
    write_csv(path, [HEADER, *([*key, label] for key, label in labels.items())])


def load_labels(path: Path, clips: Sequence[Clip]) -> Labels:
    """Read labels for these clips; any text of one line is a label.

    Raises:
      InputError: everything in the file that is not one row for each training clip of a machine
        without attributes.
    """
    rows = _rows(path)
    groups = set(without_attributes(clips))
    wanted = {_key(clip) for clip in _unlabelled(clips)}
    malformed = [",".join(row) for row in rows if not _well_formed(row)]
    given = Counter(tuple(row[:3]) for row in rows if _well_formed(row))
    described = {clip.group for clip in clips} - groups
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


def _rows(path: Path) -> list[list[str]]:
    header, *rows = read_csv(path) or [[]]
    if header != HEADER:
        got = ",".join(header)
        raise InputError(f"{path}: expected the first line {','.join(HEADER)}, got {got!r}")
    return rows


def _read_labels(path: Path) -> Labels:
    """Read labels as they are, without a look at the clips."""
    return {tuple(row[:3]): row[-1] for row in _rows(path)}


def _labels(found: Sequence[Clustered]) -> Labels:
    return {
        _key(clip): f"pseudo_{label:02d}"
        for clips, _, clusters in found
        for clip, label in zip(clips, clusters.labels, strict=True)
    }


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
    groups = set(without_attributes(clips))
    return [clip for clip in clips if clip.split == "train" and clip.group in groups]


def _key(clip: Clip) -> Key:
    return *clip.group, clip.name


def _print(found: Sequence[Clustered], config: Pseudo) -> None:
    """Print a row per machine."""
    given = dict(config.counts)
    rows = []
    for clips, _, clusters in found:
        sizes = np.bincount(clusters.labels)
        chosen = "given" if config.by_domain or clips[0].machine in given else "silhouette"
        score = f"{clusters.silhouette:.2f}" if clusters.silhouettes else "-"
        spread = f"{sizes[0]} to {sizes[-1]}"
        rows.append([" ".join(clips[0].group), len(clips), clusters.count, chosen, score, spread])
    heading = ["", "clips", "clusters", "chosen by", "mean silhouette", "clips per cluster"]
    console.table(heading, rows, f"pseudo labels, {config.method}")
