"""A system as a value: its JSON form, and values that contradict themselves."""

import json
from dataclasses import replace

import pytest

from asdjax.config import CONFIG_CLASSES, SystemConfig, digest, from_json, to_json
from asdjax.losses.adacos import AdaCos
from asdjax.losses.margin import Margin
from asdjax.models.embedder import LogMel, Pretrained
from asdjax.models.lora import Lora
from asdjax.models.system import FineTuned
from asdjax.recipes import RECIPES
from asdjax.train.config import HeadConfig, Train
from asdjax.types import InputError

HEADS = HeadConfig(AdaCos(16, trained=False), "machine", 0.5), HeadConfig(Margin("am-softmax", 0.1))
TWO_HEADS = SystemConfig(
    FineTuned("x.safetensors", Lora(targets=("q", "layers.1*.v"))), train=Train(heads=HEADS)
)
EVERY = {name: recipe.config for name, recipe in RECIPES.items()} | {"two heads": TWO_HEADS}


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY.keys())
def test_a_system_comes_back_from_its_json(config):
    text = json.dumps(to_json(config))
    again = from_json(json.loads(text))
    assert again == config
    assert hash(again) == hash(config)  # tuples are tuples again
    assert json.dumps(to_json(again)) == text


def test_heads_come_back_as_a_tuple_of_their_kinds():
    heads = from_json(json.loads(json.dumps(to_json(TWO_HEADS)))).train.heads
    assert heads == HEADS
    assert isinstance(heads, tuple)
    assert [type(head.loss) for head in heads] == [AdaCos, Margin]


def test_every_class_of_a_recipe_can_be_read_back():
    def classes(plain):
        if isinstance(plain, dict):
            yield plain.get("class")
        for value in plain.values() if isinstance(plain, dict) else plain:
            if isinstance(value, dict | list):
                yield from classes(value)

    used = {name for config in EVERY.values() for name in classes(to_json(config))}
    assert used <= {"SystemConfig", *CONFIG_CLASSES}


@pytest.mark.parametrize("place", [[], ["train"], ["train", "optimizer"], ["embedder", "adapter"]])
def test_a_field_that_is_not_known_is_refused(place):
    plain = to_json(TWO_HEADS)
    inner = plain
    for name in place:
        inner = inner[name]
    inner["momentum"] = 0.9
    with pytest.raises(InputError, match=r"unknown configuration \['momentum'\]"):
        from_json(plain)


def test_a_class_that_is_not_known_is_refused():
    plain = to_json(TWO_HEADS)
    plain["train"]["heads"][0]["loss"]["class"] = "Triplet"
    with pytest.raises(InputError, match="unknown configuration"):
        from_json(plain)


def test_fields_that_are_absent_take_their_defaults():
    plain = to_json(TWO_HEADS)
    for name in ("ema", "seed", "optimizer"):
        del plain["train"][name]
    assert from_json(plain) == TWO_HEADS


def test_a_trained_system_says_how_and_the_others_do_not():
    for embedder, train in (
        (FineTuned(), None),
        (Pretrained(), Train()),
        (LogMel(), Train()),
    ):
        with pytest.raises(InputError, match="`train` with a fine-tuned embedder, and only there"):
            SystemConfig(embedder, train=train)
    assert SystemConfig(FineTuned(), train=Train())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps >= 1, got 0"),
        ({"batch": 0}, "batch >= 1, got 0"),
        ({"accumulate": 0}, "accumulate >= 1, got 0"),
        ({"log_every": 0}, "log_every >= 1, got 0"),
        ({"save_every": -1}, "save_every >= 1, got -1"),
        ({"ema": 1.0}, r"ema in \[0, 1\), got 1.0"),
        ({"held_out": -0.1}, r"held_out in \[0, 1\), got -0.1"),
        ({"heads": ()}, "at least one head"),
        ({"steps": 3, "accumulate": 4}, r"steps >= accumulate \(4\), got 3: no update"),
        ({"select": "best"}, 'held_out > 0 with select="best"'),
        ({"seed": -1}, "seed >= 0, got -1"),
        ({"source": "disk"}, "source 'auto' or 'resident' or 'streaming', got 'disk'"),
        ({"counted": "epochs"}, "counted .* got 'epochs'"),
        ({"steps": 0, "ema": 2.0}, "(?s)steps >= 1.*ema in"),  # all at once
    ],
)
def test_a_training_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Train(**fields)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_every_head_counts(weight):
    with pytest.raises(InputError, match="a positive weight of a head"):
        HeadConfig(weight=weight)


def test_steps_count_passes_or_updates():
    passes = Train(steps=12, accumulate=4)
    updates = replace(passes, counted="updates")
    assert (passes.passes, passes.unit) == (12, 4)
    assert (updates.passes, updates.unit) == (48, 1)


def test_a_digest_tells_systems_apart():
    other = replace(TWO_HEADS, train=replace(TWO_HEADS.train, seed=1))
    assert digest(TWO_HEADS) == digest(from_json(to_json(TWO_HEADS)))
    assert digest(TWO_HEADS) != digest(other)
