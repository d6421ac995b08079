"""A folder belongs to the run it was begun with: what may change there, and what is refused."""

from dataclasses import replace

import pytest
from scored_runs import make_clips

from asdjax.data.batches import Audio
from asdjax.recipes import RECIPES
from asdjax.scoring.knn import Knn
from asdjax.stages import earlier, folder
from asdjax.stages.folder import MODEL, Run
from asdjax.types import InputError

FROZEN, TRAINED = (RECIPES[name].config for name in ("frozen/logmel", "small/dual"))


def make_run(out, system=FROZEN, machines=("fan", "pump")) -> Run:
    clips = make_clips([(machine, "section_00") for machine in machines])
    clips = (replace(clip, content=str(clip.path)) for clip in clips)
    weights = ("",) * len(system.encoders)
    return Run(system, out / "data", tuple(clips), 2024, weights, {})


def begin(out, run: Run) -> Run:
    """Leave what a run leaves."""
    folder.save(out, run)
    for group in run.groups:
        path = run.embeddings(out, group).path
        path.parent.mkdir(exist_ok=True)
        path.touch()
    if run.system.train:
        (out / MODEL).touch()
    return run


def changed(run: Run, index: int, **fields) -> Run:
    clips = list(run.clips)
    clips[index] = replace(clips[index], **fields)
    return replace(run, clips=tuple(clips))


def without(run: Run, split: str) -> Run:
    last = next(clip for clip in reversed(run.clips) if clip.split == split)
    return replace(run, clips=tuple(clip for clip in run.clips if clip is not last))


def with_audio(run: Run) -> Run:
    return replace(run, system=replace(run.system, audio=Audio(seconds=3.0)))


REFUSED = {  # what another run is, and what differs
    "settings": (with_audio, ["audio.seconds: null before, 3.0 now"]),
    "weights": (
        lambda run: replace(run, weights=("00",)),
        ["encoders.0.weights: nothing before, something now"],
    ),
    "a training clip of other content": (
        lambda run: changed(run, 0, content="other"),
        ["training clips of fan section_00: 1 of other content (section_00_source_0_0.wav)"],
    ),
    "a training clip gone": (
        lambda run: without(run, "train"),
        ["training clips of pump section_00: 1 gone (section_00_target_0_7.wav)"],
    ),
    "a test clip of other content": (
        lambda run: changed(run, -1, content="other"),
        ["test clips of pump section_00: 1 of other content (section_00_target_1_7.wav)"],
    ),
    "a machine gone": (
        lambda run: make_run(run.data.parent, machines=["fan"]),
        [
            "test clips of pump section_00: 32 gone (section_00_source_0_0.wav, "
            "section_00_source_0_1.wav, section_00_source_0_2.wav and 29 more)",
            "training clips of pump section_00: 16 gone (section_00_source_0_0.wav, "
            "section_00_source_0_1.wav, section_00_source_0_2.wav and 13 more)",
        ],
    ),
    "all of it": (
        lambda run: with_audio(changed(run, 0, content="other")),
        [
            "audio.seconds: null before, 3.0 now",
            "training clips of fan section_00: 1 of other content (section_00_source_0_0.wav)",
        ],
    ),
}


@pytest.mark.parametrize("other", REFUSED)
def test_another_run_is_refused_with_what_differs(tmp_path, other):
    make, lines = REFUSED[other]
    run = begin(tmp_path, make_run(tmp_path))
    earlier.refuse_another(tmp_path, run)
    with pytest.raises(InputError) as refused:
        earlier.refuse_another(tmp_path, make(run))
    first, *listed, last = str(refused.value).splitlines()
    assert first == f"{tmp_path} holds the work of another run:"
    assert [line.strip() for line in listed] == lines
    assert last == "choose another --out, or replace it with --force"


def test_another_machine_is_another_run(tmp_path):
    begin(tmp_path, make_run(tmp_path, machines=["fan"]))
    with pytest.raises(InputError, match="training clips of pump section_00: 16 new"):
        earlier.refuse_another(tmp_path, make_run(tmp_path))


