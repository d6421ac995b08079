"""From wav files to scores to time: the recordings, the network, and the commands of both sides.

1,050 clips of 10 s of the five synthetic machines, as a development year has them in small; a BEATs
of 4 layers and width 192 with random weights. Each side is a command that starts a process, reads
the files, computes and writes one csv of scores for each machine; ours is `asdjax run`, with the
programs that it compiled in its first call. It is ended when it has written `results.csv`: figures,
which the peer (`torch_pipeline.py`) does not draw, do not count.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from asdjax.models.beats import BeatsConfig

PLACE = Path(tempfile.gettempdir()) / "asdjax-bench"
TINY = BeatsConfig.base(
    embed_dim=128,
    encoder_layers=4,
    encoder_embed_dim=192,
    encoder_ffn_embed_dim=768,
    encoder_attention_heads=3,
    conv_pos=32,
    conv_pos_groups=4,
)
WEIGHTS = PLACE / "tiny.safetensors"
TRAINING = ("--train.steps", 100, "--train.batch", 8, "--train.accumulate", 1)
WARMUP = "--train.optimizer.schedule.warmup", 10
RECIPES = {  # kind -> recipe and its options
    "frozen": ("frozen/beats", "--weights", WEIGHTS),
    "lora": ("aithu2024/beats-lora-flat", "--weights", WEIGHTS, *TRAINING, *WARMUP),
    "small": ("small/dual", "--audio.seconds", 10),
}


def recordings() -> Path:
    """Return the folder of the recordings, which are made once."""
    from asdjax.data import synthetic

    return synthetic.make(
        PLACE / "recordings", train_source=140, train_target=10, test_per_cell=15, seconds=10.0
    )


def write_weights() -> None:
    """Write the file of the network's weights."""
    from asdjax.models.backbone import initialize
    from asdjax.models.weights_file import Header, save

    PLACE.mkdir(parents=True, exist_ok=True)
    save(WEIGHTS, initialize(TINY), Header("beats", asdict(TINY)))


def command(kind: str, peer: bool) -> Callable[[], np.ndarray]:
    """Return a function that runs a command and returns all its scores, or those of a training.

    Args:
      kind: a name in `RECIPES`.
      peer: run the peer's command, not ours.

    Returns:
      All scores where nothing trains, else the mean AUC: two trainings give different scores.
    """
    data, words = recordings(), ["-m", "asdjax", "run", *RECIPES[kind]]
    write_weights()
    if peer:
        words = [Path(__file__).with_name("torch_pipeline.py"), kind, "--weights", WEIGHTS]
    cache = os.environ | {"ASDJAX_HOME": str(PLACE / "home")}

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as out:
            given = [sys.executable, *map(str, words), "--data", str(data), "--out", f"{out}/run"]
            told, results = Path(out) / "told.txt", Path(out) / "run" / "results.csv"
            with told.open("w") as file:
                process = subprocess.Popen(given, stdout=file, stderr=file, env=cache)
                while process.poll() is None and not results.exists():
                    time.sleep(0.01)
                process.kill()
            if process.wait() and not results.exists():
                raise SystemExit(f"{' '.join(given)} failed:\n{told.read_text()[-2000:]}")
            scores = read(Path(out) / "run" / "scores")
        values = [np.array([one for _, one in rows]) for rows in scores]
        return np.concatenate(values) if kind == "frozen" else np.mean(list(map(auc, scores)))

    return run


def read(folder: Path) -> list[list[tuple[str, float]]]:
    """Return names and scores of each machine, in the order of names."""
    found = []
    for path in sorted(folder.glob("anomaly_score_*.csv")):
        with path.open() as file:
            found.append(sorted((name, float(score)) for name, score in csv.reader(file)))
    return found


def auc(rows: list[tuple[str, float]]) -> float:
    from sklearn.metrics import roc_auc_score

    names, scores = zip(*rows, strict=True)
    return roc_auc_score(["anomaly" in name for name in names], scores)
