"""Run recipes several times from other random starts, and collect their official numbers.

    given, fields = options("Table 1", ["aithu2024/beats-lora"])  # of the command line
    results = run_all(given, fields)

A run that is finished is kept, one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from asdjax.__main__ import dispatch
from asdjax.files import read_csv

MEASURED = ("auc_source", "auc_target", "pauc")
Numbers = dict[tuple[str, str], float]  # machine and metric -> value in per cent


def options(description: str, systems: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what the command line says, and the rest of it: fields of the recipes."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Everything else is a field of the recipes, as in `asdjax run`: --train.steps 1000",
    )
    parser.add_argument("--data", type=Path, required=True, help="the recordings")
    parser.add_argument("--out", type=Path, required=True, help="gets a folder for each run")
    parser.add_argument("--weights", help="a backbone's name or converted file")
    parser.add_argument("--runs", type=int, default=3, help="random starts of each system")
    parser.add_argument("--systems", nargs="+", choices=systems, default=list(systems))
    return parser.parse_known_args()


def run_all(given: argparse.Namespace, fields: Sequence[str]) -> dict[str, list[Numbers]]:
    """Return the numbers of each run of each system."""
    return {
        system: [run(system, seed, given, fields) for seed in range(given.runs)]
        for system in given.systems
    }


def run(system: str, seed: int, given: argparse.Namespace, fields: Sequence[str]) -> Numbers:
    """Train, score and evaluate one system from one random start."""
    out = given.out / system / f"seed{seed}"
    weights = ["--weights", given.weights] if given.weights else []
    where = ["--data", str(given.data), "--out", str(out)]
    dispatch(["run", system, *where, *weights, "--train.seed", str(seed), *fields])
    rows = read_csv(out / "results.csv")[1:]
    return {(machine, metric): 100 * float(value) for machine, metric, value in rows}


def machines_of(runs: Sequence[Numbers]) -> list[str]:
    """Return the machines that have all three numbers, in the order of the results."""
    return [machine for machine, metric in runs[0] if metric == MEASURED[0]]


def spread(values: Sequence[float]) -> str:
    """Return mean and sample deviation over runs."""
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
