"""Table 1 of Korea University 2025 again, System1: ours beside published.

    python experiments/korea2025.py --data DATA/dcase2025t2/dev_data/raw --out RUNS \
        --weights beats-iter3 --runs 3

Per cent; ours are means ± deviations over random starts. The report prints no total: the last line
has the harmonic mean of its 21 numbers.
"""

from __future__ import annotations

import repeated

from asdjax.recipes.korea2025 import PUBLISHED

SYSTEM = "korea2025/system1"


def main() -> None:
    given, fields = repeated.parser(__doc__.splitlines()[0], [SYSTEM]).parse_known_args()
    repeated.compare(given, repeated.run_all(given, fields), {SYSTEM: PUBLISHED})


if __name__ == "__main__":
    main()
