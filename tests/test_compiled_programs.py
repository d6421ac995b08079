"""What `experiments/bench/hlo.py` reads from the text of a compiled program."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.extend.core import jaxprs_in_params
from machines import tiny_beats

from asdjax.devices import data_mesh
from asdjax.train.config import Train

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "bench"))
import aot
import finetune
import hlo
import programs
import targets

TEXT = """\
HloModule jit_step, is_scheduled=true

%fused_product (param_0: bf16[8,16], param_1: bf16[12,16,4]) -> f32[8,4] {
  %param_1 = bf16[12,16,4]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,16,4]{2,1,0} dynamic-slice(%param_1, %zero, %zero, %zero)
  %weight = bf16[16,4]{1,0} bitcast(%slice)
  %param_0 = bf16[8,16]{1,0} parameter(0)
  ROOT %dot = f32[8,4]{1,0} dot(%param_0, %weight), lhs_contracting_dims={1}
}

%fused_update (param_0.1: f32[100,4], param_1.1: f32[8,4]) -> f32[100,4] {
  %param_0.1 = f32[100,4]{1,0} parameter(0)
  %param_1.1 = f32[8,4]{1,0} parameter(1)
  %at = s32[] constant(3)
  ROOT %update = f32[100,4]{1,0} dynamic-update-slice(%param_0.1, %param_1.1, %at, %at)
}

%body (state: (bf16[8,16], bf16[12,16,4], f32[100,4])) -> (bf16[8,16], bf16[12,16,4], f32[100,4]) {
  %state = (bf16[8,16]{1,0}, bf16[12,16,4]{2,1,0}, f32[100,4]{1,0}) parameter(0)
  %x = bf16[8,16]{1,0:T(8,128)} get-tuple-element(%state), index=0
  %w = bf16[12,16,4]{2,1,0} get-tuple-element(%state), index=1
  %y = f32[100,4]{1,0} get-tuple-element(%state), index=2
  %product = f32[8,4]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused_product, \
metadata={op_name="jit(step)/dot"}, backend_config={"window_config":{"estimated_cycles":"70"}}
  %kept = f32[100,4]{1,0} fusion(%y, %product), kind=kLoop, calls=%fused_update
  ROOT %next = (bf16[8,16]{1,0}, bf16[12,16,4]{2,1,0}, f32[100,4]{1,0}) tuple(%x, %w, %kept)
}

