"""The official baselines again: ours beside published, per machine.

    python experiments/baseline.py --data DATA/dcase2025t2/dev_data/raw --out RUNS --part "dev 2025"

Per cent; ours are means ± deviations over random starts. The autoencoders are trained once for both
scores. Expect a few points of scatter between runs of one recipe, in the official code as well.
"""

from __future__ import annotations

import repeated

from asdjax.recipes.baseline import MAHALA, MSE, PUBLISHED


def main() -> None:
    reading = repeated.parser(__doc__.splitlines()[0], [MSE, MAHALA])
    parts = sorted({part for _, part in PUBLISHED})
    reading.add_argument("--part", choices=parts, required=True, help="whose published numbers")
    given, fields = reading.parse_known_args()
    published = {system: PUBLISHED[system, given.part] for system in given.systems}
    repeated.compare(given, repeated.run_all(given, fields), published)


if __name__ == "__main__":
    main()
