"""Table 2 of XJU 2025: ours beside published.

    python experiments/xju2025.py --data DATA/dcase2025t2/dev_data/raw --out RUNS \
        --weights beats-iter3 eat-base --runs 3
    python experiments/xju2025.py --data DATA --out RUNS --tiny

Per cent; ours are means ± deviations over random starts. The published row of ToyCar by beats-fft
repeats that of slider, so the mean in the last row is of the repeated values.
"""

import repeated

if __name__ == "__main__":
    repeated.main(__doc__, "xju2025")
