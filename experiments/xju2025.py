"""Table 2 of XJU 2025 again: ours beside published.

    python experiments/xju2025.py --data DATA/dcase2025t2/dev_data/raw --out RUNS \
        --weights beats-iter3 eat-base --runs 3
    python experiments/xju2025.py --data DATA --out RUNS --tiny

Per cent; ours are means ± deviations over random starts. The published numbers of ToyCar by
beats-fft are a copy of those of slider, and so is what the last line makes of them.
"""

from __future__ import annotations

import repeated

from asdjax.recipes.xju2025 import MACHINES, PUBLISHED

TINY = ("--audio.seconds", "6", "--train.steps", "40", "--train.accumulate", "1")
TINY += ("--train.log-every", "10", "--train.optimizer.schedule.warmup", "6")


def main() -> None:
    reading = repeated.parser(__doc__.splitlines()[0], tuple(PUBLISHED))
    repeated.add_tiny(reading)
    given, fields = reading.parse_known_args()
    if given.tiny:
        given.runs, fields = 1, [*TINY, *fields]
        given.weights = given.weights or repeated.tiny_backbones(given)
    published = {name: dict(zip(MACHINES, rows, strict=True)) for name, rows in PUBLISHED.items()}
    repeated.compare(given, repeated.run_all(given, fields), published)


if __name__ == "__main__":
    main()
