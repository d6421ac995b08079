"""Tables 1 to 4 of AITHU 2024: ours beside published.

    python experiments/aithu2024.py --data DATA/dcase2024t2 --out RUNS \
        --weights beats-iter3 eat-base --runs 3
    python experiments/aithu2024.py --data DATA --out RUNS --tiny --hide valve

DATA is of `asdjax data fetch --year 2024 --part all`: the report trains on all machine types.
Trains the seven single systems and combines them into the four ensembles. Per cent; harmonic means
are those of AUC source, AUC target and pAUC. Ours are means ± deviations over random starts; the
ensembles of a start are of its single systems.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence

import repeated

from asdjax.__main__ import dispatch
from asdjax.files import read_csv
from asdjax.models import checkpoints, weights_file
from asdjax.recipes import RECIPES, published
from asdjax.report import console
from asdjax.stages.folder import MODEL

SINGLES, ENSEMBLES = repeated.singles("aithu2024"), repeated.ensembles("aithu2024")
TABLES = {name: published.tables(name)["dev 2024"] for name in (*SINGLES, *ENSEMBLES)}
SCALES = {"training clips": [], "test clips, as in the report": ["--transductive"]}
SEARCHED = {"aithu2024/system1": (1, 4, 6), "aithu2024/system3": range(7)}  # which of SINGLES


def main() -> None:
    options, fields = repeated.parse(__doc__, "aithu2024")
    table_1(repeated.run_all(options, fields), options)
    table_2(options)
    if set(options.systems) == set(SINGLES):
        seeds = range(options.runs)
        table_3({name: [search(name, seed, options) for seed in seeds] for name in SEARCHED})
        for scale, flags in SCALES.items():
            found = {n: [repeated.combine(n, s, options, *flags) for s in seeds] for n in ENSEMBLES}
            table_4(found, scale)


def table_1(results: dict[str, list[repeated.Results]], options: argparse.Namespace) -> None:
    machines = repeated.machines_of(next(iter(results.values())))
    rows = []
    for system, runs in results.items():
        both = repeated.shared(machines, TABLES[system]) or machines
        columns = [*([machine] for machine in machines), both]
        ours = [repeated.spread([repeated.mean(run, taken) for run in runs]) for taken in columns]
        rows.append([system, *counts(system, options), *ours])
        theirs = {m: f"{row['harmonic_mean']:.2f}" for m, row in TABLES[system].items()}
        known = [theirs.get(machine, "-") for machine in machines]
        known.append(repeated.published_mean(both, TABLES[system]))
        rows.append(["  published", *RECIPES[system].parameters.split(" / "), *known])
    heading = ["harmonic mean", "total", "trained", *machines, f"{len(both)} machines"]
    console.table(heading, rows, f"Table 1, {options.data}")


def table_2(options: argparse.Namespace) -> None:
    """Numbers of pseudo classes: those that ran, beside the report's."""
    rows = []
    for system in [name for name in options.systems if RECIPES[name].config.pseudo]:
        printed = dict(RECIPES[system].config.pseudo.counts)
        file = repeated.folder(options.out, system, 0) / "pseudo" / "labels.csv"
        found = defaultdict(set)
        for machine, _, _, label in read_csv(file)[1:] if file.is_file() else ():
            found[machine].add(label)
        for machine in {**printed, **found}:
            ours = len(found[machine]) or "-"
            rows.append([system, machine, ours, printed.get(machine, "-")])
    if rows:
        console.table(["", "machine", "ours", "published"], rows, "Table 2, pseudo classes")


def table_3(searches: dict[str, list[Sequence[float]]]) -> None:
    """Coefficients: the report's two that a search found, and what a search finds on our scores."""
    rows = []
    for name in ENSEMBLES:
        config = RECIPES[name].config
        weights = dict(zip(config.members, config.ensemble.weights, strict=True))
        rows.append([name, "published", *(f"{weights.get(single, 0):g}" for single in SINGLES)])
        for seed, ours in enumerate(searches.get(name, ())):
            rows.append(["", f"ours, seed {seed}", *(f"{w:g}" for w in ours)])
    heading = ["", "", *(name.removeprefix("aithu2024/") for name in SINGLES)]
    console.table(heading, rows, "Table 3; ours by grid search, labels used")


def table_4(found: dict[str, list[repeated.Results]], scale: str) -> None:
    machines = repeated.machines_of(next(iter(found.values())))
    rows = []
    for machine in (*machines, "hmean"):
        for column, name in enumerate((*published.AREAS, "hmean")):
            cells = []
            for system, runs in found.items():
                theirs = published.machines(TABLES[system])
                ours = repeated.shared(machines, theirs) or machines
                known = [m for m in theirs if m in ours]
                if machine != "hmean":
                    ours, known = [machine], [m for m in known if m == machine]
                values = [[[run[m, k] for k in published.AREAS] for m in ours] for run in runs]
                cells.append(repeated.spread([cell(run, column) for run in values]))
                values = [[theirs[m][k] for k in published.AREAS] for m in known]
                cells.append(f"{cell(values, column):.2f}" if values else "-")
            rows.append(["" if column else machine, name, *cells])
    heading = [x for name in found for x in (name.removeprefix("aithu2024/"), "published")]
    title = f"Table 4; ours with the report's coefficients, z-scores by {scale}"
    console.table(["", "", *heading], rows, title)


def cell(values: Sequence[Sequence[float]], column: int) -> float:
    """Return the harmonic mean over machines of one of three values, or of all at column 3."""
    taken = values if column == 3 else [[row[column]] for row in values]
    return statistics.harmonic_mean([x for row in taken for x in row])


def search(name: str, seed: int, options: argparse.Namespace) -> list[float]:
    """Return the coefficients of SINGLES that are best on our scores and labels."""
    out, used = repeated.folder(options.out, f"{name}-searched", seed), SEARCHED[name]
    members = [str(repeated.folder(options.out, SINGLES[i], seed)) for i in used]
    dispatch(["ensemble", *members, "--out", str(out), "--search"])
    found = dict(zip(used, json.loads((out / "ensemble.json").read_text())["weights"], strict=True))
    return [round(found.get(i, 0.0), 3) for i in range(len(SINGLES))]


def counts(system: str, options: argparse.Namespace) -> tuple[str, str]:
    """Return all and trained parameters, in millions."""
    weights = repeated.replacements(options)
    files = [checkpoints.find(weights[n]) for n in RECIPES[system].config.backbones]
    every = {
        f"branches.{i}.backbone.{name}": value
        for i, file in enumerate(files)
        for name, value in weights_file.load(file).arrays.items()
    }
    trained = weights_file.load(repeated.folder(options.out, system, 0) / MODEL).arrays
    trained = {n: v for n, v in trained.items() if not n.endswith((".mean", ".var"))}
    kinds = every | trained, trained
    return tuple(f"{sum(v.size for v in kind.values()) / 1e6:.2f}M" for kind in kinds)


if __name__ == "__main__":
    main()
