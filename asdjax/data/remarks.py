"""What a user should know of recordings before they are used: formats, lengths, copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asdjax.data.audio import AudioInfo, Channel
from asdjax.data.batches import Audio
from asdjax.data.content import BAND_HZ, FAR_LOUDER
from asdjax.types import ANOMALY, BOTH, NORMAL, SAMPLE_RATE_HZ, Clip, InputError, counted, preview

FEW = 3  # names in a line
SWAPPED = 0.8  # of the clips of a machine, with the far microphone louder, to be told
LEVEL_DB = 20  # what a test clip is quieter or louder by, to be told: a factor of 10


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
            taken = "channels 0 and 1 taken" if channel in BOTH else f"channel {channel} taken"
            changes.append("mean of channels" if channel == "mean" else taken)
        if changes:
            lines.append(
                f"{count} of {counted(totals[machine], 'clip')} of {machine}: {rate_hz} Hz, "
                f"{counted(channels, 'channel')}; {', '.join(changes)}"
            )
    odd: dict[tuple[str, str], list[str]] = defaultdict(list)
    for clip in clips:
        for remark in infos[clip.path].remarks if clip.path in infos else ():
            odd[clip.machine, remark].append(clip.name)
    for (machine, remark), names in sorted(odd.items()):
        remedy = "; choose with --audio.channel" if remark.startswith("channel") else ""
        if remark == FAR_LOUDER:  # some clips of a quiet machine always are
            if len(names) < SWAPPED * totals[machine]:
                continue
            remedy = " (swapped?); near has to be channel 0: export the files with that order"
        lines.append(
            f"{len(names)} of {counted(totals[machine], 'clip')} of {machine}: {remark}{remedy}: "
            f"{preview(names, FEW)}"
        )
    return lines


def lengths(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo], audio: Audio) -> list[str]:
    """Return one line per machine of which clips are made longer or shorter to `audio.seconds`.

    Example: "fan: of 120 clips, 3 repeated and 5 cut to 10 s (--audio.seconds)".
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
        lines.append(
            f"{machine}: of {counted(totals[machine], 'clip')}, {found} to {audio.seconds:g} s "
            "(--audio.seconds)"
        )
    return lines


def unlike_training(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo]) -> dict[str, str]:
    """Return the path of each test clip -> what is odd of it, if anything is.

    Odd is a rate, a sample type, a bandwidth, a level, a length or a remark that no training clip
    of its machine and section has. Such a clip was recorded or stored in another way, and its score
    may say more of that than of the machine.
    """
    by_group: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        by_group[clip.group].append(clip)
    found = {}
    for own in by_group.values():
        train = [infos[clip.path] for clip in own if clip.split == "train"]
        if not train:
            continue
        rates, types = {info.rate_hz for info in train}, {info.subtype for info in train}
        bands = {info.bandwidth_hz for info in train}
        levels, seconds = [info.level_db for info in train], [info.seconds for info in train]
        quiet, loud = min(levels) - LEVEL_DB, max(levels) + LEVEL_DB
        remarks = {remark for info in train for remark in info.remarks}
        for clip in own:
            info = infos[clip.path]
            near = any(abs(info.bandwidth_hz - band) <= BAND_HZ for band in bands)
            odd = [f"{info.rate_hz} Hz"] if info.rate_hz not in rates else []
            odd += [info.subtype] if info.subtype not in types else []
            odd += [] if near else [f"sound up to {info.bandwidth_hz} Hz"]
            odd += [f"more than {LEVEL_DB} dB quieter"] if info.level_db < quiet else []
            odd += [f"more than {LEVEL_DB} dB louder"] if info.level_db > loud else []
            odd += ["less than half as long"] if 2 * info.seconds < min(seconds) else []
            odd += ["more than twice as long"] if info.seconds > 2 * max(seconds) else []
            odd += [remark for remark in info.remarks if remark not in remarks]
            if odd and clip.split == "test":
                found[str(clip.path)] = ", ".join(odd)
    return found


