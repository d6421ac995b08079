"""What a user should know of recordings before they are used: formats, lengths, copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from asdjax.data.audio import AudioInfo, Channel, channels_of
from asdjax.data.batches import Audio
from asdjax.data.content import BAND_HZ
from asdjax.types import ANOMALY, NORMAL, SAMPLE_RATE_HZ, Clip, InputError, preview

FEW = 3  # names in a line


def formats(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo], channel: Channel) -> list[str]:
    """Return one line per machine and file format that reading changes, and per odd channel.

    Example: "3 of 120 clips of fan: 44100 Hz, 2 channels; resampled to 16000 Hz, mean of channels".
    """
    totals = Counter(clip.machine for clip in clips)
    known = [(clip.machine, infos[clip.path]) for clip in clips if clip.path in infos]
    found = Counter((machine, info.rate_hz, info.channels) for machine, info in known)
    lines = []
    for (machine, rate_hz, channels), count in sorted(found.items()):
        changes = [f"resampled to {SAMPLE_RATE_HZ} Hz"] if rate_hz != SAMPLE_RATE_HZ else []
        if channels > 1:
            changes.append("mean of channels" if channel == "mean" else f"channel {channel} taken")
        if changes:
            lines.append(
                f"{count} of {totals[machine]} clips of {machine}: {rate_hz} Hz, "
                f"{channels_of(channels)}; {', '.join(changes)}"
            )
    odd = Counter((machine, remark) for machine, info in known for remark in info.remarks)
    lines += [
        f"{count} of {totals[machine]} clips of {machine}: {remark}; choose with --audio.channel"
        for (machine, remark), count in sorted(odd.items())
    ]
    return lines


def lengths(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo], audio: Audio) -> list[str]:
    """Return one line per machine of which clips are made longer or shorter to `audio.seconds`.

    Example: "fan: of 120 clips, 3 repeated and 5 cut to 10 s".
    """
    if audio.seconds is None:
        return []
    longer = "repeated" if audio.fit == "tile" else "padded with zeros"
    totals = Counter(clip.machine for clip in clips)
    changed: dict[str, Counter] = defaultdict(Counter)
    for clip in clips:
        info = infos[clip.path]
        samples = -(-info.samples * SAMPLE_RATE_HZ // info.rate_hz)
        if samples != audio.samples:
            changed[clip.machine][longer if samples < audio.samples else "cut"] += 1
    lines = []
    for machine, counts in sorted(changed.items()):
        found = " and ".join(f"{counts[how]} {how}" for how in (longer, "cut") if counts[how])
        lines.append(f"{machine}: of {totals[machine]} clips, {found} to {audio.seconds:g} s")
    return lines


def unlike_training(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo]) -> dict[str, str]:
    """Return the path of each test clip -> its rate, sample type and bandwidth, where they are odd.

    Odd is what no training clip of its machine and section has. Such a clip was recorded or stored
    in another way, and its score may say more of that than of the machine.
    """
    by_group: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        by_group[clip.group].append(clip)
    found = {}
    for own in by_group.values():
        train = [infos[clip.path] for clip in own if clip.split == "train"]
        rates, types = {info.rate_hz for info in train}, {info.subtype for info in train}
        bands = {info.bandwidth_hz for info in train}
        for clip in own:
            info = infos[clip.path]
            near = any(abs(info.bandwidth_hz - band) <= BAND_HZ for band in bands)
            odd = [f"{info.rate_hz} Hz"] if info.rate_hz not in rates else []
            odd += [info.subtype] if info.subtype not in types else []
            odd += [] if near else [f"sound up to {info.bandwidth_hz} Hz"]
            if odd and clip.split == "test":
                found[str(clip.path)] = ", ".join(odd)
    return found


def once(clips: Sequence[Clip]) -> tuple[list[Clip], list[str]]:
    """Return the clips without copies among those of a machine that are trained on.

    A copy has equal samples, whatever the file is called: it would count twice in a reference set,
    and its score without itself would be 0. Of several, the one with attributes and the shortest
    name stays. Test clips all stay.

    Args:
      clips: with their content.

    Returns:
      The clips that stay; lines on all copies.

    Raises:
      InputError: equal recordings that are labelled normal and anomaly.
    """
    _refuse_two_labels(clips)
    order = sorted(clips, key=lambda clip: (not clip.attributes, len(clip.name), clip.name))
    trained = [clip for clip in order if clip.split != "test"]
    copies = _later(trained, lambda c: (c.group, c.split, c.supplement, c.content))
    lines = _lines(copies, "copies of others that are trained on, counted once")
    train = {(clip.group, clip.content): clip for clip in reversed(trained)}
    test = [clip for clip in order if clip.split == "test"]
    known = [(clip, train[key]) for clip in test if (key := (clip.group, clip.content)) in train]
    lines += _lines(known, "test clips that are training clips, too")
    lines += _lines(_later(test, lambda c: (c.group, c.content)), "copies of other test clips")
    elsewhere = _later(trained, lambda c: c.content)
    elsewhere = [(clip, other) for clip, other in elsewhere if clip.machine != other.machine]
    lines += _lines(elsewhere, "copies of clips of another machine")
    left_out = {clip.path for clip, _ in copies}
    return [clip for clip in clips if clip.path not in left_out], lines


def _refuse_two_labels(clips: Iterable[Clip]) -> None:
    by_content: dict[str, dict[int, Clip]] = defaultdict(dict)
    for clip in clips:
        if clip.label is not None:
            by_content[clip.content][clip.label] = clip
    wrong = [own for own in by_content.values() if {NORMAL, ANOMALY} <= own.keys()]
    if wrong:
        listed = [f"{own[NORMAL].path} and {own[ANOMALY].path}" for own in wrong]
        raise InputError(
            f"{len(wrong)} recordings are there as normal and, equal in every sample, as anomaly; "
            "remove one of each, or correct its label:\n  " + "\n  ".join(listed)
        )


def _later(clips: Sequence[Clip], key: Callable[[Clip], Hashable]) -> list[tuple[Clip, Clip]]:
    """Return each clip whose key an earlier one has, with the first that has it."""
    first: dict[Hashable, Clip] = {}
    pairs = [(clip, first.setdefault(key(clip), clip)) for clip in clips]
    return [(clip, other) for clip, other in pairs if clip is not other]


def _lines(pairs: Sequence[tuple[Clip, Clip]], what: str) -> list[str]:
    """Return a line for each machine."""
    by_machine: dict[str, list[str]] = defaultdict(list)
    for clip, other in pairs:
        by_machine[clip.machine].append(f"{clip.name} = {other.name}")
    return [
        f"{machine}: {len(names)} {what}: {preview(names, FEW)}"
        for machine, names in sorted(by_machine.items())
    ]
