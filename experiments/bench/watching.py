"""How much a detector takes: machines watched at once, files in a second.

    python experiments/bench/watching.py [--machines 200] [--files 1000] > FILE.json

Detectors are fitted to synthetic machines; of BEATs base, with random weights, only windows in a
second are counted. `files / embedding` is the speed of scoring files by a detector over that of the
embedding stage of a run on the same files, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np

import asdjax
from asdjax.data import audio, synthetic
from asdjax.detector.detector import Detector
from asdjax.detector.watch import Part, Watch
from asdjax.models import weights_file
from asdjax.models.backbone import initialize
from asdjax.models.beats import BeatsConfig
from asdjax.models.weights_file import Header
from asdjax.recipes import RECIPES
from asdjax.stages import embed
from asdjax.types import Clip, Embeddings

ROUNDS = 5
SECONDS = 10.0  # of a window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machines", type=int, default=200)
    parser.add_argument("--files", type=int, default=1000)
    given = parser.parse_args()
    rows = []
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = synthetic.make(folder / "data", seconds=SECONDS, train_source=20, test_per_cell=5)
        for recipe in ("frozen/logmel", "beyond/logmel", "small/dual"):
            detector = fitted(recipe, data)
            rows.append({"detector": recipe, **watched(detector, given.machines, folder)})
        rows.append({"detector": "frozen/beats", **watched(beats(folder, data), 1, folder)})
        ratio = files_per_embedding(fitted("frozen/logmel", data), data, given.files)
    about = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "date": str(datetime.date.today()),
        "jax": jax.__version__,
        "commit": _commit(),
    }
    print(json.dumps({"rows": rows, "files / embedding": ratio, **about}, indent=1))


def fitted(recipe: str, data: Path) -> Detector:
    """Return a detector of five machines; one that trains does so for a few steps."""
    config = RECIPES[recipe].config
    if config.train is not None:
        config = replace(config, train=replace(config.train, steps=20))
        config = replace(config, audio=replace(config.audio, seconds=SECONDS))
    return asdjax.Detector.fit(data, config)


def beats(folder: Path, data: Path) -> Detector:
    """Return a detector by BEATs base with random weights, of one machine."""
    path, config = folder / "beats.safetensors", BeatsConfig.base()
    weights_file.save(path, initialize(config), Header("beats", asdict(config)))
    system = RECIPES["frozen/beats"].config
    system = system.with_backbones({system.backbones[0]: str(path)})
    return asdjax.Detector.fit(data / "fan" / "train", system)


def watched(detector: Detector, machines: int, folder: Path) -> dict:
    """Return windows in a second of that many machines, each with as many normal clips."""
    one = detector.machines[0]
    every = []
    for g in range(machines):
        clips = tuple(replace(clip, machine=f"m{g}") for clip in one.normal.clips)
        every.append(replace(one, normal=Embeddings(clips, one.normal.values)))
    path, state = folder / "detector", folder / f"state {len(list(folder.iterdir()))}"
    replace(detector, machines=tuple(every)).save(path)
    state.mkdir()
    rng = np.random.default_rng(0)
    waves = (3000 * rng.standard_normal((20, round(16000 * SECONDS)))).astype(np.int16)
    began = time.perf_counter()
    watch = Watch(path, state, lambda line: None)
    windows = machines if machines > 1 else 8

    def take() -> None:
        names = [f"m{i % machines}" for i in range(windows)]
        parts = [
            Part(watch.machines[name], name, 0.0, time.time(), waves[i % len(waves)])
            for i, name in enumerate(names)
        ]
        for start in range(0, windows, 32):
            watch.take(parts[start : start + 32])

    take()
    first = time.perf_counter() - began
    rate = windows / median_of(take, ROUNDS if machines > 1 else 2)
    return {
        "machines": machines,
        "normal clips of each": len(one.normal.clips),
        "windows of 10 s in a second": round(rate, 2),
        "machines at a window a minute": round(60 * rate),
        "real-time factor": round(SECONDS * rate, 1),
        "seconds to load and score all once, compiling": round(first, 2),
    }


def files_per_embedding(detector: Detector, data: Path, files: int) -> dict:
    """Return the time of a run's checking and embedding over that of `judge_files`."""
    paths = sorted(data.glob("fan/*/*.wav"))
    paths = (paths * (files // len(paths) + 1))[:files]
    group, system = ("fan", "section_00"), detector.system
    clips = [Clip(path, *group, "test") for path in paths]
    compute = embed.make_embed(embed.embedder_of(system, {}), system, files)

    def run() -> None:
        infos, _ = audio.verify(paths, system.audio.channel)
        embed.embed_in_memory(compute, clips, [infos[path] for path in paths])

    def detect() -> None:
        detector.judge_files(paths, "fan")

    run(), detect()
    turns = [(median_of(run, 1), median_of(detect, 1)) for _ in range(ROUNDS)]
    ratios = [ours / scored for ours, scored in turns]
    return {
        "files": files,
        "ratio": round(statistics.median(ratios), 3),
        "range": [min(ratios), max(ratios)],
    }


def median_of(call: Callable[[], None], times: int = ROUNDS) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def _commit() -> str:
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
