"""Table 1 of Midea 2024: ours beside published.

    python experiments/midea2024.py --data DATA/dcase2024t2 --out RUNS --runs 3
    python experiments/midea2024.py --data DATA --out RUNS --hide valve --train.steps 100

DATA is of `asdjax data fetch --year 2024 --part all`. Per cent; ours are means ± deviations over
random starts. The report prints no total: the last row has the harmonic mean of its 21 values.
"""

import repeated

if __name__ == "__main__":
    repeated.main(__doc__, "midea2024")
