"""Table 1 of Midea 2024 again: ours beside published.

    python experiments/midea2024.py --data DATA/dcase2024t2/dev_data/raw --out RUNS --runs 3
    python experiments/midea2024.py --data DATA --out RUNS --hide valve --train.steps 100

Per cent; ours are means ± deviations over random starts. The report prints no total: the last line
has the harmonic mean of its 21 numbers.
"""

from __future__ import annotations

import repeated

from asdjax.recipes.midea2024 import MACHINES, PUBLISHED


def main() -> None:
    reading = repeated.parser(__doc__.splitlines()[0], tuple(PUBLISHED))
    repeated.add_hide(reading)
    given, fields = reading.parse_known_args()
    if given.hide:
        given.data = repeated.hide(given.data, given.hide, given.out)
    published = {name: dict(zip(MACHINES, rows, strict=True)) for name, rows in PUBLISHED.items()}
    repeated.compare(given, repeated.run_all(given, fields), published)


if __name__ == "__main__":
    main()