def test_another_version_is_another_run(tmp_path, monkeypatch):
    run = begin(tmp_path, make_run(tmp_path))
    monkeypatch.setattr(earlier, "__version__", "99")
    with pytest.raises(InputError, match=r"asdjax: \S+ before, 99 now"):
        earlier.refuse_another(tmp_path, run)


ACCEPTED = {
    "nothing": (lambda run: run, None),
    "a folder that was moved": (
        lambda run: replace(run, clips=tuple(replace(c, path="x" / c.path) for c in run.clips)),
        None,
    ),
    "the scorer": (
        lambda run: replace(run, system=replace(run.system, scorer=Knn(k=7))),
        "scorer.k: 1 before, 7 now",
    ),
    "the year": (lambda run: replace(run, year=2025), "year: 2024 before, 2025 now"),
    "a label": (lambda run: changed(run, -1, label=None), "labels of 1 clip"),
}


@pytest.mark.parametrize("other", ACCEPTED)
@pytest.mark.parametrize("system", [FROZEN, TRAINED], ids=["frozen", "trained"])
def test_what_costs_no_training_may_change_and_is_told(tmp_path, capsys, other, system):
    make, told = ACCEPTED[other]
    now = make(begin(tmp_path, make_run(tmp_path, system)))
    earlier.refuse_another(tmp_path, now)
    earlier.note_changes(tmp_path, now)
    line = f"what depends on these is made again: {told}\n" if told else ""
    assert capsys.readouterr().err == line


def test_test_clips_may_be_added(tmp_path, capsys):
    now = make_run(tmp_path)
    begin(tmp_path, without(now, "test"))
    earlier.refuse_another(tmp_path, now)
    earlier.note_changes(tmp_path, now)
    told = "test clips of pump section_00: 1 new (section_00_target_1_7.wav)"
    assert capsys.readouterr().err == f"what depends on these is made again: {told}\n"


def test_a_training_is_not_left_to_a_system_without_one(tmp_path):
    for left in (MODEL, "checkpoints/step_2"):
        path = tmp_path / left.replace("/", "-") / left
        path.parent.mkdir(parents=True)
        path.mkdir() if "step" in left else path.touch()
        out = tmp_path / left.replace("/", "-")
        with pytest.raises(InputError, match="a training before, a system without training now"):
            earlier.refuse_another(out, make_run(out))


def test_a_training_is_not_begun_over_embeddings_of_another_system(tmp_path):
    begin(tmp_path, make_run(tmp_path))
    with pytest.raises(InputError, match="trains: false before, true now"):
        earlier.refuse_another(tmp_path, make_run(tmp_path, TRAINED))


def test_a_training_says_itself_what_it_is_of_but_not_what_is_tested(tmp_path):
    run = begin(tmp_path, make_run(tmp_path, TRAINED))
    with pytest.raises(InputError, match="test clips of pump section_00: 1 of other content"):
        earlier.refuse_another(tmp_path, changed(run, -1, content="other"))
    other = changed(changed(run, -1, content="other"), 0, content="other")
    earlier.refuse_another(tmp_path, other)
    (tmp_path / MODEL).unlink()  # as --force does
    (tmp_path / "checkpoints" / "step_2").mkdir(parents=True)
    earlier.refuse_another(tmp_path, other)


def test_nothing_is_refused_where_nothing_was_embedded(tmp_path):
    folder.save(tmp_path, make_run(tmp_path))
    other = with_audio(make_run(tmp_path))
    earlier.refuse_another(tmp_path, other)
    folder.save(tmp_path, other)
    assert folder.load(tmp_path).system == other.system


def test_what_does_not_follow_from_a_run_that_replaces_another_is_removed(tmp_path):
    begin(tmp_path, make_run(tmp_path, TRAINED))
    (tmp_path / "labels.json").touch()
    (tmp_path / "checkpoints").mkdir()
    folder.save(tmp_path, make_run(tmp_path, machines=["fan"]))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    embeddings = {"embeddings", "embeddings/fan_section_00.npz"}
    assert left == {"clips.json", "config.json"} | embeddings
