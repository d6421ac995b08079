"""Recordings that are known to be good, and their embeddings: the stage `embed`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from asdjax import runs
from asdjax.config import SystemConfig, digest
from asdjax.data import audio, dcase
from asdjax.data.audio import AudioInfo
from asdjax.data.loader import Audio, length_notes, load_batches, plan_batches
from asdjax.data.supplemental import supplemental
from asdjax.devices import copied, data_mesh, split
from asdjax.files import sha256_file
from asdjax.models.autoencoder import SHORTEST_SAMPLES, Autoencoder
from asdjax.models.embedder import (
    Embedder,
    LogMel,
    Pretrained,
    autoencoder_embedder,
    backbone_embedder,
    logmel_embedder,
    trained_embedder,
)
from asdjax.report import console
from asdjax.runs import MODEL, Group, Run
from asdjax.training import load_bases, load_trained
from asdjax.types import Clip, DataSet, Embeddings, InputError
from asdjax.weights import find, load_backbone

IN_FLIGHT = 2  # batches given to the device: one it computes, one that waits


def prepare(
    config: SystemConfig,
    data: Path,
    year: int | None = None,
    ground_truth: Path | None = None,
    skip_bad: bool = False,
) -> tuple[Run, dict[Path, AudioInfo]]:
    """Scan a directory and decode every file once, so that all broken ones are told at once.

    Returns:
      The run to make, without broken clips, with supplemental ones only for its training, and with
      its channel decided; what is known of each file.

    Raises:
      InputError: broken files (unless `skip_bad`), machines without training clips, no weights.
    """
    weights_sha256 = weights_of(config.embedder)
    dataset = dcase.scan(Path(data).resolve(), ground_truth)
    clips = tuple(clip for clip in dataset.clips if clip.split != "supplemental")
    extra, lines = (), []
    if kinds := getattr(getattr(config.train, "supplement", None), "kinds", ()):
        extra, lines = supplemental(dataset, kinds)
    sound = replace(config.audio, channel=_channel(config.audio, dataset))
    paths = [clip.path for clip in (*clips, *extra)]
    with console.progress("checking files", len(paths), "files") as advance:
        infos, problems = audio.verify(paths, sound.channel, _shortest_samples(config), advance)
    if not skip_bad:
        refuse_broken(problems, len(paths))
    clips, extra = (tuple(c for c in some if c.path in infos) for some in (clips, extra))
    skipped = {str(path): reason for path, reason in problems.items()}
    formats, lengths = audio.notes(clips, infos, sound.channel), length_notes(clips, infos, sound)
    for line in (*formats, *lengths, *lines):
        console.note(line)
    run = Run(
        replace(config, audio=sound),
        dataset.root,
        clips,
        year or dataset.year,
        weights_sha256,
        skipped,
        supplement=extra,
    )
    check_complete(run)
    return run, infos


def refuse_broken(problems: Mapping[Path, str], count: int) -> None:
    """Raise one InputError that lists every broken file of `count`, if there is one."""
    if problems:
        listed = "\n  ".join(f"{path}: {reason}" for path, reason in problems.items())
        raise InputError(
            f"{len(problems)} of {count} files cannot be used; repair or remove them, or leave "
            f"them out of a run with --skip-bad:\n  {listed}"
        )


def check_complete(run: Run) -> None:
    """Refuse machines without training or test clips, or with training clips of one domain only."""
    problems = [] if run.clips else [f"{run.data}: no clip that can be used"]
    for (machine, section), clips in run.groups.items():
        domains = [clip.domain for clip in clips if clip.split == "train"]
        where = f"{machine}/{section} in {clips[0].path.parents[1]}"
        if not domains:
            problems.append(f"{where}: no training clip that can be used")
        if len(domains) == len(clips):
            problems.append(f"{where}: no test clip that can be used")
        for domain in ("source", "target") if any(domains) else ():
            if domain not in domains:
                problems.append(f"{where}: no {domain} clip among {len(domains)} training clips")
    if problems:
        raise InputError(
            "expected normal training clips of every machine and section, of both domains where "
            "there are domains, and test clips; complete the data, or take the machine out of the "
            "folder:\n  " + "\n  ".join(problems)
        )


def weights_of(embedder: object) -> str:
    """Return the SHA-256 of the backbone's weight file, or of those of several; "" for none."""
    branches = getattr(embedder, "branches", (embedder,))
    found = [sha256_file(find(b.weights)) for b in branches if hasattr(b, "weights")]
    return digest(found) if len(found) > 1 else "".join(found)