%condition (state.1: (bf16[8,16], bf16[12,16,4], f32[100,4])) -> pred[] {
  %state.1 = (bf16[8,16]{1,0}, bf16[12,16,4]{2,1,0}, f32[100,4]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x.1: bf16[8,16], w.1: bf16[12,16,4], y.1: f32[100,4]) -> f32[100,4] {
  %x.1 = bf16[8,16]{1,0} parameter(0)
  %w.1 = bf16[12,16,4]{2,1,0} parameter(1)
  %y.1 = f32[100,4]{1,0} parameter(2)
  %given = (bf16[8,16]{1,0}, bf16[12,16,4]{2,1,0}, f32[100,4]{1,0}) tuple(%x.1, %w.1, %y.1)
  %loop = (bf16[8,16]{1,0}, bf16[12,16,4]{2,1,0}, f32[100,4]{1,0}) while(%given), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %all = f32[100,4]{1,0} get-tuple-element(%loop), index=2
  %sums = f32[100,4]{1,0} all-reduce(%all), replica_groups={{0,1}}, to_apply=%add
  %gemm = (f32[100,100]{1,0}, s8[64]{0}) custom-call(%sums, %sums), \
custom_call_target="__cublas$gemm"
  ROOT %copy = f32[100,4]{0,1} copy(%sums), backend_config={"estimated_cycles":"5"}
}
"""


@pytest.fixture(scope="module")
def works():
    return {work.name: work for work in hlo.read(TEXT)}


def test_loops_count_as_often_as_they_turn(works):
    assert works.keys() == {"product", "kept", "sums", "gemm", "copy"}
    assert {name: work.times for name, work in works.items() if work.times > 1} == {
        "product": 12,
        "kept": 12,
    }
    assert (works["product"].cycles, works["copy"].cycles) == (70, 5)
    assert works["product"].label == "jit(step)/dot"


def test_a_loop_of_unknown_turns_is_refused_unless_told():
    text = TEXT.replace('"known_trip_count":{"n":"12"}', "")
    with pytest.raises(ValueError, match="how often loop turns"):
        hlo.read(text)
    assert {work.times for work in hlo.read(text, 5)} == {1, 5}
    counted = """  %i = s32[] get-tuple-element(%state.1), index=3
  %end = s32[] constant(9)
  ROOT %more = pred[] compare(%i, %end), direction=LT"""
    assert "ROOT %more = pred[] constant(true)" in text
    scan = text.replace("  ROOT %more = pred[] constant(true)", counted)
    assert {work.times for work in hlo.read(scan)} == {1, 9}


def test_bytes_are_what_is_read_and_written_once(works):
    assert works["product"].bytes == 2 * 8 * 16 + 2 * 16 * 4 + 4 * 8 * 4  # one slice of twelve
    assert works["kept"].bytes == 2 * 4 * 8 * 4  # the update alone, read and written
    assert works["sums"].bytes == 2 * 4 * 100 * 4
    assert works["gemm"].bytes == 2 * 4 * 100 * 4 + 4 * 100 * 100  # without its scratch memory


def test_what_is_scheduled_while_devices_talk(works):
    assert works["sums"].beside == ()
    begun = TEXT.replace(
        "%sums = f32[100,4]{1,0} all-reduce(%all)",
        """%begun = f32[100,4]{1,0} \
all-reduce-start(%all), replica_groups={{0,1}}, to_apply=%add
  %meanwhile = f32[100,4]{1,0} negate(%all)
  %sums = f32[100,4]{1,0} all-reduce-done(%begun)""",
    )
    found = {work.name: work for work in hlo.read(begun)}
    assert found.keys() == {"product", "kept", "begun", "meanwhile", "gemm", "copy"}
    assert found["begun"].beside == ("meanwhile",)
    assert (found["begun"].kind, found["begun"].result) == ("collective", 4 * 100 * 4)


def test_kinds_are_by_what_is_fused(works):
    kinds = {name: work.kind for name, work in works.items()}
    assert kinds == {
        "product": "product",
        "kept": "movement",
        "sums": "collective",
        "gemm": "product",
        "copy": "movement",
    }
    summed = hlo.by_kind(list(works.values()))
    assert summed["product"] == {
        "kernels": 13,
        "bytes": 12 * works["product"].bytes + works["gemm"].bytes,
        "cycles": 12 * 70,
    }
    assert summed["collective"]["bytes"] == works["sums"].bytes


def test_a_real_program_moves_what_goes_in_and_out():
    """One fusion: x and y in, their sum's exponential out."""
    function = jax.jit(lambda x, y: jnp.exp(x + y) * 2)
    x = jax.ShapeDtypeStruct((1000,), "float32")
    works = hlo.read(function.lower(x, x).compile().as_text())
    assert sum(work.times * work.bytes for work in works) == 3 * 4 * 1000
    assert {work.kind for work in works} == {"elementwise"}


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("f32[2,3]{1,0:T(8,128)}", 24),
        ("(bf16[4], (pred[], s4[6]))", 12),
        ("f8e4m3fn[10]", 10),
        ("c64[2]", 16),
        ("token[]", 0),
        ("s32[]", 4),
    ],
)
def test_sizes_of_types(kind, size):
    assert hlo.size(kind) == size


def test_products_are_counted_with_their_gradients_and_turns():
    def loss(x, w):
        y, _ = jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, length=3)
        return y.sum()

    x, w = jax.ShapeDtypeStruct((5, 7), "float32"), jax.ShapeDtypeStruct((7, 7), "float32")
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, w)
    # Forward, and back to x and to w.
    assert programs.products(traced.jaxpr.jaxpr) == pytest.approx(2e-9 * 3 * 3 * 5 * 7 * 7)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_count_the_taps_that_are_there(stride):
    def convolve(x, kernel):
        return jax.lax.conv(x, kernel, (stride,), "VALID").sum()

    x, kernel = (jax.ShapeDtypeStruct(s, "float32") for s in ((2, 3, 21), (4, 3, 5)))
    forward = jax.jit(convolve).trace(x, kernel)
    out = 17 if stride == 1 else 9
    expected = 2e-9 * 2 * 4 * out * 3 * 5
    assert programs.products(forward.jaxpr.jaxpr) == pytest.approx(expected)
    both = jax.jit(jax.value_and_grad(convolve, 1)).trace(x, kernel)
    assert programs.products(both.jaxpr.jaxpr) == pytest.approx(2 * expected)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_of_a_step_each_device_computes_its_own_clips(kind, monkeypatch):
    """What XLA cannot split, or splits badly, lies inside `shard_map`; so are adapters' sums."""
    structure = replace(tiny_beats(), encoder_embed_dim=128, dropout=0.1)
    monkeypatch.setattr(programs, "SAMPLES", 16_000)
    made = finetune.system(kind, [structure], "bfloat16")
    mesh = data_mesh(jax.devices()[:2])
    program = programs.step_of(made, Train(batch=4), mesh, 4, 1.0)
    traced = program.function.trace(*program.arguments)
    whole, own = Counter(), Counter()
    count(traced.jaxpr.jaxpr, whole, own)
    for name in ("pallas_call", "conv_general_dilated"):
        assert own[name] > whole[name] == 0, name
    text = traced.lower().compile().as_text()
    collectives = [work for work in hlo.read(text) if work.kind == "collective"]
    trained = sum(4 * x.size for x in jax.tree.leaves(program.arguments[0].trainable))
    assert "all-gather" not in text
    sent = sum(work.result for work in collectives)
    assert trained < sent < trained + 20_000  # and the statistics of the pooling's two norms


