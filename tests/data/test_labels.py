"""Class labels: no two classes with one name, nothing trained that cannot be told apart."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from asdjax.data import labels
from asdjax.types import Clip, InputError


def clip(machine, attributes="", section="section_00", index=0):
    return Clip(Path(f"{index}.wav"), machine, section, "train", attributes=attributes)


CAR = clip("ToyCar", "car_A1_spd_28V_mic_1")
CLIPS = [CAR, clip("ToyCar", "car_B1"), clip("fan"), clip("fan", section="section_01"), CAR]


def test_names_say_machine_section_and_attributes():
    assert labels.class_name(CAR, "machine") == "ToyCar section_00"
    assert labels.class_name(CAR, "attributes") == "ToyCar section_00 car_A1_spd_28V_mic_1"
    assert labels.class_name(clip("fan"), "attributes") == "fan section_00"
    assert labels.class_name(clip("pump", section="id_04"), "machine") == "pump id_04"


def test_a_vocabulary_has_every_class_once_in_order():
    assert labels.vocabulary(CLIPS, "machine") == (
        "ToyCar section_00",
        "fan section_00",
        "fan section_01",
    )
    by_attributes = labels.vocabulary(iter(CLIPS), "attributes")
    assert by_attributes == (
        "ToyCar section_00 car_A1_spd_28V_mic_1",
        "ToyCar section_00 car_B1",
        "fan section_00",
        "fan section_01",
    )
    assert labels.vocabulary(CLIPS[::-1], "attributes") == by_attributes


@pytest.mark.parametrize("kind", ["machine", "attributes"])
def test_equal_numbers_mean_equal_classes_and_nothing_else_does(kind):
    clips = [
        clip(machine, attributes, section)
        for machine, section, attributes in product("ab", ("id_00", "id_02"), ("", "x", "y"))
    ] * 2
    vocabulary = labels.vocabulary(clips, kind)
    label = labels.encode(clips, vocabulary, kind)
    assert label.dtype == np.int32
    assert [vocabulary[i] for i in label] == [labels.class_name(c, kind) for c in clips]
    for i, j in product(range(len(clips)), repeat=2):
        same = clips[i].group == clips[j].group
        if kind == "attributes":
            same = same and clips[i].attributes == clips[j].attributes
        assert (label[i] == label[j]) == same
    assert set(label) == set(range(len(vocabulary)))


def test_the_domain_makes_no_class():
    both = [replace(CAR, domain="source"), replace(CAR, domain="target")]
    assert len(labels.vocabulary(both, "attributes")) == 1


@pytest.mark.parametrize("other", ["toycar", "Toy Car", " ToyCar", "TOYCAR ", "Toy\tCar"], ids=repr)
@pytest.mark.parametrize("kind", ["machine", "attributes"])
def test_machines_that_read_alike_are_refused_by_name(other, kind):
    with pytest.raises(InputError, match="two machines with the same label") as error:
        labels.vocabulary([CAR, clip(other), clip("fan")], kind)
    assert repr("ToyCar") in str(error.value)
    assert repr(other) in str(error.value)
    assert "fan" not in str(error.value)


def test_different_classes_with_one_name_are_refused():
    clips = [clip("fan", "section_00"), clip("fan section_00")]
    with pytest.raises(InputError, match="same name 'fan section_00 section_00'") as error:
        labels.vocabulary(clips, "attributes")
    assert "('fan', 'section_00', 'section_00')" in str(error.value)
    assert "('fan section_00', 'section_00', '')" in str(error.value)
    assert len(labels.vocabulary(clips, "machine")) == 2  # there they have two names


def test_sections_of_one_machine_are_not_machines_with_the_same_label():
    assert len(labels.vocabulary([clip("fan"), clip("fan", section="section_01")], "machine")) == 2


def test_unknown_classes_are_listed():
    vocabulary = labels.vocabulary(CLIPS, "attributes")
    with pytest.raises(InputError, match="2 others: ToyCar section_00 car_C, valve section_00"):
        labels.encode([CAR, clip("valve"), clip("ToyCar", "car_C")], vocabulary, "attributes")
    assert labels.encode([], vocabulary, "attributes").shape == (0,)


def test_one_class_is_too_few_and_the_way_out_is_named():
    cars = [CAR, CAR, clip("ToyCar", "car_B1")]
    with pytest.raises(
        InputError, match=r'2 classes.*got 1 .*"attributes" \(2 classes\).*machines'
    ):
        labels.check_classes(cars, "machine")
    with pytest.raises(InputError, match="at least 2 classes") as error:
        labels.check_classes([CAR, CAR], "attributes")
    assert "use the labels" not in str(error.value)
    with pytest.raises(InputError, match="no clips"):
        labels.check_classes([], "machine")


@pytest.mark.parametrize("kind", ["machine", "attributes"])
def test_a_machine_of_one_clip_is_refused_by_name(kind):
    section = clip("ToyCar", section="section_03")
    with pytest.raises(InputError, match="got 1 of ToyCar/section_03, valve/section_00;"):
        labels.check_classes([*[CAR, clip("fan")] * 2, clip("valve"), section], kind)


def test_attributes_of_one_clip_are_counted_and_named_but_allowed():
    clips = [CAR, CAR, clip("ToyCar", "car_B1"), clip("ToyCar", "car_C1"), *[clip("fan")] * 2]
    note = labels.check_classes(clips, "attributes")
    assert note == (
        "2 of 4 classes have a single training clip: "
        "ToyCar section_00 car_B1, ToyCar section_00 car_C1"
    )
    assert labels.check_classes(clips, "machine") == ""
    many = [clip("fan", str(i)) for i in range(30)]
    assert "30 of 30 classes" in labels.check_classes(many, "attributes")
    assert labels.check_classes(many, "attributes").endswith("and 20 more")


def test_bare_classes_have_clips_and_none_of_them_attributes():
    clips = [CAR, clip("ToyCar"), clip("fan"), clip("fan", section="section_01")]
    names = labels.vocabulary(clips, "attributes")
    found = dict(zip(names, labels.without_attributes(clips, names, "attributes"), strict=True))
    assert found == {
        "ToyCar section_00": True,  # of a machine with attributes, the clips without
        "ToyCar section_00 car_A1_spd_28V_mic_1": False,
        "fan section_00": True,
        "fan section_01": True,
    }
    names = (*labels.vocabulary(clips, "machine"), "valve section_00")  # of which there is no clip
    np.testing.assert_array_equal(
        labels.without_attributes(clips, names, "machine"), [False, True, True, False]
    )


def test_held_out_clips_are_a_share_of_each_large_class():
    label = np.random.default_rng(0).permutation(
        np.repeat(np.arange(5, dtype=np.int32), range(8, 53, 10))
    )
    assert list(np.bincount(label)) == [8, 18, 28, 38, 48]
    held = labels.hold_out(label, 0.1, seed=0)
    assert held.dtype == bool
    assert list(np.bincount(label[held], minlength=5)) == [0, 2, 3, 4, 5]
    assert list(np.bincount(label[labels.hold_out(label, 0.1, 0, least=30)])) == [0, 0, 0, 4, 5]
    np.testing.assert_array_equal(held, labels.hold_out(label, 0.1, seed=0))
    assert not np.array_equal(held, labels.hold_out(label, 0.1, seed=1))


def test_every_clip_can_be_held_out():
    label = np.zeros(10, np.int32)
    draws = np.sum([labels.hold_out(label, 0.5, seed) for seed in range(200)], 0)
    # 100 times each on average, with a standard error of 7.
    assert (abs(draws - 100) < 5 * 7).all()


def test_nothing_is_held_out_unless_asked():
    assert not labels.hold_out(np.zeros(20, np.int32), 0, seed=0).any()
