"""What is decided before anything is compiled: classes, centers, who validates, what is refused."""

from pathlib import Path

import jax
import numpy as np
import pytest

from asdjax.losses.adacos import AdaCos
from asdjax.losses.margin import Margin
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule
from asdjax.train.plan import beside, make_plan
from asdjax.types import Clip, InputError, Reported

MACHINE, ATTRIBUTES = HeadConfig(labels="machine"), HeadConfig(labels="attributes")


def clip(machine, index=0, attributes=""):
    path = Path(f"{machine}/train/section_00_{index}.wav")
    return Clip(path, machine, "section_00", "train", "source", 0, attributes)


CLIPS = (
    *(clip("valve", i) for i in range(3)),  # without attributes
    *(clip("fan", i, "n_A") for i in range(3)),
    *(clip("fan", 3 + i, "n_B") for i in range(2)),
)


def plan(clips=CLIPS, **train):
    return make_plan(Train(**{"batch": 2} | train), clips)


def test_each_head_has_labels_of_its_own():
    made = plan(heads=(MACHINE, ATTRIBUTES))
    fan, valve = "fan section_00", "valve section_00"
    assert made.classes == ((fan, valve), (f"{fan} n_A", f"{fan} n_B", valve))
    assert made.label.dtype == np.int32
    np.testing.assert_array_equal(
        made.label.T, [[1, 1, 1, 0, 0, 0, 0, 0], [2, 2, 2, 0, 0, 0, 1, 1]]
    )
    assert made.classes == ((fan, valve), (f"{fan} n_A", f"{fan} n_B", valve))


@pytest.mark.parametrize(
    ("loss", "labels", "counts"),
    [
        (Margin(), "attributes", [1, 1, 1]),
        (Margin(subcenters=3), "attributes", [3, 3, 3]),
        (Margin(subcenters=2, subcenters_without_attributes=16), "attributes", [2, 2, 16]),
        (Margin(subcenters=16, subcenters_without_attributes=1), "machine", [16, 1]),
        (AdaCos(subclusters=4), "machine", [4, 4]),
    ],
)
def test_classes_without_attributes_have_a_number_of_centers_of_their_own(loss, labels, counts):
    ((given, found, *_),) = plan(heads=(HeadConfig(loss, labels),)).tasks
    assert given is loss
    np.testing.assert_array_equal(found, counts)


@pytest.mark.parametrize(("labels", "counts"), [("attributes", [5, 3, 2]), ("machine", [3, 2])])
def test_a_class_comes_before_its_machine_and_both_before_the_rest(labels, counts):
    table = (("fan", 3), ("fan section_00 n_A", 5), ("drill", 7))
    made = plan(heads=(HeadConfig(Margin(subcenters=2), labels, subcenters=table),))
    np.testing.assert_array_equal(made.tasks[0].counts, counts)
    unknown = ["drill"] if labels == "attributes" else ["fan section_00 n_A", "drill"]
    assert made.notes == (f"sub-centers of no machine or class here: {', '.join(unknown)}",)


def test_numbers_of_a_report_are_told_where_they_differ():
    found = plan(heads=(ATTRIBUTES, MACHINE))
    count = len({clip.machine for clip in CLIPS})
    classes = max(map(len, found.classes))
    told = beside(Reported(classes=172, machines=16), found, CLIPS)
    assert len(told) == 2
    assert told[0].startswith(f"{count} machine types to train on; ")
    assert "have 16" in told[0]
    assert told[1] == f"{classes} classes; the report has 172"
    assert beside(Reported(classes=classes, machines=count), found, CLIPS) == []
    assert beside(Reported(), found, CLIPS) == []


def test_a_machine_with_some_described_clips_has_attributes():
    clips = (*CLIPS, clip("valve", 9, "v_1"))
    heads = (HeadConfig(Margin(subcenters=2, subcenters_without_attributes=5), "machine"),)
    np.testing.assert_array_equal(plan(clips, heads=heads).tasks[0].counts, [2, 2])


def test_classes_of_one_clip_are_noted_once_for_each_head_that_has_them():
    clips = (*CLIPS, clip("fan", 9, "n_C"))
    assert plan().notes == ()
    (note,) = plan(clips, heads=(MACHINE, ATTRIBUTES)).notes
    assert note == "1 of 4 classes have a single training clip: fan section_00 n_C"


