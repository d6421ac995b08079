"""The official baselines: ours beside published, per machine.

    python experiments/baseline.py --data DATA/dcase2025t2/dev_data/raw --out RUNS --part "dev 2025"

Per cent; ours are means ± deviations over random starts. The autoencoders are trained once for both
scores. Runs of one recipe scatter by a few points, in the official code as well.
"""

import repeated

if __name__ == "__main__":
    repeated.main(__doc__, "baseline")
