"""What a data set holds, one row per machine and section, for a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asdjax.data.decode import AudioInfo
from asdjax.types import Clip, DataSet, Domain


@dataclass(frozen=True)
class Summary:
    """One machine and section. Counts keep None for clips whose domain or label is unknown."""

    machine: str
    section: str
    train: Counter[Domain | None]  # clips per domain
    test: Counter[Domain | None]  # clips per domain
    labels: Counter[int | None]  # test clips per label
    supplemental: int
    attributes: int  # distinct attribute strings
    seconds: tuple[float, float] | None  # shortest and longest clip; None: no header known
    rates_hz: tuple[int, ...]
    channels: tuple[int, ...]


def summarize(dataset: DataSet, infos: Mapping[Path, AudioInfo]) -> list[Summary]:
    """Return one row per machine and section; `infos` may lack files (broken ones)."""
    groups: dict[tuple[str, str], list[Clip]] = {}
    for clip in dataset.clips:
        groups.setdefault(clip.group, []).append(clip)
    return [_summarize(clips, infos) for _, clips in sorted(groups.items())]


def _summarize(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo]) -> Summary:
    """Return the row of clips of one group."""
    known = [infos[clip.path] for clip in clips if clip.path in infos]
    seconds = [info.seconds for info in known]
    test = [clip for clip in clips if clip.split == "test"]
    return Summary(
        machine=clips[0].machine,
        section=clips[0].section,
        train=Counter(clip.domain for clip in clips if clip.split == "train"),
        test=Counter(clip.domain for clip in test),
        labels=Counter(clip.label for clip in test),
        supplemental=sum(clip.split == "supplemental" for clip in clips),
        attributes=len({clip.attributes for clip in clips} - {""}),
        seconds=(min(seconds), max(seconds)) if seconds else None,
        rates_hz=tuple(sorted({info.rate_hz for info in known})),
        channels=tuple(sorted({info.channels for info in known})),
    )
