"""The official baselines again: ours beside published, per machine.

    python experiments/baseline.py --data DATA/dcase2025t2/dev_data/raw --out RUNS --part "dev 2025"

Per cent; ours are means ± deviations over random starts. The autoencoders are trained once for both
scores. Expect a few points of scatter between runs of one recipe, in the official code as well.
"""

from __future__ import annotations

import statistics

import repeated

from asdjax.recipes.baseline import MAHALA, MSE, PUBLISHED
from asdjax.report import console


def main() -> None:
    reading = repeated.parser(__doc__.splitlines()[0], [MSE, MAHALA])
    parts = sorted({part for _, part in PUBLISHED})
    reading.add_argument("--part", choices=parts, required=True, help="whose published numbers")
    given, fields = reading.parse_known_args()
    for system, runs in repeated.run_all(given, fields).items():
        published, machines = PUBLISHED[system, given.part], repeated.machines_of(runs)
        rows = [
            [machine, name, repeated.spread([run[machine, name] for run in runs]), theirs]
            for machine in machines
            for name, theirs in zip(
                repeated.MEASURED, shown(published.get(machine.split("/")[0])), strict=True
            )
        ]
        ours = repeated.spread([repeated.mean(run, machines) for run in runs])
        total = statistics.harmonic_mean([x for numbers in published.values() for x in numbers])
        rows.append(["all", "official score", ours, f"{total:.2f}"])
        heading = ["machine", "", f"ours, {len(runs)} runs", f"published, {given.part}"]
        console.table(heading, rows, f"{system}, {given.data}")


def shown(numbers: tuple[float, ...] | None) -> list[str]:
    return [f"{x:.2f}" for x in numbers] if numbers else ["-"] * len(repeated.MEASURED)


if __name__ == "__main__":
    main()
