"""Run recipes several times from other random starts, and collect their official numbers.

    given, fields = parser("Table 1", ["aithu2024/beats-lora"]).parse_known_args()
    results = run_all(given, fields)

A run that is finished is kept, one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from asdjax.__main__ import dispatch
from asdjax.data.decode import kept_in_memory
from asdjax.files import read_csv
from asdjax.recipes import RECIPES
from asdjax.runs import MODEL

MEASURED = ("auc_source", "auc_target", "pauc")
Numbers = dict[tuple[str, str], float]  # machine and metric -> value in per cent


def parser(description: str, systems: Sequence[str]) -> argparse.ArgumentParser:
    """Return what reads the options that all experiments have."""
    reading = argparse.ArgumentParser(
        description=description,
        epilog="Everything else is a field of the recipes, as in `asdjax run`: --train.steps 1000",
    )
    reading.add_argument("--data", type=Path, required=True, help="the recordings")
    reading.add_argument("--out", type=Path, required=True, help="gets a folder for each run")
    reading.add_argument(
        "--weights", nargs="+", help="names or converted files, in place of the recipes' backbones"
    )
    reading.add_argument("--runs", type=int, default=3, help="random starts of each system")
    reading.add_argument("--systems", nargs="+", choices=systems, default=list(systems))
    return reading


def run_all(
    given: argparse.Namespace,
    fields: Sequence[str],
    own: Callable[[str], Sequence[str]] = lambda system: (),
) -> dict[str, list[Numbers]]:
    """Return the numbers of each run of each system.

    Args:
      given: the command line.
      fields: of all recipes.
      own: fields of one recipe.
    """
    weights = replacements(given)
    with kept_in_memory():
        return {
            system: [
                run(system, seed, given, weights, [*own(system), *fields])
                for seed in range(given.runs)
            ]
            for system in given.systems
        }


def backbones(given: argparse.Namespace) -> list[str]:
    """Return the backbones of the systems, in order of first mention."""
    systems = [RECIPES[system].config for system in given.systems]
    return list(dict.fromkeys(name for system in systems for name in system.backbones))


def replacements(given: argparse.Namespace) -> dict[str, str]:
    """Return what stands in place of each backbone of the systems."""
    named = backbones(given)
    if given.weights and len(given.weights) != len(named):
        raise SystemExit(f"--weights: expected one file in place of each of {', '.join(named)}")
    return dict(zip(named, given.weights or named, strict=True))


def folder(out: Path, system: str, seed: int) -> Path:
    return out / system / f"seed{seed}"


def run(
    system: str,
    seed: int,
    given: argparse.Namespace,
    weights: Mapping[str, str],
    fields: Sequence[str],
) -> Numbers:
    """Train, score and evaluate one system from one random start."""
    out = folder(given.out, system, seed)
    done = (folder(given.out, other, seed) for other in given.systems if other != system)
    reuse = [str(path) for path in done if (path / MODEL).is_file()]
    words = ["run", system, "--data", str(given.data), "--out", str(out)]
    words += ["--weights", *(weights[name] for name in RECIPES[system].config.backbones)]
    words += ["--reuse", *reuse] if reuse else []
    dispatch([*words, "--train.seed", str(seed), *fields])
    return numbers(out)


def numbers(out: Path) -> Numbers:
    """Return the official numbers in a folder."""
    rows = read_csv(out / "results.csv")[1:]
    return {(machine, metric): 100 * float(value) for machine, metric, value in rows}


def machines_of(runs: Sequence[Numbers]) -> list[str]:
    """Return the machines that have all three numbers, in the order of the results."""
    return [machine for machine, metric in runs[0] if metric == MEASURED[0]]


def mean(run: Numbers, machines: Sequence[str]) -> float:
    """Return the harmonic mean of AUC source, AUC target and pAUC of some machines."""
    return statistics.harmonic_mean([run[m, name] for m in machines for name in MEASURED])


def spread(values: Sequence[float]) -> str:
    """Return mean and sample deviation over runs."""
    average = f"{statistics.fmean(values):.2f}"
    return f"{average} ± {statistics.stdev(values):.2f}" if len(values) > 1 else average
