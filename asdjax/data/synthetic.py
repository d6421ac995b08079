"""Made machines in the DCASE 2023 layout: a data set without a download, with known faults.

The sounds are in `asdjax.data.synthetic_machines`; here they are recorded (room, factory noise,
gain) and written. Every clip has its own random generator, so each can be made alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import uuid
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from asdjax.data.download import check_space
from asdjax.data.synthetic_machines import MACHINES, Fault
from asdjax.data.synthetic_signals import bumps, frequencies, hear, noise, room
from asdjax.files import full_disk, write_csv
from asdjax.types import SAMPLE_RATE_HZ, Domain, InputError

REVISION = 1  # of the sounds; raise it when any of them changes
RECIPE = "synthetic.json"  # in the data set's folder: the arguments that made it
SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
GAIN = 0.03  # full scale per unit power
# Kinds of factory noise: spectral slope, bumps in Hz, beats per second and their depth.
FACTORY = {
    "A": (-0.9, (200, 900), 0.7, 0.2),  # ventilation
    "B": (-0.5, (400, 2500), 1.7, 1.2),  # press
    "C": (-0.7, (300, 1500, 4000), 3.1, 0.7),  # conveyor
}
UNREST = {"source": 0.2, "target": 0.25}  # how much recording conditions differ between clips


@dataclass(frozen=True)
class Plan:
    """What one clip is to be; with seed and length it decides every sample."""

    machine: str
    split: str  # "train" or "test"
    domain: Domain
    index: int
    mechanism: str = ""  # "" when normal
    severity: float = 0.0

    @property
    def label(self) -> str:
        return "anomaly" if self.mechanism else "normal"

    @property
    def point(self) -> dict[str, float | str]:
        """The domain's operating points in turn."""
        points = getattr(MACHINES[self.machine], self.domain)
        return points[self.index % len(points)]

    @property
    def name(self) -> str:
        counter = f"{self.domain}_{self.split}_{self.label}_{self.index:04d}"
        attributes = "_".join(f"{key}_{value}" for key, value in self.point.items())
        return f"{self.machine}/{self.split}/section_00_{counter}_{attributes}.wav"


def plan_machine(
    machine: str, train_source: int, train_target: int, test_per_cell: int
) -> list[Plan]:
    """Return one machine's plans; the faults take every mechanism at every severity in turn."""
    faults = list(itertools.product(SEVERITIES, MACHINES[machine].mechanisms))
    plans = []
    for domain, count in (("source", train_source), ("target", train_target)):
        plans += [Plan(machine, "train", domain, i) for i in range(count)]
        for i in range(test_per_cell):
            severity, mechanism = faults[7 * i % len(faults)]  # 7: prime to 15 and 20 faults
            plans.append(Plan(machine, "test", domain, i))
            plans.append(Plan(machine, "test", domain, i, mechanism, severity))
    return plans


