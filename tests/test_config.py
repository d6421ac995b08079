"""A system as a value: its JSON form, and values that contradict themselves."""

import json
from dataclasses import replace

import pytest
from machines import one_encoder

from asdjax.config import SystemConfig, from_json, to_json
from asdjax.losses.adacos import AdaCos
from asdjax.losses.margin import Margin
from asdjax.models.logmel import LogMel
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.recipes import RECIPES
from asdjax.train.config import HeadConfig, Train
from asdjax.types import InputError

HEADS = HeadConfig(AdaCos(16, trained=False), "machine", 0.5), HeadConfig(Margin("am-softmax", 0.1))
TWO_HEADS = SystemConfig(
    one_encoder("x.safetensors", Lora(targets=("q", "layers.1*.v"))), train=Train(heads=HEADS)
)
SYSTEMS = {n: r.config for n, r in RECIPES.items() if isinstance(r.config, SystemConfig)}
EVERY = SYSTEMS | {"two heads": TWO_HEADS}


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


@pytest.mark.parametrize("place", [[], ["train"], ["train", "optimizer"], ["encoders", 0]])
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
    with pytest.raises(InputError, match="expected `train` for Pretrained, got none"):
        SystemConfig((Pretrained(),))
    with pytest.raises(InputError, match="expected encoders that training changes"):
        SystemConfig((Pretrained(), LogMel()), train=Train())
    with pytest.raises(InputError, match="encoders: expected at least one"):
        SystemConfig(())
    assert SystemConfig((Pretrained(),), train=Train())
    assert SystemConfig((Pretrained(pooling="cls", embedding=None), LogMel()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps: expected >= 1, got 0"),
        ({"batch": 0}, "batch: expected >= 1, got 0"),
        ({"accumulate": 0}, "accumulate: expected >= 1, got 0"),
        ({"log_every": 0}, "log_every: expected >= 1, got 0"),
        ({"save_every": -1}, "save_every: expected >= 1, got -1"),
        ({"ema": 1.0}, r"ema: expected in \[0, 1\), got 1.0"),
        ({"held_out": -0.1}, r"held_out: expected in \[0, 0.5\], got -0.1"),
        ({"heads": ()}, "at least one that separates classes"),
        ({"steps": 3, "accumulate": 4}, r"steps: expected >= accumulate \(4\), for one update"),
        ({"select": "best"}, "held_out: expected > 0 with select 'best'"),
        ({"seed": -1}, "seed: expected >= 0, got -1"),
        ({"source": "disk"}, "source: expected 'auto' or 'resident' or 'streaming', got 'disk'"),
        ({"counted": "epochs"}, "counted: expected .* got 'epochs'"),
        ({"steps": 0, "ema": 2.0}, "steps: expected >= 1.*ema: expected in"),  # all at once
    ],
)
def test_a_training_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Train(**fields)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_every_head_counts(weight):
    with pytest.raises(InputError, match=r"HeadConfig\.weight: expected > 0, got"):
        HeadConfig(weight=weight)
    with pytest.raises(InputError, match="branch_weights: expected > 0, got"):
        HeadConfig(branch_weights=(1.0, weight))


def test_subcenters_are_given_once_for_each_name():
    with pytest.raises(InputError, match="each machine or class once, not fan again"):
        HeadConfig(subcenters=(("fan", 2), ("pump", 2), ("fan", 3)))
    with pytest.raises(InputError, match=r"whole numbers >= 1, not 0 of a, 1\.5 of b"):
        HeadConfig(subcenters=(("a", 0), ("b", 1.5), ("c", 1)))


def test_losses_of_branches_are_for_all_of_them_or_none():
    heads = (HeadConfig(branch_weights=(0.5, 0.5)),)
    with pytest.raises(
        InputError, match=r"branch_weights for 1 encoders or none, got \[0.5, 0.5\]"
    ):
        SystemConfig((Pretrained(),), train=Train(heads=heads))


def test_backbones_are_named_once_each_and_replaced_by_name():
    dual = SYSTEMS["aithu2024/dual"]
    assert dual.backbones == ("beats-iter3", "eat-base")
    changed = dual.with_backbones({"eat-base": "e.safetensors"})
    assert changed.backbones == ("beats-iter3", "e.safetensors")
    assert changed.with_backbones({"e.safetensors": "eat-base"}) == dual
    frozen = SYSTEMS["frozen/beats"].with_backbones({"beats-iter3": "b.safetensors"})
    assert [encoder.weights for encoder in frozen.encoders] == ["b.safetensors"]
    assert SYSTEMS["frozen/logmel"].backbones == ()


def test_steps_count_passes_or_updates():
    passes = Train(steps=12, accumulate=4)
    updates = replace(passes, counted="updates")
    assert (passes.micro_batches, passes.unit) == (12, 4)
    assert (updates.micro_batches, updates.unit) == (48, 1)
