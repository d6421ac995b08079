"""Time the training of the baseline's autoencoders: all machines at once, in turn, and PyTorch.

    pip install ".[bench]"
    python experiments/bench/autoencoders.py [--machines 7] [--steps 40] [--rounds 7] [--out FILE]

Every side trains on batches of 256 vectors out of random frames that lie on the device. A round is
one call of every side, one after the other, so that a drift of the machine's speed hits all of
them; ratios are medians over the rounds. PyTorch runs in a process of its own, eager, for one
machine, on stacked vectors that it only has to index: the organisers' data loader, which collects
each batch vector by vector, is left out. What limits: on CPUs the matrix products (0.37 GFLOP a
step: 267,928 weights, 256 vectors, forward and back but to the input), on GPUs the launches of
small kernels. On a CPU that others use the ratio of "in turn" to "at once" means nothing: the
latter needs all cores at the same time.

The last rows are features and scores of 100 clips of 12 s; with them the time for one machine of
1,000 such clips is worked out: 130,800 steps of 100 epochs, held-out vectors, features, both scores
of 1,200 clips. Prints a table, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from compare import machine

from asdjax.baseline.network import log_mel, score_clips
from asdjax.baseline.training import Frames, for_all, make_batches, measure, start, train_epoch

FRAMES, BATCH, CLIPS, CLIP_SAMPLES = 50_000, 256, 100, 192_000
STEPS_OF_MACHINE, HELD_OUT_BATCHES = 130_800, 14_600  # 1,000 clips of 12 s, 100 epochs
GFLOP = 0.369


def frames() -> np.ndarray:
    """Return `[F, 128]`: what every side trains on."""
    return np.random.default_rng(0).normal(-40, 5, (FRAMES, 128)).astype(np.float32)


def ours(machines: int, steps: int) -> dict[str, Callable[[], object]]:
    """Return calls that train, check held-out batches, compute features and scores."""
    adam, names = optax.adam(1e-3), list(map(str, range(machines)))
    own = dict.fromkeys(names, np.arange(BATCH * steps, dtype=np.int32))
    states = dict.fromkeys(names, start(adam, 0, steps))
    stored = Frames(frames(), np.zeros(FRAMES, bool))
    stored, batches = jax.device_put((stored, make_batches(own, BATCH, (0, 1))))
    epoch = for_all(partial(train_epoch, adam))
    check = for_all(lambda *machine: measure(*machine).error)
    each = [({name: states[name]}, {name: batches[name]}) for name in names]
    wave = np.random.default_rng(1).integers(-3000, 3000, (CLIPS, CLIP_SAMPLES), np.int16)
    square = np.eye(128, dtype=np.float32)
    weights = states["0"].trainable | states["0"].statistics
    weights |= {f"precision.{domain}": square for domain in ("source", "target")}
    lengths, score = np.full(CLIPS, CLIP_SAMPLES), jax.jit(score_clips)
    return {
        "at once": lambda: epoch(stored, states, batches),
        "in turn": lambda: [jax.block_until_ready(epoch(stored, *one)) for one in each],
        "held out": lambda: check(stored, *each[0]),
        "features": lambda: log_mel(wave),
        "scores": lambda: score(weights, wave, lengths),
    }


class Torch:
    """The peer's process."""

    def __init__(self, steps: int):
        path = Path(__file__).with_name("torch_autoencoder.py")
        words = [sys.executable, str(path), str(steps)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(words, **pipes)
        self.described = json.loads(self.process.stdout.readline())

    def seconds(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machines", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the row to this JSON file")
    given = parser.parse_args()
    peer, calls = Torch(given.steps), ours(given.machines, given.steps)
    first = {name: seconds(call) for name, call in calls.items()}
    rounds = []
    for _ in range(given.rounds):
        times = {name: seconds(call) for name, call in calls.items()}
        rounds.append({**times, "PyTorch": peer.seconds()})
    peer.process.stdin.close()
    peer.process.wait()
    row = summary(rounds, given) | {"first_call_s": first, "theirs": peer.described}
    row |= {"machine": machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for name, value in row["milliseconds"].items():
        print(f"{name:24}{value:10.2f} ms")
    for name in ("in turn / at once", "PyTorch / in turn", "PyTorch / at once"):
        print(f"{name:24}{row[name]:10.2f} x")
    print(f"{'one machine (computed)':24}{row['one_machine_s']:10.0f} s")
    if given.out:
        given.out.write_text(json.dumps([row], indent=1) + "\n")
    print(json.dumps(row))


def summary(rounds: list[dict[str, float]], given: argparse.Namespace) -> dict:
    """Return milliseconds of a step of one machine and of one clip, and the ratios."""
    steps = given.machines * given.steps
    units = {"PyTorch": given.steps, "held out": given.steps, "features": CLIPS, "scores": CLIPS}
    each = {name: 1e3 / units.get(name, steps) for name in rounds[0]}
    found = {name: unit * statistics.median(r[name] for r in rounds) for name, unit in each.items()}

    def ratio(slow: str, quick: str) -> float:
        """Return how many times as long a step of one machine takes."""
        return statistics.median(each[slow] * r[slow] / (each[quick] * r[quick]) for r in rounds)

    total = found["in turn"] * STEPS_OF_MACHINE + found["held out"] * HELD_OUT_BATCHES
    total += found["features"] * 1_000 + found["scores"] * 1_200
    return {
        "case": f"autoencoders, {given.machines} machines, {given.steps} steps of 256 vectors",
        "milliseconds": found,
        "in turn / at once": ratio("in turn", "at once"),
        "PyTorch / in turn": ratio("PyTorch", "in turn"),
        "PyTorch / at once": ratio("PyTorch", "at once"),
        "one_machine_s": total / 1e3,
        "at_once_gflop_s": 1e3 * GFLOP / found["at once"],
        "rounds": len(rounds),
    }


if __name__ == "__main__":
    main()
