"""Synthetic machines in the DCASE 2023 layout: a data set without a download, with known faults.

Five machines: how they sound, where they run, how they fail; then how they are recorded (room,
factory noise, gain) and written. Every clip has its own random generator, so each can be rendered
alone.

The function of a machine gets `own` (the constants of this one machine: resonances, strengths of
its tones), `rng` (this clip), a `Fault`, and its operating point; it returns a wave of about unit
power. Everything a fault adds grows with its severity and is drawn from the fault's own generator,
so severity 0 is exactly the normal clip.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator

from asdjax.data.download import check_space
from asdjax.data.signals import (
    bumps,
    cosine,
    events,
    frequencies,
    harmonics,
    impulses,
    noise,
    reverberate,
    ring,
    room,
    slow,
    turns,
)
from asdjax.files import full_disk, write_csv
from asdjax.types import SAMPLE_RATE_HZ, Domain, InputError

REVISION = 1  # of the sounds; raise it when any of them changes
RECIPE = "synthetic.json"  # in the data set's folder: the arguments that wrote it
SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
GAIN = 0.03  # full scale per unit power
# Kinds of factory noise: spectral slope, bumps in Hz, beats per second and their depth.
FACTORY = {
    "A": (-0.9, (200, 900), 0.7, 0.2),  # ventilation
    "B": (-0.5, (400, 2500), 1.7, 1.2),  # press
    "C": (-0.7, (300, 1500, 4000), 3.1, 0.7),  # conveyor
}
FAR_SAMPLES = 80  # from the machine to a second microphone, 1.7 m away
COMMON, LEAK = 0.9, 0.05  # see `render`
UNREST = {"source": 0.2, "target": 0.25}  # how much recording conditions differ between clips


# --- the machines


@dataclass(frozen=True)
class Fault:
    """What is wrong with the machine in one clip."""

    mechanism: str  # "" when normal
    severity: float  # 0 (normal) to 1
    rng: Generator

    def of(self, *mechanisms: str) -> list[float]:
        """Return the severity of each mechanism: 0 for those not at work."""
        return [self.severity if m == self.mechanism else 0.0 for m in mechanisms]


FAN_BLADES = 7


def fan(own: Generator, rng: Generator, fault: Fault, samples: int, *, spd: float) -> np.ndarray:
    """Blade-passing tones, weak shaft tones, and turbulence that grows with the speed (rpm)."""
    imbalance, blade, blockage = fault.of("imbalance", "blade", "blockage")
    hz = frequencies(samples)
    angle = turns(rng, spd / 60 * rng.normal(1, 0.008), samples)
    shaft_level = own.uniform(0.5, 1, 3) * [0.15, 0.1, 0.05]
    blade_level = own.uniform(0.5, 1, 4) * [0.5, 0.3, 0.2, 0.1] * rng.lognormal(0, 0.15, 4)
    air_shape = (hz / 500) ** -0.7 + bumps(hz, own.uniform(300, 3000, 3), 0.5)

    wave = harmonics(angle, shaft_level * (1 + 6 * imbalance))
    wave += (1 - 0.5 * blockage) * harmonics(FAN_BLADES * angle, blade_level)
    gust = slow(rng, samples, 0.15)
    if imbalance:
        gust *= 1 + 0.6 * imbalance * cosine(angle)
    if blade:  # one blade differs: tones at every shaft order, and a puff of air per turn
        wave += 0.1 * blade * harmonics(angle, np.ones(4 * FAN_BLADES))
        gust *= 1 + 1.5 * blade * np.exp(4 * cosine(angle) - 4)
    wave += gust * noise(rng, air_shape, samples)
    if blockage:  # stalled flow: a slow low rumble
        rumble = noise(fault.rng, bumps(hz, [120, 300], 0.7), samples)
        wave += 0.6 * blockage * slow(fault.rng, samples, 0.5, hz=6) * rumble
    return (spd / 1500) ** 2.5 * wave


PINION_TEETH, GEAR_TEETH = 23, 59


def gearbox(
    own: Generator, rng: Generator, fault: Fault, samples: int, *, volt: float, wt: float
) -> np.ndarray:
    """Gear mesh with sidebands at both shaft rates; voltage sets the speed, weight the force."""
    eccentric, tooth, wear, dry = fault.of("eccentric", "tooth", "wear", "lubrication")
    hz = frequencies(samples)
    angle = turns(rng, 14 * volt * (1 - wt / 2000) * rng.normal(1, 0.008), samples)
    driven = angle * (PINION_TEETH / GEAR_TEETH) + rng.uniform()
    mesh_level = own.uniform(0.6, 1, 5) * [0.7, 0.5, 0.35, 0.2, 0.1] * rng.lognormal(0, 0.15, 5)
    case_hz = own.uniform(1500, 3500, 2)

    pinion = cosine(angle)
    mesh_level *= 1 + wear * np.array([0.0, 1.0, 1.0, 2.0, 2.5])  # worn flanks: higher harmonics
    mesh = harmonics(PINION_TEETH * angle, mesh_level)
    wave = (1 + (0.12 + 0.7 * eccentric) * pinion + 0.1 * cosine(driven)) * mesh
    rattle = noise(rng, (hz / 500) ** -0.5 + 2 * bumps(hz, case_hz, 0.25), samples)
    wave += 0.35 * (1 + (0.2 + eccentric) * pinion) * rattle
    if tooth:  # the broken tooth strikes the case once per turn of the pinion
        strikes = events(angle, 1, 0.01 * fault.rng.standard_normal(97))
        strength = fault.rng.lognormal(0, 0.2, len(strikes))
        hits = impulses(strikes, 2 * tooth * strength, samples)
        wave += sum(ring(hits, mode_hz, 0.004) for mode_hz in case_hz)
    if dry:
        hiss = noise(fault.rng, bumps(hz, [5000], 0.6), samples)
        wave += 0.2 * dry * (1 + 0.5 * pinion) * hiss
    return (volt / 2) * (1 + wt / 400) * wave


BALLS, BALL_RATIO = 9, 0.22  # number; ball diameter / pitch diameter, at contact angle 0


def bearing(
    own: Generator, rng: Generator, fault: Fault, samples: int, *, vel: float
) -> np.ndarray:
    """Shaft orders and rolling noise; a race defect strikes a resonance at its ball-pass order."""
    outer, inner, dry = fault.of("outer_race", "inner_race", "lubrication")
    hz = frequencies(samples)
    angle = turns(rng, vel * rng.normal(1, 0.008), samples)
    shaft_level = own.uniform(0.4, 1, 5) * [0.5, 0.4, 0.3, 0.2, 0.1] * rng.lognormal(0, 0.15, 5)
    modes_hz = own.uniform(2000, 4800, 3)

    wave = harmonics(angle, shaft_level)
    rolling = noise(rng, (hz / 400) ** -0.6 + 1.2 * bumps(hz, modes_hz, 0.2), samples)
    wave += 0.8 * slow(rng, samples, 0.1) * (1 + 0.1 * cosine(angle)) * rolling
    if outer or inner:
        order = BALLS / 2 * (1 - BALL_RATIO if outer else 1 + BALL_RATIO)
        strikes = events(angle, order, 0.02 * fault.rng.standard_normal(997))
        strength = fault.rng.lognormal(0, 0.2, len(strikes))
        if inner:  # the defect turns with the shaft, in and out of the loaded zone
            strength *= 1 + cosine(np.interp(strikes, np.arange(samples), angle))
        hits = impulses(strikes, 4 * (outer + inner) * strength, samples)
        wave += ring(hits, modes_hz[0], 0.0015)
    if dry:
        scrape = noise(fault.rng, bumps(hz, [3500, 6000], 0.4), samples)
        wave += 0.3 * dry * slow(fault.rng, samples, 0.4, hz=8) * scrape
    return (vel / 10) * wave


SLIDE_MM, DWELL_S, SCREW_MM = 300.0, 0.12, 1.5


def strokes(
    rng: Generator, samples: int, vel: float, ac: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the speed [N] (mm/s, signed) and the samples at mid-stroke [M] and at the stop [M].

    The slide goes back and forth over `SLIDE_MM`, up to `vel` with the acceleration `ac` (in g).
    """
    ramp_s = vel / (ac * 9810)
    travel_s = SLIDE_MM / vel + ramp_s
    stroke_s = travel_s + DWELL_S
    count = np.arange(samples / SAMPLE_RATE_HZ / stroke_s + 1)
    begin_s = (count - rng.uniform()) * stroke_s
    knot_s = begin_s[:, None] + [0, ramp_s, travel_s - ramp_s, travel_s]
    knot_speed = np.outer((-1) ** count, [0, vel, vel, 0])
    speed = np.interp(np.arange(samples) / SAMPLE_RATE_HZ, knot_s.ravel(), knot_speed.ravel())
    return speed, (begin_s + travel_s / 2) * SAMPLE_RATE_HZ, (begin_s + travel_s) * SAMPLE_RATE_HZ


