"""Tables 2 and 3 of IOA-CAS 2024, what is trained from scratch: ours beside published.

    python experiments/ioa2024.py --data DATA/dcase2024t2/dev_data/raw --out RUNS --runs 3

Per cent; ours are means ± deviations over random starts. The networks of a start are trained once
for both scores; its ensemble is of these two.
"""

import repeated

if __name__ == "__main__":
    repeated.main(__doc__, "ioa2024")
