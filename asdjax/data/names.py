"""The file-name grammar of DCASE Task 2, 2020-2026: what a name says of its clip.

The counter in a name is nothing but a counter: it starts at 0 or 1 and has gaps. The attribute
string is one label and is never split, because parameter names contain `_` and values none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from asdjax.types import ANOMALY, NORMAL, Domain

AUDIO_SUFFIXES = (".wav", ".flac")
LABELS = {"normal": NORMAL, "anomaly": ANOMALY}

_SECTION = re.compile(  # 2021-2026; `train|test` is missing in full names of RoboticArm 2024
    r"(?P<section>section_\d\d)_"
    r"(?:(?P<domain>source|target)_(?:(?P<split>train|test)_)?(?:(?P<label>normal|anomaly)_)?)?"
    r"\d{4}(?:_(?P<attributes>.*))?"
)
_MACHINE_ID = re.compile(r"(?:(?P<label>normal|anomaly)_)?(?P<section>id_\d\d)_\d{8}")  # 2020
_SUPPLEMENTAL = re.compile(r"(?P<section>section_\d\d)_(?P<kind>\D*)_\d+_?(?P<attributes>.*)")


@dataclass(frozen=True)
class Name:
    """What a file name says; None or "" where it is silent."""

    section: str  # "section_00", or "id_01" in 2020
    domain: Domain | None = None
    split: Literal["train", "test"] | None = None
    label: int | None = None
    attributes: str = ""
    supplement: Literal["clean", "noise", "unknown"] | None = None


def stem(file_name: str) -> str:
    """Return the name without directory and audio suffix; a dot inside (`volt_1.5`) stays."""
    name = file_name.replace("\\", "/").rpartition("/")[2]
    for suffix in AUDIO_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def parse(stem: str) -> Name | None:
    """Return what the stem of a train or test clip says, None when it is not a DCASE name."""
    match = _SECTION.fullmatch(stem) or _MACHINE_ID.fullmatch(stem)
    if match is None:
        return None
    parts = match.groupdict()
    return Name(
        section=parts["section"],
        domain=parts.get("domain"),
        split=parts.get("split"),
        label=LABELS.get(parts["label"]),
        attributes=shown(parts.get("attributes")),
    )


def parse_supplemental(stem: str) -> Name | None:
    """Return what the stem of a supplemental clip (2025) says, None when it is not one.

    The kind stands between section and counter, in several spellings; an attribute behind the
    counter may contain `noise` too and means nothing here.
    """
    match = _SUPPLEMENTAL.fullmatch(stem)
    if match is None:
        return None
    kind = match["kind"]
    supplement = "noise" if "noise" in kind else "clean" if "machine" in kind else "unknown"
    domain = next((domain for domain in ("source", "target") if domain in kind.split("_")), None)
    return Name(match["section"], domain, None, None, shown(match["attributes"]), supplement)


def shown(attributes: str | None) -> str:
    """Return the attribute string, "" where there is none or `noAttribute` hides it."""
    return "" if attributes in (None, "noAttribute") else attributes
