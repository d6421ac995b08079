"""Table 1 of AITHU 2024 again: ours beside published, for the systems whose recipes exist.

    python experiments/aithu2024.py --data DATA/dcase2024t2/dev_data/raw --out RUNS \
        --weights beats-iter3 --runs 3

Numbers are harmonic means of AUC source, AUC target and pAUC in per cent: of each machine, and of
all numbers of all machines. Ours are means ± deviations over random starts.
"""

from __future__ import annotations

import statistics

import repeated

from asdjax.recipes.aithu2024 import MACHINES, PUBLISHED
from asdjax.report import console


def main() -> None:
    given, fields = repeated.options(__doc__.splitlines()[0], list(PUBLISHED))
    results = repeated.run_all(given, fields)
    machines = repeated.machines_of(next(iter(results.values())))
    rows = []
    for system, runs in results.items():
        published = dict(zip((*MACHINES, "all"), PUBLISHED[system], strict=True))
        columns = (*machines, "all")
        ours = [repeated.spread([mean(run, name, machines) for run in runs]) for name in columns]
        rows.append([f"{system}, {len(runs)} runs", *ours])
        rows.append(
            ["  published", *(f"{published[n]:.2f}" if n in published else "-" for n in columns)]
        )
    console.table(["harmonic mean", *machines, "all"], rows, str(given.data))


def mean(run: repeated.Numbers, machine: str, machines: list[str]) -> float:
    """Return the harmonic mean of one machine's numbers, or of those of all."""
    asked = machines if machine == "all" else [machine]
    return statistics.harmonic_mean([run[m, name] for m in asked for name in repeated.MEASURED])


if __name__ == "__main__":
    main()