def slider(
    own: Generator, rng: Generator, fault: Fault, samples: int, *, vel: float, ac: float
) -> np.ndarray:
    """A slide rail: screw tone and friction that follow the speed, a knock at each end."""
    stick, dent, dry, loose = fault.of("stick_slip", "rail", "lubrication", "end_stop")
    hz = frequencies(samples)
    speed, middle, stops = strokes(rng, samples, vel * rng.normal(1, 0.01), ac)
    moving = np.abs(speed) / 700
    place = np.cumsum(speed) / SAMPLE_RATE_HZ  # mm
    screw_level = own.uniform(0.5, 1, 4) * [0.6, 0.4, 0.2, 0.1] * rng.lognormal(0, 0.15, 4)
    modes_hz = own.uniform(150, 1500, 2)
    rub_shape = (hz / 800) ** -0.4 + bumps(hz, own.uniform(800, 4000, 3), 0.3)

    wave = moving * harmonics(place / SCREW_MM, screw_level)
    grip = slow(rng, samples, 0.1) * moving
    if stick:  # the slide sticks and jumps every 25 mm
        way = np.cumsum(np.abs(speed)) / SAMPLE_RATE_HZ
        grip *= 1 + stick * (2 * (0.5 + 0.5 * cosine(way / 25)) ** 4 - 0.5)
        jumps = events(way, 1 / 25, 0.05 * fault.rng.standard_normal(97))
        wave += ring(impulses(jumps, 3 * stick, samples), 3200, 0.003)
    wave += grip * noise(rng, rub_shape, samples)
    knocks = impulses(stops, 6 * ac * rng.lognormal(0, 0.1, len(stops)), samples)
    wave += sum(ring(knocks, mode_hz, 0.012) for mode_hz in modes_hz)
    if loose:  # the stop bounces
        late = (stops[:, None] + fault.rng.uniform(200, 900, (len(stops), 3))).ravel()
        bounces = impulses(late, 4 * ac * loose, samples)
        wave += sum(ring(bounces, 1.6 * mode_hz, 0.008) for mode_hz in modes_hz)
    if dent:  # a dent in the middle of the rail
        wave += ring(impulses(middle, 12 * dent * vel / 700, samples), 2600, 0.006)
    if dry:
        wave += 0.4 * dry * moving * noise(fault.rng, bumps(hz, [4500], 0.5), samples)
    return wave


