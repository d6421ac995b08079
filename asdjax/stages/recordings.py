"""Recordings that are known to be good: scanned, decoded once, and every broken one listed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asdjax.config import SystemConfig
from asdjax.data import audio, dcase, remarks
from asdjax.data.audio import AudioInfo
from asdjax.data.batches import Audio, padded_samples
from asdjax.data.dcase import supplemental
from asdjax.metrics import official
from asdjax.models import Encoder
from asdjax.models.checkpoints import find
from asdjax.models.pretrained import product_dtype, slow_in_bfloat16
from asdjax.models.weights_file import open_weights
from asdjax.report import console
from asdjax.stages.folder import Run, is_challenge
from asdjax.stages.options import Options
from asdjax.train.batches import device_memory
from asdjax.types import SAMPLE_RATE_HZ, Clip, DataSet, InputError, counted

MOST_ALIKE = 3  # files with the same problem that are listed line by line
FRAME_BYTES = 60  # of a sample of two microphones, for what makes one wave or embedding of them
FREE_SHARE = 0.8  # of the free memory of a device that a clip may take


def prepare(system: SystemConfig, data: Path | DataSet, options: Options) -> Run:
    """Scan a folder and decode every file once, so that all broken ones are listed at once.

    Args:
      data: the folder, or clips from anywhere, of which none need be a test clip.

    Returns:
      The run, without broken clips, with supplemental ones only for its training, and with its
      channel and the types of its products decided.

    Raises:
      InputError: broken files (unless `skip_bad`), machines without training clips, no weights.
    """
    official.check_year(options.year)
    paths = [encoder.weights for encoder in system.encoders]
    weights = tuple(read_weights(find(path)) if path else "" for path in paths)
    scored = not isinstance(data, DataSet)
    dataset = dcase.scan(Path(data).absolute(), options.ground_truth) if scored else data
    clips = tuple(clip for clip in dataset.clips if clip.split != "supplemental")
    extra, lines = (), []
    if kinds := system.train.supplemental if system.train else ():
        extra, lines = supplemental(dataset, kinds)
    settings = replace(system.audio, channel=channel(system.audio, dataset))
    paths = [clip.path for clip in (*clips, *extra)]
    with console.progress("checking files", len(paths), "files") as advance:
        shortest = shortest_samples(system)
        infos, problems = audio.verify(paths, settings.channel, shortest, advance)
    if not options.skip_bad:
        refuse_broken(problems, len(paths))
    every, copies = remarks.once(with_content([*clips, *extra], infos), infos)
    clips, extra = (
        tuple(clip for clip in every if (clip.split == "supplemental") == supplement)
        for supplement in (False, True)
    )
    formats = remarks.formats(clips, infos, settings.channel)
    told = remarks.lengths(clips, infos, settings)
    for line in (*dataset.notes, *formats, *told, *copies, *lines):
        console.note(line)
    encoders = with_dtypes(system.encoders)
    run = Run(
        replace(system, encoders=encoders, audio=settings),
        dataset.root,
        clips,
        options.year or dataset.year,
        weights,
        {str(path): reason for path, reason in problems.items()},
        remarks.unlike_training(clips, infos),
        extra,
        infos,
    )
    refuse_long(run)
    check_complete(run, scored)
    return run


def with_dtypes(encoders: Sequence[Encoder]) -> tuple[Encoder, ...]:
    """Return encoders with what "auto" is here in its place; say so, and where bfloat16 is slow."""
    given = [getattr(encoder, "dtype", "float32") for encoder in encoders]
    if "auto" in given:
        console.note(f"dtype auto: products in {product_dtype('auto')} here")
    if "bfloat16" in given and slow_in_bfloat16():
        console.note(
            "dtype bfloat16: slower than float32 on this processor, of which no units for it are "
            "known"
        )
    return tuple(
        replace(encoder, dtype=product_dtype("auto")) if dtype == "auto" else encoder
        for encoder, dtype in zip(encoders, given, strict=True)
    )


def read_weights(path: Path) -> str:
    """Return the SHA-256 of a weight file, of which damage is told where it can be seen."""
    file = open_weights(path)
    if not file.header.checksum:
        console.note(f"{path} is of an older version, without a checksum: damage would not be seen")
    return file.sha256


def refuse_broken(problems: Mapping[Path, str], count: int) -> None:
    """Raise one InputError that lists every broken file of `count`, if there is one."""
    if problems:
        reasons: dict[str, list[Path]] = {}
        for path, reason in problems.items():
            reasons.setdefault(reason, []).append(path)
        listed = []
        for reason, paths in reasons.items():
            alike = [f"{counted(len(paths), 'file')}: {reason}:", *(f"  {path}" for path in paths)]
            each = [f"{path}: {reason}" for path in paths]
            listed += alike if len(paths) > MOST_ALIKE else each
        remedy = "repair or remove them, or leave them out of a run with --skip-bad"
        what = f"{len(problems)} of {count} files cannot be used; {remedy}"
        if len(problems) == count:
            what = f"none of {counted(count, 'file')} can be used"
        raise InputError("\n  ".join([f"{what}:", *listed]))


def with_content(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo]) -> list[Clip]:
    """Return the clips that could be decoded, each with the digest of its content."""
    return [replace(c, content=infos[c.path].digest) for c in clips if c.path in infos]


def refuse_long(run: Run) -> None:
    """Refuse clips that there is no memory for, or that a backbone has no positions for.

    What is asked for is what a forward pass takes at most (`clip_bytes` of the encoders).
    """
    system = run.system
    encoders = [encoder for encoder in system.encoders if not encoder.one_length]
    whole = system.audio.seconds is None and system.train and system.train.heads
    together = system.train.batch if whole else 1  # rows of a training are as long as the longest

    both = FRAME_BYTES if system.audio.both else 0

    def needed(samples: int) -> float:
        of_encoders = sum(encoder.clip_bytes(samples) for encoder in encoders)
        return together * (of_encoders + both * samples)

    lengths = {path: padded_samples(info, system.audio) for path, info in run.infos.items()}
    free = FREE_SHARE * device_memory()
    long = {n for n in set(lengths.values()) if needed(n) > free}
    if not long:
        return
    seconds = range(1, max(long) // SAMPLE_RATE_HZ + 1)
    most = bisect_right(seconds, free, key=lambda n: needed(n * SAMPLE_RATE_HZ))
    listed = [f"{path}: {n / SAMPLE_RATE_HZ:g} s" for path, n in lengths.items() if n in long]
    raise InputError(
        f"{counted(len(listed), 'recording')} too long: with {free / 2**30:.1f} GiB of memory "
        f"this system can take {most} s of each; cut them, or take their first seconds with "
        "--audio.seconds\n  " + "\n  ".join(listed)
    )


def check_complete(run: Run, scored: bool) -> None:
    """Refuse machines without training clips, or without test clips where these are `scored`.

    Those with clips of one domain are noted.
    """
    problems = [] if run.clips else [f"{run.data}: no clip that can be used"]
    for (machine, section), clips in run.groups.items():
        domains = [clip.domain for clip in clips if clip.split == "train"]
        where = f"{machine}/{section} in {clips[0].path.parents[1]}"
        if not domains:
            problems.append(f"{where}: no training clip that can be used")
        if scored and len(domains) == len(clips):
            problems.append(f"{where}: no test clip that can be used")
        for domain in ("source", "target") if any(domains) else ():
            if domain not in domains:
                console.note(
                    f"{machine}/{section}: no {domain} clip among {len(domains)} training clips; "
                    "the other domain is the only reference"
                )
    if problems:
        raise InputError(
            "expected normal training clips and test clips of every machine and section; complete "
            "the data, or take the machine out of the folder:\n  " + "\n  ".join(problems)
        )


def channel(config: Audio, dataset: DataSet) -> int | str:
    """Return the channel asked for, else 0 of the challenge's files and the mean of others."""
    if config.channel is not None:
        return config.channel
    return 0 if is_challenge(dataset.clips, dataset.year) else "mean"


def shortest_samples(system: SystemConfig) -> int:
    """Return how many samples a file must have: all of `audio.seconds` when only cropping."""
    least = audio.TWO_SAMPLES if system.audio.both else audio.FRAME_SAMPLES
    if system.audio.fit == "crop" and system.audio.samples is not None:
        return system.audio.samples
    if system.audio.samples is not None:
        return least  # shorter clips become longer
    return max(least, *(encoder.shortest_samples for encoder in system.encoders))
