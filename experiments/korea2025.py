"""Table 1 of Korea University 2025, Systems 1 to 4: ours beside published.

    python experiments/korea2025.py --data DATA/dcase2025t2 --out RUNS \
        --weights beats-iter3 --runs 3
    python experiments/korea2025.py --data DATA --out RUNS --tiny

DATA is of `asdjax data fetch --year 2025 --part all`. Per cent; ours are means ± deviations over
random starts. The report prints no total: the last row has the harmonic mean of its 21 values.
"""

import repeated

if __name__ == "__main__":
    repeated.main(__doc__, "korea2025")