# Opening and closing times in one cycle, and the cycle's length, in seconds.
VALVE_PATTERNS = {
    "00": ([(0.0, 0.45)], 1.0),
    "01": ([(0.0, 0.2), (0.4, 0.6)], 1.1),
    "02": ([(0.0, 0.7)], 1.4),
    "03": ([(0.0, 0.15), (0.3, 0.45), (0.6, 0.75)], 1.3),
}


def switching(rng: Generator, samples: int, pat: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples [M] at which the valve opens and closes; the first may be before 0."""
    pattern, cycle_s = VALVE_PATTERNS[pat]
    cycle_s *= rng.normal(1, 0.01)
    count = np.arange(samples / SAMPLE_RATE_HZ / cycle_s + 1)
    begin_s = (count - rng.uniform()) * cycle_s
    times_s = begin_s[:, None, None] + np.array(pattern)  # [cycles, strokes, 2]
    times_s += 0.002 * rng.standard_normal(times_s.shape)
    opening, closing = times_s.reshape(-1, 2).T * SAMPLE_RATE_HZ
    return opening, closing


def valve(own: Generator, rng: Generator, fault: Fault, samples: int, *, pat: str) -> np.ndarray:
    """Solenoid clicks in a pattern; the flow hisses while the valve is open."""
    leak, delay, missing, seat = fault.of("leak", "delay", "missing", "seat")
    hz = frequencies(samples)
    opening, closing = switching(rng, samples, pat)
    strength = rng.lognormal(0, 0.1, (2, len(opening)))
    modes_hz = own.uniform(600, 4500, 3)
    click_level = own.uniform(1, 2, (2, 3))
    flow = noise(rng, bumps(hz, own.uniform(2500, 6000, 2), 0.5), samples)

    if delay:
        closing = closing + 0.14 * delay * SAMPLE_RATE_HZ * fault.rng.uniform(0.5, 1, len(closing))
    if missing:
        works = fault.rng.uniform(size=len(opening)) > 0.5 * missing
        opening, closing, strength = opening[works], closing[works], strength[:, works]
    is_open = np.zeros(samples)
    for when, step in ((opening, 1), (closing, -1)):
        np.add.at(is_open, np.clip(when, 0, samples - 1).astype(int), step)
    is_open = np.cumsum(is_open)
    wave = 0.2 * (is_open + 0.6 * leak * (1 - is_open)) * flow
    for when, power, levels in zip((opening, closing), strength, click_level, strict=True):
        clicks = impulses(when, power, samples)
        for mode_hz, level in zip(modes_hz, levels, strict=True):
            dull = level * (1 - 0.25 * seat)  # a worn seat: duller, lower, longer
            wave += dull * ring(clicks, mode_hz * (1 - 0.08 * seat), 0.01 * (1 + 0.6 * seat))
    return wave


@dataclass(frozen=True)
class Machine:
    """One machine type: its generator, the operating points of each domain, its faults.

    The keys of an operating point are the attributes in the file names. `loc` (microphone place)
    and `n` (kind of factory noise) act on the recording, all others go to `generate`. The number
    of points shares no factor with the number of mechanisms, so every fault meets every point.
    """

    generate: Callable[..., np.ndarray]
    source: tuple[dict[str, float | str], ...]
    target: tuple[dict[str, float | str], ...]
    mechanisms: tuple[str, ...]
    snr_db: float = 2.0  # unit power against factory noise


def _points(keys: str, *rows: tuple[float | str, ...]) -> tuple[dict[str, float | str], ...]:
    return tuple(dict(zip(keys.split(), row, strict=True)) for row in rows)


MACHINES = {
    "fan": Machine(
        fan,
        _points("spd n", (1000, "A"), (1250, "B"), (1500, "A"), (1750, "B")),
        _points("spd n", (1050, "C"), (1150, "A"), (1350, "C"), (1600, "B"), (1700, "C")),
        ("imbalance", "blade", "blockage"),
    ),
    "gearbox": Machine(
        gearbox,
        _points(
            "volt wt n", (1.5, 0, "A"), (1.5, 50, "B"), (2, 0, "B"), (2.5, 0, "B"), (2.5, 50, "A")
        ),
        _points(
            "volt wt n",
            (1.4, 0, "C"),
            (1.6, 50, "C"),
            (1.8, 100, "A"),
            (2, 100, "C"),
            (2.4, 50, "B"),
        ),
        ("eccentric", "tooth", "wear", "lubrication"),
        snr_db=3.0,
    ),
    "bearing": Machine(
        bearing,
        _points("vel loc n", (6, "A", "A"), (9, "B", "B"), (12, "A", "B"), (15, "B", "A")),
        _points("vel loc n", (5, "C", "C"), (7, "C", "A"), (10, "C", "C"), (13, "C", "B")),
        ("outer_race", "inner_race", "lubrication"),
    ),
    "slider": Machine(
        slider,
        _points("vel ac", (500, 0.1), (500, 0.4), (700, 0.2), (900, 0.4), (900, 0.9)),
        _points("vel ac", (450, 0.2), (650, 0.5), (750, 0.3), (850, 0.6), (1000, 0.9)),
        ("stick_slip", "rail", "lubrication", "end_stop"),
    ),
    "valve": Machine(
        valve,
        _points("pat n", ("00", "A"), ("01", "A"), ("00", "B"), ("01", "B"), ("02", "A")),
        _points("pat n", ("03", "C"), ("00", "C"), ("03", "A"), ("01", "C"), ("02", "B")),
        ("leak", "delay", "missing", "seat"),
    ),
}


# --- the data set


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


def _generator(*words: object) -> Generator:
    """Return a generator decided by the words alone."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


@lru_cache(maxsize=64)
def _room(seed: int, machine: str, place: str, samples: int) -> np.ndarray:
    return room(_generator(seed, machine, "room", place), samples)


def factory(rng: Generator, kind: str, samples: int, unrest: float) -> np.ndarray:
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


def render(
    plan: Plan,
    seconds: float = 4.0,
    seed: int = 0,
    microphones: int = 1,
    common: float = COMMON,
    leak: float = LEAK,
) -> np.ndarray:
    """Return one clip [N] float32, full scale 1: the machine in its room, factory noise, gain.

    Of two microphones [N, 2]: the first is the only one of one; the second is far away from the
    machine, whose amplitude is `leak` of that at the first. As much noise reaches it, of whose
    power the share `common` is the noise of the first by another way, and the rest is noise of the
    same kind of its own.
    """
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
    recorded = reverberate(sound, _room(seed, plan.machine, place, samples))
    background = 10 ** (background_db / 20) * factory(rng, kind, samples, unrest)
    machine_far = leak * np.roll(recorded, FAR_SAMPLES)
    recorded += background
    if microphones == 2:
        noise_far = reverberate(background, _far_path(seed, plan.machine, samples))
        other = factory(_generator(*words, "far"), kind, samples, unrest)
        other *= noise_far.std() / other.std()
        noise_far = common**0.5 * noise_far + (1 - common) ** 0.5 * other
        recorded = np.stack([recorded, (machine_far + noise_far).astype(recorded.dtype)], -1)
    return (GAIN * 10 ** (gain_db / 20) * recorded).astype(np.float32)


def _far_path(seed: int, machine: str, samples: int) -> np.ndarray:
    """Return the response, as of `room`, from near to far of what makes the noise: reflections."""
    rng, path = _generator(seed, machine, "far"), np.zeros(64, np.float32)
    path[0] = 1
    path[rng.integers(4, 64, 4)] = rng.uniform(-0.3, 0.3, 4)
    return np.fft.rfft(path, samples).astype(np.complex64)


def make(
    out: Path | str,
    *,
    machines: Sequence[str] = tuple(MACHINES),
    train_source: int = 100,
    train_target: int = 10,
    test_per_cell: int = 15,
    seconds: float = 4.0,
    seed: int = 0,
    microphones: Literal[1, 2] = 1,
    common: float = COMMON,
    leak: float = LEAK,
) -> Path:
    """Write a data set of synthetic machines and return `out`, which appears only when complete.

    Each machine's folder holds `train`, `test` and `attributes_00.csv` as in DCASE 2023, and
    `synthetic.csv` with the mechanism and severity of every test clip. A folder that equal
    arguments wrote before is left as it is.

    Args:
        test_per_cell: normal and anomalous test clips of each domain (4 cells).
        seconds: length of a clip.
        microphones: 2 writes a near and a far channel, as in DCASE 2026; near is that of 1.
        common, leak: in [0, 1], as of `render`.

    Raises:
        InputError: an unknown machine, shares outside [0, 1], a folder that holds something else,
            or too little room.
    """
    out = Path(out)
    if not (0 <= common <= 1 and 0 <= leak <= 1):
        raise InputError(f"expected shares in [0, 1], got common={common}, leak={leak}")
    if unknown := sorted(set(machines) - set(MACHINES)):
        known = ", ".join(MACHINES)
        raise InputError(f"no synthetic machine {', '.join(unknown)}; there are: {known}")
    counts = (train_source, train_target, test_per_cell)
    settings = {"machines": list(machines), "counts": counts, "seconds": seconds, "seed": seed}
    if microphones == 2:
        settings |= {"microphones": microphones, "common": common, "leak": leak}
    recipe = json.dumps({"revision": REVISION, **settings})
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if (out / RECIPE).is_file() and (out / RECIPE).read_text() == recipe:
            return out
        raise InputError(f"{out} is there and holds something else; remove it or name another")

    plans = [plan for machine in machines for plan in plan_machine(machine, *counts)]
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_space(
        out.absolute().parent, round(2 * microphones * seconds * SAMPLE_RATE_HZ) * len(plans)
    )
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with full_disk(out):
            how = {"seconds": seconds, "seed": seed, "microphones": microphones}
            how |= {"common": common, "leak": leak}
            _write_clips(temporary, plans, partial(render, **how))
            for machine in machines:
                _write_tables(temporary / machine, [p for p in plans if p.machine == machine])
            (temporary / RECIPE).write_text(recipe)
        if out.exists():
            out.rmdir()  # empty
        return temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_clips(root: Path, plans: Sequence[Plan], rendered: Callable) -> None:
    """Render and write all clips; numpy and scipy leave the threads free to run side by side."""
    import soundfile

    def write(plan: Plan) -> None:
        pcm = np.clip(np.rint(32768 * rendered(plan)), -32768, 32767)
        soundfile.write(root / plan.name, pcm.astype(np.int16), SAMPLE_RATE_HZ)

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
