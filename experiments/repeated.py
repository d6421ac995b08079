"""Run recipes several times from other random starts, and collect their official numbers.

    given, fields = parser("Table 1", ["aithu2024/beats-lora"]).parse_known_args()
    results = run_all(given, fields)

A run that is finished is kept, one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from asdjax import params
from asdjax.__main__ import dispatch
from asdjax.data.decode import kept_in_memory
from asdjax.files import read_csv
from asdjax.models.backbone import initialize
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.recipes import RECIPES
from asdjax.report import console
from asdjax.runs import MODEL
from asdjax.weights import CHECKPOINTS

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
    own = [weights[name] for name in RECIPES[system].config.backbones]
    words += ["--weights", *own] if own else []
    words += ["--reuse", *reuse] if reuse else []
    seeded = ["--train.seed", str(seed)] if RECIPES[system].config.train else []
    dispatch([*words, *seeded, *fields])
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


def compare(
    given: argparse.Namespace,
    results: Mapping[str, Sequence[Numbers]],
    published: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """Print a table for each system: ours beside published, the last row over all machines.

    Args:
      given: the command line.
      results: of `run_all`.
      published: system -> machine -> AUC source, AUC target, pAUC in per cent.
    """
    for system, runs in results.items():
        rows, theirs = [], published[system]
        for machine in machines_of(runs):
            known = theirs.get(machine.split("/")[0], ())  # the same for sections of a machine
            known = [f"{x:.2f}" for x in known] or ["-"] * len(MEASURED)
            for name, number in zip(MEASURED, known, strict=True):
                rows.append([machine, name, spread([run[machine, name] for run in runs]), number])
        ours = spread([mean(run, machines_of(runs)) for run in runs])
        total = statistics.harmonic_mean([x for numbers in theirs.values() for x in numbers])
        rows.append(["all", "harmonic mean", ours, f"{total:.2f}"])
        heading = ["machine", "", f"ours, {len(runs)} runs", "published"]
        console.table(heading, rows, f"{system}, {given.data}")


def combine(name: str, seed: int, given: argparse.Namespace, *flags: str) -> Numbers:
    """Combine the runs of one random start as an ensemble's recipe says."""
    config = RECIPES[name].config
    out = folder(given.out, "-".join([name, *(flag.strip("-") for flag in flags)]), seed)
    members = [str(folder(given.out, member, seed)) for member in config.members]
    weights = map(str, config.ensemble.shares(len(members)))
    dispatch(["ensemble", *members, "--out", str(out), "--weights", *weights, *flags])
    return numbers(out)


def add_tiny(reading: argparse.ArgumentParser) -> None:
    reading.add_argument("--tiny", action="store_true", help="small networks, a few steps")


def add_hide(reading: argparse.ArgumentParser) -> None:
    reading.add_argument(
        "--hide", nargs="+", default=[], help="machines to take the attributes from, as in 2024"
    )


def hide(data: Path, machines: Sequence[str], out: Path) -> Path:
    """Link the recordings into a folder of `out`, those of some machines without attributes."""
    out = out / "-".join(["data-without", *sorted(machines)])
    for path in sorted(data.rglob("*.wav")):
        machine, split = path.parts[-3:-1]
        kept = path.stem.split("_")[:6]  # section_00_source_train_normal_0000
        name = "_".join([*kept, "noAttribute"]) + ".wav" if machine in machines else path.name
        link = out / machine / split / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    return out


def tiny_backbones(given: argparse.Namespace) -> list[str]:
    """Write small backbones with random weights: they show that all runs, and nothing else.

    Returns:
      A file in place of each backbone of the systems asked for.
    """
    small = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48}
    small |= {"encoder_attention_heads": 2, "embed_dim": 16, "conv_pos": 16, "conv_pos_groups": 2}
    beats, eat = BeatsConfig.base(**small), EatConfig.base(embed_dim=32, depth=2, num_heads=2)
    paths = []
    for name in backbones(given):
        kind = CHECKPOINTS[name].kind
        structure, path = {"beats": beats, "eat": eat}[kind], given.out / f"tiny-{kind}.safetensors"
        params.save(path, initialize(structure), params.Header(kind, asdict(structure)))
        paths.append(str(path))
    return paths
