"""Tables 2 and 3 of IOA-CAS 2024 again, what is trained from scratch: ours beside published.

    python experiments/ioa2024.py --data DATA/dcase2024t2/dev_data/raw --out RUNS --runs 3

Per cent; ours are means ± deviations over random starts; the ensembles of a start are of its single
systems, which are trained once for both scores.
"""

from __future__ import annotations

import repeated

from asdjax.config import EnsembleConfig
from asdjax.recipes import RECIPES
from asdjax.recipes.ioa2024 import MACHINES, PUBLISHED

ENSEMBLES = [name for name in PUBLISHED if isinstance(RECIPES[name].config, EnsembleConfig)]
SINGLES = [name for name in PUBLISHED if name not in ENSEMBLES]


def main() -> None:
    given, fields = repeated.parser(__doc__.splitlines()[0], SINGLES).parse_known_args()
    results = repeated.run_all(given, fields)
    if set(given.systems) == set(SINGLES):
        seeds = range(given.runs)
        results |= {n: [repeated.combine(n, seed, given) for seed in seeds] for n in ENSEMBLES}
    published = {name: dict(zip(MACHINES, rows, strict=True)) for name, rows in PUBLISHED.items()}
    repeated.compare(given, results, published)


if __name__ == "__main__":
    main()
