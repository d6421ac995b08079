"""The programs that asdjax runs on accelerators, ready to be compiled without one.

A program is what a training or a scorer compiles, with the shapes of its arguments on a mesh of
devices that need not be there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import spectral
from autoencoders import BATCH as VECTORS
from autoencoders import FRAMES
from autoencoders import GFLOP as VECTORS_GFLOP
from finetune import BEATS, EAT, LORA, SAMPLES, STRUCTURES, system
from jax.experimental import pallas as pl
from jax.extend.core import jaxprs_in_params

from asdjax.baseline.training import Frames, train_epoch
from asdjax.baseline.training import start as start_autoencoder
from asdjax.devices import by_device, copied, over, split
from asdjax.models.attention import attention
from asdjax.models.fused import DEPTH
from asdjax.models.system import Architecture
from asdjax.scoring.knn import knn_distance
from asdjax.train.batches import Batch
from asdjax.train.config import Train
from asdjax.train.loop import start
from asdjax.train.optimizer import make_optimizer
from asdjax.train.step import make_front_ends, make_step

FORWARD = {"beats": BEATS[0], "eat": EAT[0]}  # GFLOP of a clip
STEP = {"lora": {"beats": LORA["BEATs"], "eat": LORA["EAT"]}}
STEP["full"] = {name: 3 * flop for name, flop in FORWARD.items()}
MACHINES, STEPS = 7, 40
QUERIES, REFERENCES, WIDTH = 2_000, 1_000_000, 768


@dataclass(frozen=True)
class Program:
    """A jitted function, its arguments as shapes with shardings, and what it has to compute."""

    function: Callable
    arguments: tuple
    rows: int  # clips, vectors or queries in one call, on all devices
    gflop: float | None  # of the matrix products that are needed; None: those of the program
    dtype: str = "bfloat16"  # of most products
    turns: int | None = None  # of loops that end by what they compute


def embed(name: str, mesh, batch: int) -> Program:
    """Return the embedding of int16 clips of 10 s, with statistics pooling."""
    plain = system("full", [STRUCTURES[name]], "bfloat16")._replace(tasks=())
    parts, params = plain.parts(train=False, adapted=False), {}
    for some in (parts.statistics, parts.trainable, parts.frozen):
        params |= placed(some, copied(mesh))
    rows, whole = jax.P("data"), jax.P()
    apply = jax.shard_map(
        plain.apply_of(parts),
        mesh=mesh,
        in_specs=(whole, rows, rows),
        out_specs=rows,
        check_vma=False,
    )
    wave, lengths, _ = clips(mesh, batch)
    gflop = batch * FORWARD[name]
    return Program(jax.jit(apply), (params, wave, lengths), batch, gflop)


def train_step(kind: str, names: Sequence[str], mesh, batch: int, **how: Any) -> Program:
    """Return a step of one system with an encoder for each name; `how` as of `finetune.system`."""
    made = system(kind, [STRUCTURES[name] for name in names], "bfloat16", **how)
    gflop = batch * sum(STEP[kind][name] for name in names)
    return step_of(made, Train(batch=batch), mesh, batch, gflop)


def attention_gradient(name: str, mesh, batch: int) -> Program:
    """Return attention of one layer, with dropout and padding, and all of its gradients."""
    config, rows, whole = STRUCTURES[name], split(mesh), copied(mesh)
    tokens, heads, width = config.token_count(SAMPLES), 12, config.width
    wide = placed([shape((batch, tokens, width), "bfloat16")] * 4, rows)
    padding = placed(shape((batch, tokens), "bool"), rows)
    key = placed(jax.eval_shape(lambda: jax.random.key(0)), whole)
    given = dict(zip("qkv", wide, strict=False))
    if name == "beats":
        given["bias"] = placed(shape((heads, tokens, tokens), "float32"), whole)
        given["gate"] = placed(shape((batch, heads, tokens), "float32"), rows)

    def run(given, slope, padding, key):
        bias = given.pop("bias", None)

        def attend(given, bias):
            def own(rows, whole):
                return attention(**rows, **whole, heads=heads, dropped=0.1)

            return by_device(own, given | {"padding": padding}, {"bias": bias, "key": key})

        with over(mesh):
            out, back = jax.vjp(attend, given, bias)
            return out, back(slope)

    gflop = 6 * 2e-9 * batch * tokens**2 * width  # two products forward, four back
    return Program(jax.jit(run), (given, wide[3], padding, key), batch, gflop)


def spectral_step(mesh, batch: int) -> Program:
    how = Train(batch=batch, optimizer=spectral.OPTIMIZER)
    return step_of(spectral.SYSTEM, how, mesh, batch, None, "float32")


def step_of(made: Architecture, how: Train, mesh, batch: int, gflop, dtype="bfloat16") -> Program:
    parts = made.parts(train=True)
    optimizer = make_optimizer(how.optimizer, parts.trainable, how.steps)
    state = jax.eval_shape(
        lambda *weights: start(*weights, optimizer, how), parts.statistics, parts.trainable
    )
    front_ends = make_front_ends(made.networks, mesh, padded=False)
    step = make_step(parts, front_ends, lambda _, sent: Batch(*sent), how, optimizer, SAMPLES)
    arguments = placed((state, parts.frozen, ()), copied(mesh))
    return Program(step, (*arguments, clips(mesh, batch)), batch, gflop, dtype)


def autoencoders(mesh) -> Program:
    """Return 40 steps of the autoencoders of all machines, each on the next 256 vectors."""
    refuse_several(mesh)
    adam = optax.adam(1e-3)
    one = jax.eval_shape(lambda: start_autoencoder(adam, 0, STEPS))
    states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((MACHINES, *x.shape), x.dtype), one)
    frames = Frames(shape((FRAMES, 128), "float32"), shape((FRAMES,), "bool"))
    batches = shape((MACHINES, STEPS, VECTORS), "int32")
    epoch = jax.jit(jax.vmap(partial(train_epoch, adam), (None, 0, 0)))
    arguments = placed((frames, states, batches), copied(mesh))
    vectors = MACHINES * STEPS * VECTORS
    return Program(epoch, arguments, vectors, MACHINES * STEPS * VECTORS_GFLOP, "float32", STEPS)


def nearest(mesh) -> Program:
    """Return the distances of 2,000 queries to the nearest of 1,000,000 references."""
    refuse_several(mesh)
    rows = (1, QUERIES), (1, REFERENCES)
    values = [shape((*count, WIDTH), "float32") for count in rows]
    arguments = placed((*values, *(shape(count, "int32") for count in rows)), copied(mesh))
    gflop = 2e-9 * QUERIES * REFERENCES * WIDTH
    return Program(knn_distance, arguments, QUERIES, gflop, "float32")


def refuse_several(mesh) -> None:
    if mesh.size > 1:
        raise ValueError("expected --chips 1: every chip would compute all of it")


def clips(mesh, batch: int) -> tuple:
    """Return int16 waves of 10 s, their lengths and labels."""
    sent = shape((batch, SAMPLES), "int16"), shape((batch,), "int32"), shape((batch, 1), "int32")
    return placed(sent, split(mesh))


def products(jaxpr: Any) -> float:
    """Return the GFLOP of the matrix products and convolutions of a traced program."""
    total = 0.0
    for one in jaxpr.eqns:
        out, given = one.outvars[0].aval, [v.aval for v in one.invars]
        if one.primitive.name == "dot_general":
            (contracted, _), _ = one.params["dimension_numbers"]
            total += 2e-9 * out.size * math.prod(given[0].shape[i] for i in contracted)
        elif one.primitive.name == "conv_general_dilated":
            kernel = one.params["dimension_numbers"].rhs_spec
            taps = math.prod(given[1].shape[i] for i in kernel[1:])  # and channels of a group
            total += 2e-9 * out.size * taps / math.prod(one.params["lhs_dilation"])
        else:
            turns = one.params.get("length", 1) if one.primitive.name == "scan" else 1
            inner = [products(each) for each in jaxprs_in_params(one.params)]
            total += turns * (max(inner, default=0) if one.primitive.name == "cond" else sum(inner))
    return total


def kernels(jaxpr: Any) -> dict[tuple[str, float], tuple[pl.CostEstimate, int]]:
    """Return the cost and depth of each Pallas kernel of a traced program.

    They are found by the kernel's name and the bytes of its results, on one device.
    """
    found = {}
    for one in jaxpr.eqns:
        if one.primitive.name == "pallas_call":
            size = sum(v.aval.size * v.aval.dtype.itemsize for v in one.outvars)
            found[one.params["name"], size] = one.params["cost_estimate"], DEPTH
        else:
            for each in jaxprs_in_params(one.params):
                found |= kernels(each)
    return found


def shape(sizes: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def placed(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Return shapes that lie on devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


CASES: dict[str, Callable[..., Program]] = {  # (mesh, batch of all chips) -> Program
    "attention of BEATs": partial(attention_gradient, "beats"),
    "attention of EAT": partial(attention_gradient, "eat"),
    "BEATs embedding": partial(embed, "beats"),
    "BEATs LoRA step": partial(train_step, "lora", ["beats"]),
    "BEATs LoRA, remat hidden": partial(train_step, "lora", ["beats"], remat="hidden"),
    "BEATs LoRA, remat layers": partial(train_step, "lora", ["beats"], remat="layers"),
    "BEATs LoRA, dropout": partial(train_step, "lora", ["beats"], dropout=True),
    "BEATs full step": partial(train_step, "full", ["beats"]),
    "EAT embedding": partial(embed, "eat"),
    "EAT LoRA step": partial(train_step, "lora", ["eat"]),
    "EAT LoRA, cuDNN": partial(train_step, "lora", ["eat"], eat_attention="cudnn"),
    "EAT full step": partial(train_step, "full", ["eat"]),
    "dual LoRA step": partial(train_step, "lora", ["beats", "eat"]),
    "spectral step": spectral_step,
    "autoencoders, 7 machines": lambda mesh, batch: autoencoders(mesh),
    "kNN, 1,000,000 references": lambda mesh, batch: nearest(mesh),
}
