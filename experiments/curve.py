"""The official score against the number of training clips, on the synthetic machines.

    python experiments/curve.py --out RUNS
    python experiments/curve.py --out RUNS --systems midea2024/submission1 --counts 250 \
        --audio.seconds 4 --train.steps 500

Per cent, means ± deviations over random starts. Each set has --counts source clips per machine, ten
target clips and 60 test clips; the first clips of all sets are the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import repeated

from asdjax.data import synthetic
from asdjax.data.audio import kept_in_memory
from asdjax.recipes import RECIPES
from asdjax.report import console

COUNTS = (100, 250, 500, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="gets the recordings and runs")
    parser.add_argument("--systems", nargs="+", default=["frozen/logmel", "small/dual"])
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="source clips")
    parser.add_argument("--runs", type=int, default=3, help="random starts of each system")
    options, fields = parser.parse_known_args()
    found = {system: [] for system in options.systems}
    for count in options.counts:
        data = synthetic.make(options.out / f"data-{count}", train_source=count)
        for system, scores in found.items():
            runs = run(system, data, options.out / str(count), options.runs, fields)
            scores.append(repeated.spread(runs))
    heading = ["training clips of a machine", *(f"{count} + 10" for count in options.counts)]
    rows = [[system, *scores] for system, scores in found.items()]
    console.table(heading, rows, "Official score")


def run(system: str, data: Path, out: Path, starts: int, fields: list) -> list[float]:
    """Return the official score of each random start; of a system without training, of one."""
    trained = RECIPES[system].config.train is not None
    options = argparse.Namespace(data=data, out=out, systems=[system])
    scores = []
    with kept_in_memory():
        for seed in range(starts if trained else 1):
            results = repeated.run(system, seed, options, {}, fields if trained else [])
            scores.append(results["ALL", "official_score"])
    return scores


if __name__ == "__main__":
    main()
