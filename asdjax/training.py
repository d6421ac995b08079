"""The stage `train`: what a run's folder holds of a training, and what it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from asdjax import params
from asdjax.config import digest, to_json
from asdjax.data.audio import AudioInfo
from asdjax.devices import agree
from asdjax.models.backbone import Backbone
from asdjax.models.system import FineTuned
from asdjax.params import Params
from asdjax.report import console
from asdjax.runs import MODEL, Run
from asdjax.train import loop
from asdjax.train.plan import make_plan
from asdjax.types import InputError
from asdjax.weights import load_backbone


def train_run(
    run: Run, infos: Mapping[Path, AudioInfo], out: Path, *, force: bool, reported: str
) -> None:
    """Train the system of a run, unless `out` already holds what the training would give.

    Args:
      infos: what is known of each file.
      force: train again all the same.
      reported: parameter counts of the report, to be printed beside ours.

    Raises:
      InputError: `out` has what another training gave, and it is not to be replaced by force.
    """
    trained = not force and is_trained(run, out)
    agree({"--out": str(trained)})
    if trained:
        console.note(f"already trained: {out / MODEL}")
        return
    if not force and (out / MODEL).exists() and not (out / "checkpoints").exists():
        raise InputError(
            f"{out / MODEL} is of another training (other settings, weights or recordings); choose "
            "another --out, or train anew with --force"
        )
    clips = [clip for clip in run.clips if clip.split == "train"]
    plan = make_plan(run.system.train, clips)
    for line in plan.notes:
        console.note(line)
    loop.train(
        run.system.embedder,
        run.system.train,
        load_backbones(run.system.embedder),
        plan,
        clips,
        [infos[clip.path] for clip in clips],
        run.system.audio,
        out,
        out / MODEL,
        training_of(run),
        reported,
        anew=force,
    )


def load_backbones(config: FineTuned) -> list[Backbone]:
    """Return the backbone of each branch."""
    return [load_backbone(branch.weights, branch.dtype) for branch in config.branches]


def is_trained(run: Run, out: Path) -> bool:
    """Tell whether `out` has what the training of this very run gives."""
    with suppress(InputError):
        return params.read_header(out / MODEL).config == training_of(run)
    return False


def load_trained(run: Run, out: Path) -> Params | None:
    """Return what the training of this very run left in `out`; None if that is not there."""
    return params.load(out / MODEL)[0] if is_trained(run, out) else None


def training_of(run: Run) -> dict:
    """Return, as plain values, everything that the trained weights of a run depend on.

    Recordings count by name, domain, attributes, size and time of change.
    """
    system = to_json(run.system)
    kept = {name: system[name] for name in ("embedder", "audio", "train")}
    for name in ("log_every", "source"):  # what changes nothing in the result
        del kept["train"][name]
    for branch in kept["embedder"]["branches"]:
        del branch["weights"]  # where they lie; their SHA-256 says what they are
    files = [(c, c.path.stat()) for c in run.clips if c.split == "train"]
    clips = [
        (*c.group, c.name, c.domain, c.attributes, file.st_size, file.st_mtime_ns)
        for c, file in files
    ]
    return kept | {"data_sha256": digest(clips), "weights_sha256": run.weights_sha256}
