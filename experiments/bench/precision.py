"""What bfloat16 does to official scores: the same frozen backbones, computed both ways.

    python experiments/bench/precision.py --data REAL SYNTHETIC --out OUT

Backbones have the structure of the public base models and random weights, or those of --weights.
A processor without units for bfloat16 computes the same, slowly. Prints a markdown table: AUC of
both domains and pAUC in per cent, and by how much bfloat16 moves them.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from asdjax.__main__ import dispatch
from asdjax.files import read_csv
from asdjax.models import weights_file
from asdjax.models.backbone import initialize
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.efficientat import EfficientATConfig
from asdjax.models.weights_file import Header

BACKBONES = {"beats": BeatsConfig.base(), "eat": EatConfig.base(), "mn04": EfficientATConfig(0.4)}
DTYPES = "float32", "bfloat16"
AREAS = "auc_source", "auc_target", "pauc"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--weights", nargs="+", help="in place of random ones, one per backbone")
    options = parser.parse_args()
    weights = options.weights or [random_weights(name, options.out) for name in options.backbones]
    lines = ["| backbone | machine | AUC source | target | pAUC |", "|---|---|---|---|---|"]
    most = 0.0
    for name, file in zip(options.backbones, weights, strict=True):
        for data in options.data:
            exact, short = (results(name, file, data, options.out, d) for d in DTYPES)
            for machine in exact:
                both = [(exact[machine][area], short[machine][area]) for area in AREAS]
                most = max(most, *(abs(b - a) for a, b in both))
                cells = " | ".join(f"{a:.2f} {b - a:+.2f}" for a, b in both)
                lines.append(f"| {name} | {data.name}/{machine} | {cells} |")
    print(*lines, f"\nLargest difference: {most:.2f} points.", sep="\n")


def random_weights(name: str, out: Path) -> str:
    path, structure = out / f"{name}.safetensors", BACKBONES[name]
    weights_file.save(path, initialize(structure), Header(structure.kind, asdict(structure)))
    return str(path)


def results(name: str, file: str, data: Path, out: Path, dtype: str) -> dict[str, dict[str, float]]:
    """Return the official numbers of a frozen backbone in per cent, by machine."""
    run = out / f"{name}-{data.name}-{dtype}"
    words = ["--data", data, "--out", run, "--weights", file, "--encoders.0.dtype", dtype]
    dispatch(["run", f"frozen/{name}", *map(str, words)])
    found: dict[str, dict[str, float]] = {}
    for machine, metric, value in read_csv(run / "results.csv")[1:]:
        if metric in AREAS:
            found.setdefault(machine, {})[metric] = 100 * float(value)
    return found


if __name__ == "__main__":
    main()
