"""Tables 1, 2 and 3 of IOA-CAS 2024: ours beside published.

    python experiments/ioa2024.py --data DATA/dcase2024t2 --out RUNS --runs 3
    python experiments/ioa2024.py --data DATA --out RUNS --tiny

DATA is of `asdjax data fetch --year 2024 --part all`. Per cent; ours are means ± deviations over
random starts. The three subnetworks of a start are trained once for both scores; its ensembles are
of its systems.
"""

import repeated

if __name__ == "__main__":
    repeated.main(__doc__, "ioa2024")
