"""Rows and clips meet by name; whatever does not fit is named, all of it at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asdjax.metrics.pairing import pair
from asdjax.types import Clip, InputError, Scores

GROUPS = (("fan", "section_00"), ("pump", "section_00"))


def clip(machine: str, i: int, **changes) -> Clip:
    name = f"section_00_{i:04}.wav"
    full = f"section_00_source_test_normal_{i:04}_a_1"
    path = Path(machine, "test", name)
    return replace(
        Clip(path, machine, "section_00", "test", "source", label=i % 2, full_name=full), **changes
    )


def clips(n: int = 4) -> list[Clip]:
    return [clip(machine, i) for machine, _ in GROUPS for i in range(n)]


def scores(*, fan=range(4), pump=range(4), **changes) -> list[Scores]:
    """Return a file per machine with rows of the given numbers; clip i scores i."""
    files = []
    for (machine, section), numbers in zip(GROUPS, (fan, pump), strict=True):
        names = tuple(f"section_00_{i:04}.wav" for i in numbers)
        files.append(Scores(machine, section, names, np.array(list(numbers), float), **changes))
    return files


def error_lines(*args, **options) -> list[str]:
    with pytest.raises(InputError) as error:
        pair(*args, **options)
    return str(error.value).splitlines()


def test_rows_are_matched_by_name_not_by_position():
    tables = pair(scores(fan=[3, 1, 0, 2]), clips())
    assert list(tables) == list(GROUPS)
    np.testing.assert_array_equal(tables[GROUPS[0]].score, [0, 1, 2, 3])
    np.testing.assert_array_equal(tables[GROUPS[0]].label, [0, 1, 0, 1])
    np.testing.assert_array_equal(tables[GROUPS[0]].domain, ["source"] * 4)


def test_decisions_follow_their_rows():
    tables = pair(scores(fan=[2, 0, 1, 3], decisions=np.array([1, 0, 0, 1])), clips())
    np.testing.assert_array_equal(tables[GROUPS[0]].decision, [0, 0, 1, 1])


def test_full_and_released_names_may_be_mixed():
    files = scores()
    names = (files[0].names[0], *(clip("fan", i).full_name for i in (1, 2, 3)))
    files[0] = replace(files[0], names=(*names[:3], names[3] + ".wav"))
    np.testing.assert_array_equal(pair(files, clips())[GROUPS[0]].score, [0, 1, 2, 3])
    lines = error_lines(files, clips(), full_names=False)  # editions before 2023
    assert "unknown: section_00_source_test_normal_0001_a_1," in "\n".join(lines)


def test_other_endings_and_blanks_around_a_name_are_the_same_clip():
    files = scores()
    names = ("section_00_0000.flac", "section_00_0001", " section_00_0002.wav", "section_00_0003 ")
    files[0] = replace(files[0], names=names)
    np.testing.assert_array_equal(pair(files, clips())[GROUPS[0]].score, [0, 1, 2, 3])


def test_two_clips_that_differ_only_in_the_ending_need_it():
    twins = [*clips(), clip("fan", 2, path=Path("fan/test/section_00_0002.flac"), full_name="")]
    files = scores()
    names = (*files[0].names, "section_00_0002.flac")
    files[0] = replace(files[0], names=names, values=np.arange(5.0))
    np.testing.assert_array_equal(pair(files, twins)[GROUPS[0]].score, [0, 1, 2, 3, 4])
    files[0] = replace(files[0], names=(*names[:4], "section_00_0002"))
    assert "unknown: section_00_0002" in "\n".join(error_lines(files, twins))


def test_a_name_that_begins_with_a_blank_is_another_one():
    twins = [*clips(), clip("fan", 2, path=Path("fan/test/ section_00_0002.wav"), full_name="")]
    files = scores()
    names = (" section_00_0002.wav", *files[0].names)
    files[0] = replace(files[0], names=names, values=np.arange(5.0))
    np.testing.assert_array_equal(pair(files, twins)[GROUPS[0]].score, [1, 2, 3, 4, 0])


def test_every_difference_of_every_machine_is_listed():
    lines = error_lines(scores(fan=[0, 1, 7, 2], pump=[0, 1, 1, 2, 3]), clips())[1:]
    assert lines == [
        "  fan/section_00: missing in the scores: section_00_0003.wav",
        "  fan/section_00: unknown: section_00_0007.wav",
        "  pump/section_00: more than one score row for: section_00_0001.wav",
    ]


def test_released_and_full_name_of_one_clip_are_doubled():
    files = scores()
    files[0] = replace(files[0], names=(*files[0].names[:3], clip("fan", 0).full_name))
    text = "\n".join(error_lines(files, clips()))
    assert "more than one score row for: section_00_source_test_normal_0000_a_1" in text
    assert "missing in the scores: section_00_0003.wav" in text


def test_long_lists_end_with_their_number():
    line = error_lines(scores(fan=[0]), [clip("fan", i) for i in range(240)] + clips()[4:])[1]
    assert line.count(".wav") == 200
    assert line.endswith("section_00_0200.wav and 39 more")


def test_machines_on_one_side_only_are_refused():
    files = [replace(scores()[0], machine="valve"), scores()[1]]
    assert error_lines(files, clips())[1:] == [
        "  valve/section_00: no labelled test clip",
        "  fan/section_00: no score file",
    ]


def test_names_shared_by_two_clips_are_refused():
    twins = [*clips(), clip("fan", 2, path=Path("fan/other/section_00_0002.wav"))]
    twins += [clip("pump", 9, full_name=clip("pump", 1).full_name)]
    text = "\n".join(error_lines(scores(pump=[0, 1, 2, 3, 9]), twins))
    assert (
        "fan/section_00: in the ground truth more than once: section_00_0002.wav, section_00_"
        in text
    )
    assert "pump/section_00: in the ground truth more than once: section_00_source_test" in text


def test_train_and_unlabelled_clips_do_not_count():
    extra = [clip("fan", 8, split="train"), clip("fan", 9, label=None)]
    for numbers in ([0, 1, 2, 3], [0, 1, 9, 2, 3]):  # an unlabelled clip may have a row
        tables = pair(scores(fan=numbers), clips() + extra)
        np.testing.assert_array_equal(tables[GROUPS[0]].score, [0, 1, 2, 3])
    lines = error_lines(scores(fan=[0, 1, 2, 3, 8]), clips() + extra)
    assert lines[1:] == ["  fan/section_00: unknown: section_00_0008.wav"]


def test_nothing_labelled_is_refused():
    with pytest.raises(InputError, match="no labelled test clip"):
        pair(scores(), [replace(c, label=None) for c in clips()])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    files = scores()
    files[1].values[2] = value
    assert error_lines(files, clips())[1:] == [
        "  pump/section_00: score not finite: section_00_0002.wav"
    ]
