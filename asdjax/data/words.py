"""The label that the name of a user's own recording gives.

Words are letters between anything else, in capitals or not: `Pump-normal 03`, `ABNORMAL12`. A name
says normal with the word `normal`, anomaly with `anomaly`, `anomalous` or `abnormal`. It gives no
label where that is not certain:

    normal_or_anomaly_3             words of both
    no_anomaly_3, anomaly_free_3    a word that turns the other round, or speaks of a time around it
    anomaly_0, 0_normal             0 right beside the word, which may mean "no"; it counts when a
                                    name that is alike has 2 there, or the other label
    fault_at_normal_load_3          a fault beside `normal`
    normal_speed_rubbing_3          two words in a row behind `normal`, which may describe them,
                                    unless a name that is alike has an anomaly's word there

Names are alike when they differ in numbers and in the words above alone.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from asdjax.types import ANOMALY, NORMAL

WORDS = {"normal": NORMAL, "anomaly": ANOMALY, "anomalous": ANOMALY, "abnormal": ANOMALY}
_ANOMALIES = {word for word, label in WORDS.items() if label == ANOMALY}
_TURNS = {  # the label round, or speak of a time around an anomaly
    *("no", "not", "non", "un", "ab", "sub", "none", "nor", "never", "zero", "false", "without"),
    *("free", "less", "off", "ok", "absent", "cleared", "isn", "kein", "keine", "nicht", "ohne"),
    *("above", "below", "than", "almost", "nearly", "near", "like", "pas", "sans", "sin"),
    *("pre", "before", "until", "post", "after", "repair", "repaired", "fixed", "removed"),
}
_FAULTS = (  # beginnings of words
    *("bad", "bent", "block", "broke", "clog", "crack", "damage", "defect", "dirt", "error"),
    *("fail", "fault", "grind", "imbalance", "knock", "leak", "loose", "misalign", "rattl"),
    *("rub", "scratch", "squeal", "stuck", "unbalance", "wear", "worn"),
)


def labels(stems: Iterable[str]) -> dict[str, int | None]:
    """Return the label of each name without suffix, None where it gives none."""
    tokens = {stem: _tokens(stem) for stem in stems}
    seen = defaultdict(set)  # pattern -> words, and numbers right behind them, of names alike
    for some in tokens.values():
        seen[_pattern(some)].update(WORDS.keys() & some, _numbers(some))
    return {stem: _label(some, seen[_pattern(some)]) for stem, some in tokens.items()}


def _tokens(stem: str) -> list[str]:
    """Return words and numbers in their order."""
    return re.findall(r"[^\W\d_]+|\d+", unicodedata.normalize("NFC", stem).lower())


def _label(tokens: Sequence[str], seen: set[str]) -> int | None:
    found = {WORDS[token] for token in tokens if token in WORDS}
    both = "normal" in seen and not _ANOMALIES.isdisjoint(seen)
    flag = "0" in _numbers(tokens) and "2" not in seen and not both
    if len(found) != 1 or flag or not _TURNS.isdisjoint(tokens):
        return None
    (label,) = found
    return None if label == NORMAL and _describes(tokens, seen) else label


def _describes(tokens: Sequence[str], seen: set[str]) -> bool:
    """Return whether `normal` may describe another word of the name."""
    behind = tokens[tokens.index("normal") + 1 :]
    words = [len(token) > 1 and token.isalpha() for token in behind]  # no letter that counts
    phrase = (True, True) in itertools.pairwise(words) and seen.isdisjoint(_ANOMALIES)
    return phrase or any(token.startswith(_FAULTS) for token in tokens)


def beside(labels: Mapping[str, int | None]) -> list[str]:
    """Return the words beside the label that names of one label have alone, e.g. "dc (normal)".

    They are taken as no part of the label.
    """
    words: dict[int, set[str]] = {NORMAL: set(), ANOMALY: set()}
    for stem, label in labels.items():
        if label is not None:
            own = {t for t in _tokens(stem) if len(t) > 1 and t.isalpha() and t not in WORDS}
            words[label] |= own
    normal, anomaly = words[NORMAL], words[ANOMALY]
    return [f"{word} (normal)" for word in sorted(normal - anomaly)] + [
        f"{word} (anomaly)" for word in sorted(anomaly - normal)
    ]


def _numbers(tokens: Sequence[str]) -> set[str]:
    """Return the numbers right beside the word."""
    pairs = [*itertools.pairwise(tokens), *itertools.pairwise(tokens[::-1])]
    return {second for first, second in pairs if first in WORDS and second.isdigit()}


def _pattern(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return what names that are alike have in common."""
    return tuple("0" if t.isdigit() else "label" if t in WORDS else t for t in tokens)
