"""Members of an ensemble: what is read of a run, and in what ways runs do not fit together."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scored_runs import fan, make_clips, make_flipped, make_run

from asdjax.stages.members import load_members
from asdjax.types import InputError


@pytest.fixture
def members(tmp_path) -> list[Path]:
    return [make_run(tmp_path / name, make_clips(), seed) for seed, name in enumerate("abc")]


def test_scores_of_test_clips_and_of_training_clips_left_out(members):
    for folder, member in zip(members, load_members(members)[1], strict=True):
        for kind, split in (("anomaly_score", "test"), ("leave_one_out", "train")):
            clips = member.run.select(("fan", "section_00"), split)
            rows = [row.split(",") for row in (folder / fan(kind)).read_text().split()]
            given = {name: float(value) for name, value in rows}
            assert member.of(clips[::-1]).tolist() == [given[c.name] for c in clips[::-1]]


def test_too_few_or_equal_runs_are_refused(members):
    for wrong in ([], members[:1], [members[0], members[0] / "." / ".." / "a"]):
        with pytest.raises(InputError, match="two or more different runs"):
            load_members(wrong)


def test_runs_of_other_clips_are_refused_and_the_clips_named(tmp_path):
    clips = make_clips()
    a = make_run(tmp_path / "a", clips, 0)
    fewer = make_run(tmp_path / "b", [c for c in clips if c.name != "section_00_target_1_7.wav"], 1)
    with pytest.raises(InputError) as refused:
        load_members([a, fewer])
    names = "fan/section_00/test/section_00_target_1_7.wav, pump/section_00/test"
    assert f"{fewer} lacks clips of {a}: {names}" in str(refused.value)
    with pytest.raises(InputError) as refused:
        load_members([fewer, a])
    assert f"{a} has clips that {fewer} lacks: {names}" in str(refused.value)
    train = [replace(c, path=c.path.with_name("new.wav")) if c == clips[0] else c for c in clips]
    with pytest.raises(InputError, match=r"has clips .*fan/section_00/train/new\.wav"):
        load_members([a, make_run(tmp_path / "c", train, 1)])


def test_runs_of_other_years_and_labels_are_refused(tmp_path):
    clips = make_clips()
    a = make_run(tmp_path / "a", clips, 0)
    other = make_run(tmp_path / "b", make_flipped(clips), 1, year=2023)
    with pytest.raises(InputError) as refused:
        load_members([a, other])
    assert f"{other}: year 2023, {a} has 2024" in str(refused.value)
    assert "labels or domains differ" in str(refused.value)
    assert "section_00_source_0_0.wav; give both runs the same --ground-truth" in str(refused.value)


def test_runs_that_cannot_be_read_are_told_at_once(members, tmp_path):
    a, b, c = members
    shutil.rmtree(b / "scores")
    (c / fan("leave_one_out")).unlink()
    with pytest.raises(InputError) as refused:
        load_members([a, b, c, tmp_path / "none"])
    text = str(refused.value)
    for run in (b, c):
        assert f"{run / 'scores'} is not complete" in text
        assert f"give `asdjax score {run}`" in text
    assert f"expected a run's folder, got {tmp_path / 'none'}" in text
    assert str(a) not in text.replace(str(tmp_path / "none"), "").replace(str(b), "")


@pytest.mark.parametrize("kind", ["anomaly_score", "leave_one_out"])
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: [rows[0].split(",")[0] + ",nan", *rows[1:]],
        lambda rows: [rows[0].split(",")[0] + ",0.125", *rows[1:]],
    ],
    ids=["fewer", "nan", "other"],
)
def test_scores_that_were_changed_are_refused(members, kind, change):
    path = members[1] / fan(kind)
    path.write_text("\n".join(change(path.read_text().split())) + "\n")
    with pytest.raises(InputError, match=f"give `asdjax score {members[1]}`"):
        load_members(members)
