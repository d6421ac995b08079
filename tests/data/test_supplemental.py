"""Supplemental clips of 2025: those asked for, and what the user is told."""

from pathlib import Path

import pytest

from asdjax.data.supplemental import supplemental
from asdjax.types import Clip, DataSet, InputError


def clip(machine, kind, number=0):
    path = Path(f"/data/{machine}/supplemental/{kind}_{number}.wav")
    return Clip(path, machine, "section_00", "supplemental", supplement=kind)


TRAIN = tuple(Clip(Path(f"{m}.wav"), m, "section_00", "train") for m in ("fan", "slider", "valve"))
EXTRA = (
    clip("fan", "clean"),
    clip("fan", "clean", 1),
    clip("slider", "noise"),
    clip("fan", "unknown"),
)
DATA = DataSet(Path("/data"), TRAIN + EXTRA, 2025)


def test_only_the_kinds_asked_for_are_taken():
    assert supplemental(DATA, ("clean",))[0] == EXTRA[:2]
    assert supplemental(DATA, ("noise",))[0] == EXTRA[2:3]
    assert supplemental(DATA, ("clean", "noise"))[0] == EXTRA[:3]


def test_the_user_is_told_of_each_machine_and_of_those_without():
    assert supplemental(DATA, ("clean", "noise"))[1] == [
        "2 clean supplemental clips of fan",
        "1 noise supplemental clips of slider",
        "no clean or noise supplemental clip of valve: left as they are",
        "1 supplemental clips left out, whose names say neither machine nor noise: unknown_0.wav",
    ]


@pytest.mark.parametrize(
    ("clips", "got"), [(TRAIN, "got none"), (TRAIN + EXTRA[2:], "got 1 noise, 1 unknown")]
)
def test_none_at_all_is_a_mistake_that_names_folder_and_field(clips, got):
    with pytest.raises(InputError, match=f"/data/./supplemental.* train.supplement .*{got}"):
        supplemental(DataSet(Path("/data"), clips), ("clean",))
