"""A detector: all that it takes to score new recordings of some machines, in one file.

The file is safetensors with a header and holds no code: the system as plain values, its trained
weights, of a pretrained backbone name and SHA-256, the embeddings of the normal clips, and for each
machine its rule of alarms and the formats of its recordings.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax.config import SystemConfig, from_json, to_json
from asdjax.data import audio, layout, remarks
from asdjax.data.audio import AudioInfo
from asdjax.data.batches import BUCKET_SAMPLES
from asdjax.data.content import LOUDEST, to_float
from asdjax.detector.alarms import Checked, Confirm, Healthy, Level, Rule
from asdjax.devices import data_mesh
from asdjax.models import checkpoints, weights_file
from asdjax.models.weights_file import Header, Params
from asdjax.scoring.folds import unit
from asdjax.scoring.score import refuse_not_finite
from asdjax.stages import embed as embedding
from asdjax.stages.recordings import refuse_broken, shortest_samples, with_content
from asdjax.types import SAMPLE_RATE_HZ, Clip, Embeddings, InputError, preview
from asdjax.version import __version__

FORMAT = 1  # of the file
KIND = "detector"
OF_A_MACHINE = "normal", "healthy", "blocks"  # arrays of the file
Group = tuple[str, str]  # machine and section


@dataclass(frozen=True)
class Machine:
    """What a detector knows of one machine.

    Args:
      normal: the embeddings of its normal clips, which others are compared with.
      healthy: the scores that the rule is from; None without a rule.
      rule: when it raises an alarm; None: too few clips to say.
      heard: formats, levels and lengths of its recordings; empty where they are not known.
      dates: of the normal clips, YYYY-MM-DD, when they were recorded.
      seconds: the usual length of a clip.
      every: seconds from the beginning of one to that of the next.
    """

    normal: Embeddings
    healthy: Healthy | None
    rule: Rule | None
    heard: tuple[AudioInfo, ...]
    dates: tuple[str, ...]
    seconds: float
    every: float

    @cached_property
    def unit(self) -> np.ndarray:
        return unit(self.normal.values)

    @property
    def group(self) -> Group:
        return self.normal.clips[0].group

    @property
    def name(self) -> str:
        machine, section = self.group
        return machine if section == layout.SECTION else f"{machine}/{section}"

    def verdict(self, clip: Clip, score: float, nearest: int) -> Verdict:
        """Return what a score means; `nearest` is the most similar normal clip."""
        like = self.normal.clips[nearest]
        condition = condition_of(like)
        if self.rule is None:
            return Verdict(_file(clip), self.name, score, None, "", like.name)
        condition = condition if condition in self.rule.levels else ""
        limit = self.rule.threshold(condition)
        return Verdict(_file(clip), self.name, score, limit, condition, like.name)


@dataclass(frozen=True)
class Verdict:
    """What a detector says of one clip.

    Args:
      file: its path; "" of an array.
      machine: the machine it is compared with.
      score: larger = more anomalous.
      threshold: above it, a clip speaks for an alarm; None: the machine has no rule.
      condition: the operating condition of the most similar normal clip, where it counts.
      nearest: the name of that clip.
    """

    file: str
    machine: str
    score: float
    threshold: float | None
    condition: str
    nearest: str

    @property
    def above(self) -> bool | None:
        """Return whether the score is above the threshold."""
        return None if self.threshold is None else self.score > self.threshold


class Judged(NamedTuple):
    """Verdicts on files, what is wrong with those left out, and lines for the user."""

    clips: list[Clip]
    values: np.ndarray  # [n, E], their embeddings
    verdicts: list[Verdict]
    broken: dict[Path, str]
    lines: list[str]


@dataclass(frozen=True)
class Detector:
    """A system fitted to the normal sound of one or more machines.

    Args:
      system: the system, with its channel and types of products decided.
      weights: SHA-256 of the weights of each encoder, "" without.
      trained: the weights that were trained, by name; empty for a frozen system.
      machines: what is known of each.
    """

    system: SystemConfig
    weights: tuple[str, ...]
    trained: Params = field(repr=False)
    machines: tuple[Machine, ...] = field(repr=False)

    @classmethod
    def fit(cls, sources, recipe: str = "beyond/logmel", **options) -> Detector:
        """Fit a detector to recordings of healthy machines.

        Args:
          sources: a folder or files, as `asdjax.data.healthy.gather` takes them.
          recipe: the name of a system, or a `SystemConfig`.
          options: as of `asdjax.detector.fitting.fit`.

        Raises:
          InputError: recordings that cannot be used, an unknown recipe, no weights.
        """
        from asdjax.detector.fitting import fit

        return fit(sources, recipe, **options)

    def score(self, sounds, machine: str = "", rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
        """Return the anomaly scores `[n]` float32 of sounds, larger = more anomalous.

        Args:
          sounds: paths of recordings, or arrays `[N]` (of two microphones `[N, 2]`) of full scale 1
            or int16; one or several.
          machine: its name, where the detector knows several and no folder of a path says it.
          rate_hz: of arrays.

        Raises:
          InputError: files that cannot be used, all of them; a machine that is not known.
        """
        return np.array([one.score for one in self.judge(sounds, machine, rate_hz)], np.float32)

    def judge(self, sounds, machine: str = "", rate_hz: int = SAMPLE_RATE_HZ) -> list[Verdict]:
        """Return a verdict on each sound; arguments and errors as of `score`."""
        if isinstance(sounds, str | Path | np.ndarray):
            sounds = [sounds]
        sounds = list(sounds)
        if not sounds:
            return []
        files = [Path(one) for one in sounds if isinstance(one, str | Path)]
        if files and len(files) < len(sounds):
            raise InputError("expected files or arrays, got both; score them one after the other")
        if files:
            return self.judge_files(files, machine).verdicts
        waves = [self._wave(np.asarray(one), rate_hz) for one in sounds]
        group = self.named(machine).group
        return self.judge_waves(waves, [group] * len(waves))

    def judge_waves(self, waves: Sequence[np.ndarray], groups: Sequence[Group]) -> list[Verdict]:
        """Return verdicts on waves `[N]` or `[N, 2]` at 16 kHz, each of a machine and section."""
        clips = [Clip(Path(), *group, "test") for group in groups]
        parts = []
        for rows in self._alike(groups):
            batches = self._of_waves([waves[row] for row in rows])
            parts.append((rows, self._embed(groups[rows[0]], batches)))
        return self._verdicts(clips, embedding.in_order(parts))

    def judge_files(
        self,
        paths: Sequence[Path],
        machine: str = "",
        skip_bad: bool = False,
        advance: Callable[[int], object] | None = None,
    ) -> Judged:
        """Return verdicts on files, in their order.

        Args:
          paths: wav or FLAC recordings.
          machine: as of `score`.
          skip_bad: leave broken files out.
          advance: called with the number of files that a batch embedded.

        Raises:
          InputError: files that cannot be used, all of them; files of no known machine.
        """
        groups = dict(zip(paths, self._groups(paths, machine), strict=True))
        channel = self.system.audio.channel
        infos, broken = audio.verify(list(groups), channel, self.shortest)
        if not (skip_bad and infos):
            refuse_broken(broken, len(groups))
        clips = [Clip(path, *groups[path], "test") for path in paths if path in infos]
        clips = with_content(clips, infos)
        parts = []
        for rows in self._alike([clip.group for clip in clips]):
            own = [clips[i] for i in rows]
            batches = self._of_files(own, [infos[clip.path] for clip in own])
            parts.append((rows, self._embed(own[0].group, batches, advance)))
        values = embedding.in_order(parts)
        verdicts = self._verdicts(clips, values)
        return Judged(clips, values, verdicts, broken, self._remarks(clips, infos))

    def _remarks(self, clips: Sequence[Clip], infos: Mapping[Path, AudioInfo]) -> list[str]:
        """Return lines on files that reading changes, or that are unlike the normal clips."""
        normal, of_normal = [], {}
        for one in self.machines:
            for i, info in enumerate(one.heard):
                path = Path(f"{one.name} {i}")
                normal.append(Clip(path, *one.group, "train"))
                of_normal[path] = info
        unlike = remarks.unlike_training([*normal, *clips], infos | of_normal)
        formats = remarks.formats(clips, infos, self.system.audio.channel)
        return [*formats, *remarks.unlike_lines(clips, unlike)]

    def machine(self, name: str) -> Machine:
        """Return a machine by name; InputError if there is none."""
        for one in self.machines:
            if name in (one.name, "/".join(one.group)):
                return one
        raise InputError(
            f"expected a machine of {preview([m.name for m in self.machines])}, got {name!r}"
        )

    # --- the file

    def save(self, path: Path | str) -> None:
        """Write the detector as one file, complete or not at all."""
        import jax

        config = {
            "format": FORMAT,
            "asdjax": __version__,
            "jax": jax.__version__,
            "system": to_json(self.system),
            "weights": self.weights,
            "machines": [_described(machine) for machine in self.machines],
        }
        banks = {f"normal.{i}": one.normal.values for i, one in enumerate(self.machines)}
        for i, one in enumerate(self.machines):
            if one.healthy is not None:
                banks[f"healthy.{i}"] = np.asarray(one.healthy.scores, np.float32)
                banks[f"blocks.{i}"] = np.asarray(one.healthy.blocks, np.int32)
        trained = {f"trained.{name}": value for name, value in self.trained.items()}
        weights_file.save(path, {**banks, **trained}, Header(KIND, config))

    @classmethod
    def load(cls, path: Path | str) -> Detector:
        """Read a file of `save`.

        Raises:
          InputError: no such file, another kind of file, one of a newer version, damaged.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; expected a detector of `asdjax fit`")
        arrays, header, _ = weights_file.load(path, REMEDY)
        if header.kind != KIND:
            raise InputError(f"{path}: expected a detector, got weights of {header.kind}; {REMEDY}")
        config = header.config
        if config["format"] > FORMAT:
            raise InputError(
                f"{path}: a detector of asdjax {config['asdjax']}, which is newer than this one, "
                f"{__version__}; update asdjax"
            )
        try:
            machines = tuple(
                _machine(one, *(arrays.get(f"{name}.{i}") for name in OF_A_MACHINE))
                for i, one in enumerate(config["machines"])
            )
            system = from_json(config["system"])
            trained = {
                name.removeprefix("trained."): value
                for name, value in arrays.items()
                if name.startswith("trained.")
            }
            return cls(system, tuple(config["weights"]), trained, machines)
        except InputError as error:  # such as a part of a newer system
            raise InputError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: a damaged header ({error!r}); {REMEDY}") from error

    # --- from sound to scores

    @cached_property
    def shortest(self) -> int:
        """Return the samples at 16 kHz that a recording must have."""
        return shortest_samples(self.system)

    @cached_property
    def _embedder(self):
        for encoder, sha256 in zip(self.system.encoders, self.weights, strict=True):
            path = checkpoints.find(encoder.weights) if sha256 else None
            if path and (got := weights_file.open_weights(path).sha256) != sha256:
                raise InputError(
                    f"{encoder.weights}: expected the weights that the detector was fitted with "
                    f"(SHA-256 {sha256[:12]}...), got others ({got[:12]}...)"
                )
        return embedding.embedder_of(self.system, self.trained)

    def _alike(self, groups: Sequence[Group]) -> list[np.ndarray]:
        """Return rows that the same weights embed: all together, but for autoencoders."""
        params, together = self._embedder.params, {}
        for row, group in enumerate(groups):
            alike = self._embedder.select(params, group) is params
            together.setdefault(None if alike else group, []).append(row)
        return [np.array(rows) for rows in together.values()]

    @cached_property
    def _scored(self) -> Callable:
        normal = [one.normal for one in self.machines]
        return self.system.scorer.fit(normal, lambda line: None)[0]

    @cached_property
    def _compute(self):
        return embedding.make_compute(self._embedder, self.system)

    def _embed(self, group: Group, batches: Iterable[tuple], advance=None) -> np.ndarray:
        """Return embeddings `[n, E]` of sounds of one machine, from batches of `make_compute`."""
        found: list[tuple[np.ndarray, np.ndarray]] = []

        def put(rows: np.ndarray, vectors: np.ndarray) -> None:
            found.append((rows, vectors))
            if advance is not None:
                advance(len(rows))

        self._compute(group, batches, put)
        return embedding.in_order(found)

    def _of_files(self, clips: Sequence[Clip], infos: Sequence[AudioInfo]) -> Iterator[tuple]:
        return embedding.file_batches(self.system, clips, infos, self._batch(len(clips)))

    def _of_waves(self, waves: Sequence[np.ndarray]) -> Iterator[tuple]:
        """Yield batches of waves `[N]` or `[N, 2]` at 16 kHz."""
        config = self.system.audio
        rows_of: dict[tuple, list[int]] = {}
        for row, wave in enumerate(waves):
            length = config.samples or -(-len(wave) // BUCKET_SAMPLES) * BUCKET_SAMPLES
            rows_of.setdefault((length, wave.dtype), []).append(row)
        for (length, _), every in rows_of.items():
            size = self._batch(len(every))
            for start in range(0, len(every), size):
                rows = every[start : start + size]
                fitted = [audio.fit_length(waves[i], length, config.fit) for i in rows]
                lengths = [min(len(waves[i]), length) for i in rows]
                masked = config.fit != "tile" and min(lengths) < length
                missing = size - len(rows)
                wave = np.stack([*fitted, *[np.zeros_like(fitted[0])] * missing])
                lengths = np.array([*lengths, *[length] * missing], np.int32)
                yield np.array(rows), wave, lengths if masked else None

    def _batch(self, count: int) -> int:
        """Return the clips of a batch: few sizes, so that few programs are compiled."""
        devices = data_mesh().size
        size = min(1 << (count - 1).bit_length(), self.system.batch)
        return -(-size // devices) * devices

    def _wave(self, sound: np.ndarray, rate_hz: int) -> np.ndarray:
        """Return what the system uses of an array, at 16 kHz; refuse what is no sound."""
        if sound.ndim not in (1, 2) or (sound.dtype != np.int16 and sound.dtype.kind != "f"):
            raise InputError(
                f"expected sound [N] or [N, channels], int16 or float of full scale 1, got "
                f"{sound.dtype} {list(sound.shape)}"
            )
        wave = audio.take(sound if sound.ndim == 2 else sound[:, None], self.system.audio.channel)
        if rate_hz != SAMPLE_RATE_HZ:
            import soxr

            wave = soxr.resample(to_float(wave), rate_hz, SAMPLE_RATE_HZ, quality="HQ")
        wave = wave if wave.dtype == np.int16 else wave.astype(np.float32)
        if len(wave) < self.shortest:
            raise InputError(
                f"expected at least {self.shortest / SAMPLE_RATE_HZ:g} s of sound, got "
                f"{len(wave) / SAMPLE_RATE_HZ:g} s"
            )
        loudest = np.abs(to_float(wave)).max()
        if not loudest <= LOUDEST or np.ptp(wave) == 0:  # also where it is not a number
            what = "a constant" if np.ptp(wave) == 0 else f"samples up to {loudest:.4g}"
            raise InputError(f"expected sound of full scale 1, got {what}")
        return wave

    def _verdicts(self, clips: Sequence[Clip], values: np.ndarray) -> list[Verdict]:
        """Return verdicts on clips by their embeddings `[n, E]`."""
        rows = [
            np.array([i for i, clip in enumerate(clips) if clip.group == one.group], int)
            for one in self.machines
        ]
        test = [Embeddings(tuple(clips[i] for i in own), values[own]) for own in rows]
        refuse_not_finite([], [one for one in test if one.clips])
        scores = self._scored(test)
        verdicts: dict[int, Verdict] = {}
        for one, own, found in zip(self.machines, rows, scores, strict=True):
            if not len(own):
                continue
            nearest = (unit(values[own]) @ one.unit.T).argmax(1)
            for row, score, near in zip(own, found, nearest, strict=True):
                verdicts[row] = one.verdict(clips[row], float(score), int(near))
        return [verdicts[row] for row in range(len(clips))]

    # --- whose sound it is

    def named(self, machine: str) -> Machine:
        """Return a machine by name, which one alone need not be asked for."""
        if machine or len(self.machines) > 1:
            return self.machine(machine)
        return self.machines[0]

    def _groups(self, paths: Sequence[Path], machine: str) -> list[Group]:
        """Return whose recordings files are: of the machine given, or by the names of folders."""
        if machine or len(self.machines) == 1:
            return [self.named(machine).group] * len(paths)
        found = [self.group_of(path) for path in paths]
        if unknown := [path for path, group in zip(paths, found, strict=True) if group is None]:
            raise InputError(
                f"expected files in a folder called as their machine "
                f"({preview([m.name for m in self.machines])}), got {preview(unknown, 10)}; or "
                "give --machine"
            )
        return found

    def group_of(self, path: Path) -> Group | None:
        """Return whose recording a file is, by the names of the folders that it is in."""
        name = layout.parse(path.stem)
        section = name.section if name else layout.SECTION
        for folder in reversed(path.absolute().parts[:-1]):
            for one in self.machines:
                if one.group == (folder, section):
                    return one.group
        return None


REMEDY = "fit the detector again with `asdjax fit`, or copy the file again"


def condition_of(clip: Clip) -> str:
    """Return the operating condition of a clip: its domain and attributes."""
    return " ".join(filter(None, (clip.domain, clip.attributes)))


def date_of(path: Path) -> str:
    """Return the day a file was changed, YYYY-MM-DD (UTC); today where it is gone."""
    seconds = path.stat().st_mtime if path.exists() else time.time()
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def heard(infos: Sequence[AudioInfo]) -> tuple[AudioInfo, ...]:
    """Return what stands for the recordings of a machine: of each format those at the ends."""
    formats: dict[tuple, list[AudioInfo]] = {}
    for info in infos:
        own = (info.rate_hz, info.channels, info.subtype, info.bandwidth_hz, info.remarks)
        formats.setdefault(own, []).append(info)
    ends = []
    for some in formats.values():
        for end in (min, max):
            level = end(info.level_db for info in some)
            ends.append(
                replace(end(some, key=lambda i: i.seconds), level_db=level, digest="", sound="")
            )
    return tuple(dict.fromkeys(ends))


def _file(clip: Clip) -> str:
    return "" if clip.path == Path() else str(clip.path)


def _described(machine: Machine) -> dict:
    clips = [[c.name, c.domain, c.attributes, c.content] for c in machine.normal.clips]
    rule = None
    if machine.rule is not None:
        rule = vars(machine.rule) | {"confirm": to_json(machine.rule.confirm)}
    return {
        "group": machine.group,
        "clips": clips,
        "rule": rule,
        "conditions": machine.healthy.conditions if machine.healthy else (),
        "heard": [dataclasses.asdict(info) for info in machine.heard],
        "dates": machine.dates,
        "seconds": machine.seconds,
        "every": machine.every,
    }


def _machine(described: Mapping, values: np.ndarray, scores, blocks) -> Machine:
    group = tuple(described["group"])
    clips = tuple(
        Clip(Path(name), *group, "train", domain, 0, attributes, content=content)
        for name, domain, attributes, content in described["clips"]
    )
    if len(clips) != len(values):
        raise ValueError(f"{len(values)} embeddings of {len(clips)} clips")
    rule, healthy = described["rule"], None
    if rule is not None:
        healthy = Healthy(scores, tuple(described["conditions"]), blocks)
        rule = Rule(
            **{
                **rule,
                "confirm": from_json(rule["confirm"], Confirm),
                "levels": {name: Level(*level) for name, level in rule["levels"].items()},
                "checked": rule["checked"] and Checked(*rule["checked"]),
            }
        )
    known = [
        AudioInfo(**{**info, "remarks": tuple(info["remarks"])}) for info in described["heard"]
    ]
    times = described["seconds"], described["every"]
    dates = tuple(described["dates"])
    return Machine(Embeddings(clips, values), healthy, rule, tuple(known), dates, *times)