def _generator(*words: object) -> np.random.Generator:
    """Return a generator decided by the words alone."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


@lru_cache(maxsize=64)
def _room(seed: int, machine: str, place: str, samples: int) -> np.ndarray:
    return room(_generator(seed, machine, "room", place), samples)


def factory(rng: np.random.Generator, kind: str, samples: int, unrest: float) -> np.ndarray:
    """Return one kind of factory noise [N] of about unit power: coloured, with a slow beat."""
    slope, centers_hz, beat_hz, depth = FACTORY[kind]
    slope += 0.3 * unrest * rng.normal()
    depth *= np.exp(0.7 * unrest * rng.normal())
    hz = frequencies(samples)
    shape = (hz / 1000) ** np.float32(slope) + 2 * bumps(hz, centers_hz, 0.4)
    knots = np.arange(0, samples + 400, 400)
    beat = np.cos(2 * np.pi * (beat_hz * knots / SAMPLE_RATE_HZ + rng.uniform()))
    loudness = np.interp(np.arange(samples), knots, np.exp(depth * beat) / np.i0(depth))
    return loudness * noise(rng, shape, samples)


def render(plan: Plan, seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    """Return one clip [N] float32, full scale 1: the machine in its room, factory noise, gain."""
    machine, samples = MACHINES[plan.machine], round(seconds * SAMPLE_RATE_HZ)
    words = (seed, plan.machine, plan.split, plan.domain, plan.label, plan.index)
    rng, own = _generator(*words), _generator(seed, plan.machine)
    fault = Fault(plan.mechanism, plan.severity, _generator(*words, "fault"))
    point = dict(plan.point)
    place, kind = point.pop("loc", "A"), point.pop("n", "A")
    unrest = UNREST[plan.domain]

    sound = machine.generate(own, rng, fault, samples, **point)
    background_db = 2.5 * unrest * rng.normal() - machine.snr_db
    gain_db = 0.3 * rng.normal()
    heard = hear(sound, _room(seed, plan.machine, place, samples))
    heard += 10 ** (background_db / 20) * factory(rng, kind, samples, unrest)
    return (GAIN * 10 ** (gain_db / 20) * heard).astype(np.float32)


def make(
    out: Path | str,
    *,
    machines: Sequence[str] = tuple(MACHINES),
    train_source: int = 100,
    train_target: int = 10,
    test_per_cell: int = 15,
    seconds: float = 4.0,
    seed: int = 0,
) -> Path:
    """Write a data set of made machines and return `out`, which appears only when complete.

    Each machine's folder holds `train`, `test` and `attributes_00.csv` as in DCASE 2023, and
    `synthetic.csv` with the mechanism and severity of every test clip. A folder made before with
    equal arguments is left as it is.

    Args:
        test_per_cell: normal and anomalous test clips of each domain (4 cells).
        seconds: length of a clip.

    Raises:
        InputError: an unknown machine, a folder that holds something else, or too little room.
    """
    out = Path(out)
    if unknown := sorted(set(machines) - set(MACHINES)):
        known = ", ".join(MACHINES)
        raise InputError(f"no made machine {', '.join(unknown)}; there are: {known}")
    counts = (train_source, train_target, test_per_cell)
    settings = {"machines": list(machines), "counts": counts, "seconds": seconds, "seed": seed}
    recipe = json.dumps({"revision": REVISION, **settings})
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if (out / RECIPE).is_file() and (out / RECIPE).read_text() == recipe:
            return out
        raise InputError(f"{out} is there and holds something else; remove it or name another")

    plans = [plan for machine in machines for plan in plan_machine(machine, *counts)]
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_space(out.absolute().parent, round(2 * seconds * SAMPLE_RATE_HZ) * len(plans))
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with full_disk(out):
            _write_clips(temporary, plans, seconds, seed)
            for machine in machines:
                _write_tables(temporary / machine, [p for p in plans if p.machine == machine])
            (temporary / RECIPE).write_text(recipe)
        if out.exists():
            out.rmdir()  # empty
        return temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_clips(root: Path, plans: Sequence[Plan], seconds: float, seed: int) -> None:
    """Render and write all clips; numpy and scipy leave the threads free to run side by side."""

    def write(plan: Plan) -> None:
        pcm = np.clip(np.rint(32768 * render(plan, seconds, seed)), -32768, 32767)
        with wave.open(str(root / plan.name), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE_HZ, len(pcm), "NONE", "not compressed"))
            file.writeframes(pcm.astype("<i2").tobytes())

    for folder in {(root / plan.name).parent for plan in plans}:
        folder.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, plans))


def _write_tables(folder: Path, plans: Sequence[Plan]) -> None:
    """Write the attributes as the organisers do, and the truth about the test clips."""
    keys = plans[0].point
    header = [f"d{i}{kind}" for i in range(1, len(keys) + 1) for kind in "pv"]
    rows = [[plan.name, *itertools.chain(*plan.point.items())] for plan in plans]
    write_csv(folder / "attributes_00.csv", [["file_name", *header], *rows])
    tests = [plan for plan in plans if plan.split == "test"]
    truth = [[plan.name, plan.mechanism, plan.severity] for plan in tests]
    write_csv(folder / "synthetic.csv", [["file_name", "mechanism", "severity"], *truth])