def unlike_lines(clips: Sequence[Clip], unlike: Mapping[str, str]) -> list[str]:
    """Return a line for each machine and oddity of `unlike_training`."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for clip in clips:
        if how := unlike.get(str(clip.path)):
            found[clip.machine, how].append(clip.name)
    return [
        f"{counted(len(names), 'test clip')} of {machine}: {how}; no training clip is like that: "
        f"{preview(names, FEW)}"
        for (machine, how), names in sorted(found.items())
    ]


def once(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo]) -> tuple[list[Clip], list[str]]:
    """Return the clips without copies among those of a machine that are trained on.

    A copy has equal samples, whatever file and sample type they lie in: it would count twice in a
    reference set, and its score without itself would be 0. Of several, the one with the shortest
    name stays, with what is known of any of them. Test clips all stay.

    Returns:
      The clips that stay; lines on all copies.

    Raises:
      InputError: equal recordings of which two labels, domains or attributes are told.
    """

    def key(clip: Clip) -> tuple:
        return clip.group, clip.split, clip.supplement, infos[clip.path].sound

    order = sorted(clips, key=lambda clip: (len(clip.name), clip.name))
    trained = [clip for clip in order if clip.split != "test"]
    test = [clip for clip in order if clip.split == "test"]
    copies = _later(trained, key)
    _refuse_contradictions(order, infos, copies)
    lines = _lines(copies, "copy", "of others that are trained on, counted once")
    train = {(clip.group, infos[clip.path].sound): clip for clip in reversed(trained)}
    both = [(clip.group, infos[clip.path].sound) for clip in test]
    known = [(clip, train[place]) for clip, place in zip(test, both, strict=True) if place in train]
    lines += _lines(known, "test clip", "found in training, too")
    lines += _lines(_later(test, key), "copy", "of other test clips, all scored and counted")
    elsewhere = _later(trained, lambda clip: infos[clip.path].sound)
    elsewhere = [(clip, other) for clip, other in elsewhere if clip.machine != other.machine]
    lines += _lines(elsewhere, "copy", "of clips of another machine")
    left_out = {clip.path for clip, _ in copies}
    domain = {first.path: clip.domain for clip, first in copies if clip.domain}
    attributes = {first.path: clip.attributes for clip, first in copies if clip.attributes}
    kept = [
        replace(
            clip,
            domain=clip.domain or domain.get(clip.path),
            attributes=clip.attributes or attributes.get(clip.path, ""),
        )
        for clip in clips
        if clip.path not in left_out
    ]
    return kept, lines


def _refuse_contradictions(
    clips: Iterable[Clip], infos: Mapping[Path, AudioInfo], copies: Sequence[tuple[Clip, Clip]]
) -> None:
    labelled: dict[str, dict[int, Clip]] = defaultdict(dict)
    for clip in clips:
        if clip.label is not None:
            labelled[infos[clip.path].sound][clip.label] = clip
    wrong = [
        f"{own[NORMAL].path} is normal, {own[ANOMALY].path} an anomaly"
        for own in labelled.values()
        if {NORMAL, ANOMALY} <= own.keys()
    ]
    for clip, first in copies:
        for what in ("domain", "attributes"):
            told = getattr(first, what), getattr(clip, what)
            if all(told) and told[0] != told[1]:
                wrong.append(f"{first.path} has the {what} {told[0]}, {clip.path} {told[1]}")
    if wrong:
        raise InputError(
            "expected one description of recordings that are equal in every sample, got "
            f"{counted(len(wrong), 'pair')} with two; remove one of each, or correct what is said "
            "of it:\n  " + "\n  ".join(wrong)
        )


def _later(clips: Sequence[Clip], key: Callable[[Clip], Hashable]) -> list[tuple[Clip, Clip]]:
    """Return each clip whose key an earlier one has, with the first that has it."""
    first: dict[Hashable, Clip] = {}
    pairs = [(clip, first.setdefault(key(clip), clip)) for clip in clips]
    return [(clip, other) for clip, other in pairs if clip is not other]


def _lines(pairs: Sequence[tuple[Clip, Clip]], noun: str, what: str) -> list[str]:
    """Return a line for each machine."""
    by_machine: dict[str, list[str]] = defaultdict(list)
    for clip, other in pairs:
        by_machine[clip.machine].append(f"{clip.name} = {other.name}")
    return [
        f"{machine}: {counted(len(names), noun)} {what}: {preview(names, FEW)}"
        for machine, names in sorted(by_machine.items())
    ]
