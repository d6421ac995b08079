"""The stage `train`: the model of a run, trained unless it is finished."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from asdjax.artifact import Product, differences, is_finished, make, record, recorded, refuse
from asdjax.devices import agree, leads, together
from asdjax.models.weights_file import read_header
from asdjax.report import console
from asdjax.stages.folder import MODEL, Run
from asdjax.stages.options import Options
from asdjax.train.config import Job
from asdjax.types import InputError

MOST_LINES = 3  # of what differs in a run to reuse


def train(run: Run, out: Path, options: Options) -> None:
    """Write `model.safetensors`, unless it is finished; a training that was stopped is resumed.

    Raises:
      InputError: `out` has the model of another training, which only `force` replaces.
    """
    product, system = run.model(out), run.system
    job = Job(
        system.encoders,
        system.audio,
        run.training_clips,
        run.infos,
        out,
        product.path,
        product.key,
        options.force,
        options.reported,
    )

    def fit() -> None:
        if leads() and options.reuse:
            console.note(_unlike(product, options.reuse))
        system.train.fit(job)
        agree({"training": "finished"})  # others may still read the best checkpoint
        if leads():
            _remove_checkpoints(out, options)

    if not options.force:
        with together("--out"):
            _find_again(product, options)
    done = make(product, fit, force=options.force, reuse=options.reuse, replaces=False)
    if leads() and done != "built":
        console.note("already trained" if done == "kept" else f"{MODEL} {done}")


def _remove_checkpoints(out: Path, options: Options) -> None:
    if not options.keep_checkpoints:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _find_again(product: Product, options: Options) -> None:
    """Count a model as finished that the list lost; it says itself what it was trained from.

    Raises:
      InputError: a model that is in no list, and is from another training.
    """
    if is_finished(product) or not product.path.is_file():
        return
    try:
        key = read_header(product.path).config
    except InputError:  # it is no model, or damaged
        key = {}
    if key == product.key:
        if leads():
            _remove_checkpoints(product.folder, options)
            record(product)
    elif not recorded(product.folder, product.name)["key"]:
        refuse(product, key)


def _unlike(product: Product, folders: Sequence[Path]) -> str:
    """Return why no training is copied from these folders; of one folder, what differs."""
    found = [(folder, recorded(folder, product.name)["key"]) for folder in folders]
    found = [(folder, differences(key, product.key)) for folder, key in found if key]
    if len(found) != 1:
        return f"none of the {len(folders)} runs to reuse has this training"
    folder, lines = found[0]
    return f"{folder} has another training: {'; '.join(lines[:MOST_LINES]) or 'damaged'}"
