"""The stage `train`: the model of a run, trained unless it is finished."""

from __future__ import annotations

import shutil
from pathlib import Path

from asdjax.artifact import make
from asdjax.devices import leads
from asdjax.report import console
from asdjax.stages.folder import MODEL, Run
from asdjax.stages.options import Options
from asdjax.train.config import Job


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
    done = make(
        product,
        lambda: system.train.fit(job),
        force=options.force,
        reuse=options.reuse,
        replaces=False,
    )
    if leads():
        if done != "built":
            console.note("already trained" if done == "kept" else f"{MODEL} copied from a run")
        if not options.keep_checkpoints and (out / "checkpoints").is_dir():
            shutil.rmtree(out / "checkpoints")
