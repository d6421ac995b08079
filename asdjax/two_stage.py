"""Two stages of training: a first one, whose clusters are labels for the second.

The first stage trains without pseudo labels and embeds the machines without attributes; clusters of
their training clips become the attributes that the second stage tells apart.

RUN/first-stage/   a run's folder without scores: training and embeddings of the first stage
RUN/pseudo/        the labels and figures of `asdjax.pseudo`
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from asdjax import pseudo, runs
from asdjax.data.audio import AudioInfo
from asdjax.devices import alone, leads
from asdjax.embedding import embed_groups, load_embedder
from asdjax.options import Options
from asdjax.report import console
from asdjax.runs import MODEL, Run
from asdjax.training import is_trained, train_run
from asdjax.types import InputError


def with_labels(made: Run, infos: Mapping[Path, AudioInfo], out: Path, told: Options) -> Run:
    """Return the run with pseudo labels: those given, or those of a first training without them.

    The first training is that of the same system without pseudo labels, in another run's folder
    where there is such a one, else in `out`/first-stage.

    Args:
      made: the run to make.
      infos: what is known of each file.
      out: the run's folder; labels go to its `pseudo.LABELS`.
      told: `pseudo_labels` are the labels given; `reuse` the other runs.
    Raises:
      InputError: the labels given are not of these clips, the clips cannot be clustered, or `out`
        has a training with other labels.
    """
    config, bare = made.system.pseudo, pseudo.bare_machines(made.clips)
    asked = config is not None and told.pseudo_labels is None and not told.force
    if asked and (done := _as_trained(made, out)):
        return done
    trained = any((out / name).exists() for name in (MODEL, "checkpoints"))
    folder, keep = out / pseudo.FOLDER, trained and not told.force
    if told.pseudo_labels is not None:
        labels = pseudo.load(told.pseudo_labels, made.clips)
        if leads() and not pseudo.written(folder, labels, keep):
            pseudo.save(out / pseudo.LABELS, labels)
    elif config is None:
        return made
    elif not bare:
        console.note("all machines have attributes: no pseudo labels are made")
        return made
    else:
        if not alone():
            raise InputError(
                "pseudo labels are made by one process; give this training the labels of another "
                "with --pseudo-labels"
            )
        pseudo.check(made.clips, config)
        first, where = _first_stage(made, infos, out, told)
        machines = [runs.load_embeddings(where, first, group).select("train") for group in bare]
        labels = pseudo.write(folder, machines, config, keep)
    return replace(made, clips=pseudo.apply(made.clips, labels))


def _as_trained(made: Run, out: Path) -> Run | None:
    """Return the run with the labels that its finished training in `out` had, if there is one."""
    with suppress(InputError, OSError):
        labels = pseudo.load(out / pseudo.LABELS, made.clips)
        labelled = replace(made, clips=pseudo.apply(made.clips, labels))
        if runs.load(out).system == made.system and is_trained(labelled, out):
            return labelled
    return None


def _first_stage(
    made: Run, infos: Mapping[Path, AudioInfo], out: Path, told: Options
) -> tuple[Run, Path]:
    """Train without pseudo labels and embed the machines without attributes, or find both done."""
    first = replace(made, system=replace(made.system, pseudo=None))
    done = [] if told.force else [folder for folder in told.reuse if is_trained(first, folder)]
    source, folder = done[0] if done else None, out / "first-stage"
    if source is None:
        train_run(first, infos, folder, force=told.force, reported=told.reported)
    else:
        console.note(f"first stage: the training of {source}")
    embedder, first = load_embedder(first, source or folder)
    runs.save(folder, first)
    bare = pseudo.bare_machines(made.clips)
    embed_groups(first, embedder, infos, folder, bare, force=told.force, reuse=told.reuse)
    return first, folder