def count(jaxpr, whole, own):
    """Count primitives outside and inside `shard_map`."""
    for one in jaxpr.eqns:
        whole[one.primitive.name] += 1
        inside = own if one.primitive.name == "shard_map" else whole
        for each in jaxprs_in_params(one.params):
            count(each, inside, own)


def test_sums_over_devices_take_the_time_of_their_links():
    """256 v5e chips are a torus of 16 x 16; of 64 the edges are open."""
    v5e, h100 = (targets.TARGETS[name] for name in ("v5e", "h100"))
    torus, grid = v5e.sent_s(1e9, 256, summed=True), v5e.sent_s(1e9, 64, summed=True)
    cards = h100.sent_s(1e9, 8, summed=True)
    # Twice 255 / 256 of 1 GB at 200 GB/s, and twice 8 steps along both axes.
    assert torus == pytest.approx(2 * 255 / 256 / 200 + 32e-6)
    assert grid == pytest.approx(2 * 63 / 64 / 100 + 32e-6)
    assert cards == pytest.approx(2 * 7 / 8 / 450 + 20e-6)
    assert v5e.sent_s(1e9, 256, summed=False) == pytest.approx(torus / 2)


def kernel(name="k.1", label="jit(step)/attention_forward/pallas_call", size=400.0):
    return hlo.Work(name, "kernel", "custom-call", label, 3, 1e6, 0, size)


def test_kernels_have_a_cost_of_their_own_or_the_instrument_refuses():
    h100, v5e = (targets.TARGETS[name] for name in ("h100", "v5e"))
    cost = pl.CostEstimate(flops=79 * 10**9, transcendentals=0, bytes_accessed=1)
    costs = {("attention_forward", 400.0): (cost, 64)}
    works, seconds = aot.with_kernels([kernel()], costs, h100)
    assert seconds == pytest.approx(3 * 79e9 / 395e12)  # three times, at half of the rate
    assert works[0].cycles == 0
    works, seconds = aot.with_kernels([kernel()], costs, v5e)
    assert seconds == pytest.approx(3 * 79e9 / (197e12 / 2 * 64 / 128))
    assert works[0].cycles == pytest.approx(seconds / 3 * 1.5e9, abs=1)
    with pytest.raises(ValueError, match=r"k\.1: no cost"):
        aot.with_kernels([kernel(size=401.0)], costs, h100)
    with pytest.raises(ValueError, match="found none"):
        aot.with_kernels([], costs, h100)


def test_what_is_beside_two_collectives_hides_one_of_them():
    v5e = targets.TARGETS["v5e"]

    def work(name, opcode, size=0.0, cycles=0, beside=()):
        kind = "collective" if size else "elementwise"
        return hlo.Work(name, kind, opcode, "", 1, 0.0, cycles, size, beside)

    took = v5e.sent_s(1e8, 8, summed=True)
    half = round(took / 2 * v5e.ghz * 1e9)
    works = [
        work("first", "all-reduce-start", 1e8, beside=("second", "meanwhile")),
        work("second", "all-reduce-start", 1e8, beside=("meanwhile",)),
        work("meanwhile", "fusion", cycles=half),
        work("alone", "all-reduce", 1e8),
    ]
    found = {one["name"]: one["waited_s"] for one in aot.collectives(works, v5e, 8)}
    assert found == pytest.approx({"first": took / 2, "second": took, "alone": took}, rel=1e-6)
    with pytest.raises(ValueError, match="reduce-scatter is not known"):
        aot.collectives([work("other", "reduce-scatter", 1e8)], v5e, 8)
