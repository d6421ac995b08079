"""Tables 1, 3 and 4 of AITHU 2024 again: ours beside published.

    python experiments/aithu2024.py --data DATA/dcase2024t2/dev_data/raw --out RUNS \
        --weights beats-iter3 eat-base --runs 3
    python experiments/aithu2024.py --data DATA --out RUNS --tiny --hide valve

Trains the seven single systems and combines them into the four ensembles. Numbers are per cent;
harmonic means are those of AUC source, AUC target and pAUC. Ours are means ± deviations over random
starts; the ensembles of a start are of its single systems.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence

import repeated

from asdjax import params
from asdjax.__main__ import dispatch
from asdjax.models.system import named
from asdjax.recipes import RECIPES
from asdjax.recipes.aithu2024 import (
    COEFFICIENTS,
    MACHINES,
    PUBLISHED,
    PUBLISHED_ENSEMBLES,
    SINGLES,
)
from asdjax.report import console
from asdjax.runs import MODEL
from asdjax.weights import find

SCALES = {"training clips": [], "test clips, as in the report": ["--transductive"]}
SEARCHED = {"aithu2024/system1": (1, 4, 6), "aithu2024/system3": range(7)}  # which of SINGLES


def main() -> None:
    reading = repeated.parser(__doc__.splitlines()[0], SINGLES)
    repeated.add_tiny(reading)
    repeated.add_hide(reading)
    given, fields = reading.parse_known_args()
    if given.hide:
        given.data = repeated.hide(given.data, given.hide, given.out)
    if given.tiny:
        given.runs = 1
        given.weights = given.weights or repeated.tiny_backbones(given)
    results = repeated.run_all(given, fields, tiny_fields if given.tiny else lambda system: ())
    table_1(given, results)
    if set(given.systems) == set(SINGLES):
        seeds = range(given.runs)
        table_3({name: [search(name, seed, given) for seed in seeds] for name in SEARCHED})
        for scale, flags in SCALES.items():
            found = {
                n: [repeated.combine(n, seed, given, *flags) for seed in seeds]
                for n in COEFFICIENTS
            }
            table_4(found, scale)


def table_1(given: argparse.Namespace, results: dict[str, list[repeated.Numbers]]) -> None:
    machines = repeated.machines_of(next(iter(results.values())))
    rows = []
    for system, runs in results.items():
        total, trained = counts(given, system)
        ours = [[repeated.mean(run, asked) for run in runs] for asked in ([m] for m in machines)]
        ours.append([repeated.mean(run, machines) for run in runs])
        rows.append([system, total, trained, *map(repeated.spread, ours)])
        theirs = dict(zip((*MACHINES, "all"), PUBLISHED[system], strict=True))
        published = [f"{theirs[m]:.2f}" if m in theirs else "-" for m in (*machines, "all")]
        rows.append(["  published", *RECIPES[system].parameters.split(" / "), *published])
    heading = ["harmonic mean", "total", "trained", *machines, "all"]
    console.table(heading, rows, f"Table 1, {given.data}")


def table_3(searches: dict[str, list[Sequence[float]]]) -> None:
    """Coefficients: the report's two that a search found, and what a search finds on our scores."""
    rows = []
    for name, weights in COEFFICIENTS.items():
        rows.append([name, "published", *(f"{w:g}" for w in weights)])
        for seed, ours in enumerate(searches.get(name, ())):
            rows.append(["", f"ours, seed {seed}", *(f"{w:g}" for w in ours)])
    heading = ["", "", *(name.removeprefix("aithu2024/") for name in SINGLES)]
    console.table(heading, rows, "Table 3; ours by grid search, labels used")


def table_4(found: dict[str, list[repeated.Numbers]], scale: str) -> None:
    machines = repeated.machines_of(next(iter(found.values())))
    names, rows = (*repeated.MEASURED, "hmean"), []
    theirs = {n: dict(zip(MACHINES, v, strict=True)) for n, v in PUBLISHED_ENSEMBLES.items()}
    for machine in (*machines, "hmean"):
        for row, name in enumerate(names):
            cells = []
            for system, runs in found.items():
                asked = machines if machine == "hmean" else [machine]
                ours = [cell([[run[m, k] for k in names[:3]] for m in asked], row) for run in runs]
                known = (
                    theirs[system].values() if machine == "hmean" else [theirs[system].get(machine)]
                )
                published = "-" if None in known else f"{cell(list(known), row):.2f}"
                cells += [repeated.spread(ours), published]
            rows.append([machine if not row else "", name, *cells])
    heading = [x for name in found for x in (name.removeprefix("aithu2024/"), "published")]
    title = f"Table 4; ours with the report's coefficients, z-scores by {scale}"
    console.table(["", "", *heading], rows, title)


def cell(values: Sequence[Sequence[float]], column: int) -> float:
    """Return the harmonic mean over machines of one of three numbers, or of all at column 3."""
    taken = values if column == 3 else [[row[column]] for row in values]
    return statistics.harmonic_mean([x for row in taken for x in row])


def search(name: str, seed: int, given: argparse.Namespace) -> list[float]:
    """Return the coefficients of SINGLES that are best on our scores and labels."""
    out, used = repeated.folder(given.out, f"{name}-searched", seed), SEARCHED[name]
    members = [str(repeated.folder(given.out, SINGLES[i], seed)) for i in used]
    dispatch(["ensemble", *members, "--out", str(out), "--search"])
    found = dict(zip(used, json.loads((out / "ensemble.json").read_text())["weights"], strict=True))
    return [round(found.get(i, 0.0), 3) for i in range(len(SINGLES))]


def counts(given: argparse.Namespace, system: str) -> tuple[str, str]:
    """Return all and trained parameters, in millions."""
    weights = repeated.replacements(given)
    bases = [params.load(find(weights[n]))[0] for n in RECIPES[system].config.backbones]
    trained, _ = params.load(repeated.folder(given.out, system, 0) / MODEL)
    trained = {n: v for n, v in trained.items() if not n.endswith((".mean", ".var"))}
    every = named(bases) | trained
    return tuple(f"{sum(v.size for v in x.values()) / 1e6:.2f}M" for x in (every, trained))


def tiny_fields(system: str) -> list[str]:
    """Return fields of a recipe that make its training short."""
    fields = ["--audio.seconds", "6", "--train.steps", "60", "--train.batch", "16"]
    fields += ["--train.accumulate", "1", "--train.log-every", "20"]
    fields += ["--train.optimizer.schedule.warmup", "6"]
    for i, branch in enumerate(RECIPES[system].config.embedder.branches):
        fields += [f"--embedder.branches.{i}.adapter.rank", "4"] if branch.adapter else []
    return fields


if __name__ == "__main__":
    main()