def load_embedder(run: Run, out: Path) -> tuple[Embedder, Run]:
    """Return a run's embedder, trained in `out`, and the run with what its embeddings depend on.

    Raises:
      InputError: weights that are missing or do not fit; a system that is not trained in `out`.
    """
    config, sha256 = run.system.embedder, run.weights_sha256
    if isinstance(config, LogMel):
        embedder = logmel_embedder()
    elif isinstance(config, Pretrained):
        embedder = backbone_embedder(load_backbone(config.weights, config.dtype), config)
    else:
        trained = load_trained(run, out)
        if trained is None:
            raise InputError(f"{out} holds no model of this system and data; train it with `run`")
        if isinstance(config, Autoencoder):
            embedder = autoencoder_embedder(trained)
        else:
            embedder = trained_embedder(load_bases(run.system), config, trained)
        sha256 = digest(sha256, sha256_file(out / MODEL))
    return embedder, replace(run, weights_sha256=sha256).with_keys()


def make_embed(embedder: Embedder, config: SystemConfig, most_clips: int) -> Callable:
    """Return `embed(clips, infos, advance) -> [n, E] float32`, jitted over all local devices.

    It compiles once per clip length and sample type. The device works on one batch while threads
    decode the next.

    Args:
      most_clips: in one call; batches need not be larger.
    """
    mesh = data_mesh()
    batch = -(-min(config.batch, most_clips) // mesh.size) * mesh.size
    params = jax.device_put(embedder.params, copied(mesh))
    # Clips do not see each other: shard_map says so, where `jit` alone would gather the batch of
    # waves for the FFT on every device (jax 0.10).
    rows, whole = jax.P("data"), jax.P()
    apply = jax.shard_map(
        embedder.apply, mesh=mesh, in_specs=(whole, rows, rows), out_specs=rows, check_vma=False
    )
    step = jax.jit(apply)

    def embed(clips: Sequence[Clip], infos: Sequence[AudioInfo], advance) -> np.ndarray:
        own = embedder.select(params, clips[0].group)
        computing: deque[tuple[np.ndarray, jax.Array]] = deque()
        found: list[tuple[np.ndarray, np.ndarray]] = []

        def collect() -> None:
            rows, vectors = computing.popleft()
            found.append((rows, _wait(vectors)[: len(rows)]))
            advance(len(rows))

        plans = plan_batches(infos, config.audio, batch)
        for plan, wave, lengths in load_batches(clips, plans, config.audio, batch):
            vectors = step(own, *jax.device_put((wave, lengths), split(mesh)))
            computing.append((plan.rows, vectors))
            if len(computing) == IN_FLIGHT:
                collect()
        while computing:
            collect()
        values = np.zeros((len(clips), found[0][1].shape[1]), np.float32)
        for rows, vectors in found:
            values[rows] = vectors
        return values

    return embed


def embed_groups(
    run: Run,
    embedder: Embedder,
    infos: Mapping[Path, AudioInfo],
    out: Path,
    groups: Collection[Group],
    *,
    force: bool = False,
    reuse: Sequence[Path] = (),
) -> None:
    """Write the embeddings of some machines and sections that `out` does not have yet.

    Args:
      run: with its keys.
      force: compute again what is there.
      reuse: folders of other runs; what they have of the same clips, system and weights is copied.
    """
    pending = {}
    for group in groups:
        folders = () if force else (out, *reuse)
        read = ((folder, runs.load_embeddings(folder, run, group)) for folder in folders)
        folder, found = next((one for one in read if one[1] is not None), (None, None))
        if found is None:
            pending[group] = run.groups[group]
        elif folder != out:
            runs.save_embeddings(out, run, found)
    console.note(f"{len(groups) - len(pending)} of {len(groups)} machines are already embedded")
    if not pending:  # the weights need not go to the devices
        return
    with console.progress("embedding", sum(map(len, pending.values()))) as advance:
        compute = make_embed(embedder, run.system, max(map(len, run.groups.values())))
        for clips in pending.values():
            values = compute(clips, [infos[clip.path] for clip in clips], advance)
            runs.save_embeddings(out, run, Embeddings(clips, values))


def _wait(computing: jax.Array) -> np.ndarray:
    """Return the result on the host when it is there, but let Ctrl-C through at once."""
    while not computing.is_ready():
        time.sleep(0.001)
    return np.asarray(computing)


def _channel(config: Audio, dataset: DataSet) -> int | str:
    """Return the channel asked for, else 0 of the challenge's files and the mean of others."""
    if config.channel is not None:
        return config.channel
    challenge = dataset.year is not None or any(clip.domain for clip in dataset.clips)
    return 0 if challenge else "mean"


def _shortest_samples(config: SystemConfig) -> int:
    """Return the samples a file must have: one frame (of an autoencoder one vector), or the whole
    length when only cropping."""
    if config.audio.fit == "crop" and config.audio.seconds is not None:
        return config.audio.samples
    return SHORTEST_SAMPLES if isinstance(config.embedder, Autoencoder) else audio.FRAME_SAMPLES