def test_clips_are_held_out_of_every_large_class_and_only_there():
    clips = [clip(m, i) for m, count in (("fan", 20), ("valve", 9)) for i in range(count)]
    made = plan(clips, heads=(MACHINE,), held_out=0.2)
    assert made.held_out.dtype == bool
    assert made.held_out[:20].sum() == 4
    assert not made.held_out[20:].any()
    again, other = (plan(clips, held_out=0.2, seed=seed).held_out for seed in (0, 1))
    np.testing.assert_array_equal(made.held_out, again)
    assert (made.held_out != other).any()
    assert not plan(clips).held_out.any()


def test_a_clip_is_held_out_of_classes_that_are_large_in_every_head():
    """Twelve fans are many, but of each attribute there are four."""
    clips = [clip("fan", i, f"n_{i % 3}") for i in range(12)] + [
        clip("valve", i) for i in range(12)
    ]
    assert plan(clips, heads=(MACHINE,), held_out=0.5).held_out[:12].sum() == 6
    for heads in ((MACHINE, ATTRIBUTES), (ATTRIBUTES, MACHINE)):
        held_out = plan(clips, heads=heads, held_out=0.5).held_out
        assert (held_out[:12].sum(), held_out[12:].sum()) == (0, 6)


# Batches


@pytest.mark.parametrize(
    ("batch", "held_out", "made"), [(16, 0.0, 16), (20, 0.0, 20), (22, 0.0, 16), (18, 0.2, 16)]
)
def test_a_batch_is_no_larger_than_the_clips_that_train(batch, held_out, made):
    clips = [clip(m, i) for m in ("fan", "valve") for i in range(10)]
    how = plan(clips, batch=batch, held_out=held_out)
    assert how.how == Train(batch=made, held_out=held_out)
    count = 16 if held_out else 20
    line = f"batch of {made} instead of {batch}: there are {count} training clips"
    assert how.notes == ((line,) if made < batch else ())


def test_a_smaller_batch_is_the_same_on_any_number_of_devices(monkeypatch):
    clips = [clip(m, i) for m, count in (("fan", 4), ("valve", 3)) for i in range(count)]
    for devices in (1, 2, 4):
        monkeypatch.setattr(jax, "devices", lambda devices=devices: [None] * devices)
        assert plan(clips, batch=32).how.batch == 4


# What is refused


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch": 3}, "a batch that divides over 2 devices, got 3 for 8 training clips"),
        (
            {"steps": 5, "optimizer": Optimizer(schedule=Schedule(warmup=6))},
            "a warm-up within the run's 5 steps, got 6",
        ),
        (
            {"held_out": 0.2, "select": "best"},
            r"clips to hold out .* got none: .* set --train\.select last",
        ),
        ({"held_out": 0.7}, r"held_out: expected in \[0, 0\.5\], got 0\.7"),
        ({"held_out": -0.1}, r"held_out: expected in \[0, 0\.5\], got -0\.1"),
        ({"held_out": float("nan")}, r"held_out: expected in \[0, 0\.5\], got nan"),
    ],
)
def test_settings_that_do_not_fit_the_clips_are_refused(train, message):
    with pytest.raises(InputError, match=message):
        plan(**train)


def test_fewer_clips_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 16)
    with pytest.raises(InputError, match="over 16 devices, got 8 for 8 training clips"):
        plan(batch=16)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([*CLIPS, clip("Fan", 0), clip("Fan", 1)], "two machines with the same label: 'Fan' and"),
        ([*CLIPS, clip("pump")], "at least 2 training clips of every machine, got 1 of pump/sect"),
        (CLIPS[:3], "at least 2 classes to tell apart, got 1 .*valve section_00.*; add machines"),
    ],
)
@pytest.mark.parametrize("kind", ["machine", "attributes"])
def test_clips_that_cannot_be_classified_are_refused(clips, message, kind):
    with pytest.raises(InputError, match=message):
        plan(clips, heads=(HeadConfig(labels=kind),))


def test_one_head_of_one_class_is_enough_to_refuse():
    """By their attributes these fans are two classes, by their machine one: the message says so."""
    with pytest.raises(InputError, match=r'got 1 by .*use the labels "attributes" \(2 classes\)'):
        plan(CLIPS[3:], heads=(ATTRIBUTES, MACHINE))


def test_every_row_has_a_class_that_exists():
    made = plan(heads=(MACHINE, ATTRIBUTES))
    for column, task in zip(made.label.T, made.tasks, strict=True):
        assert set(column) == set(range(len(task.counts)))
