"""Tables 1 and 2 of XJU 2025: ours beside published.

    python experiments/xju2025.py --data DATA/dcase2025t2 --out RUNS \
        --weights beats-iter3 eat-base --runs 3
    python experiments/xju2025.py --data DATA --out RUNS --tiny

DATA is of `asdjax data fetch --year 2025 --part all`. Per cent; ours are means ± deviations over
random starts. The published row of ToyCar by beats-fft repeats that of slider; the rows give 64.31
where 64.46 is printed.
"""

import json
from pathlib import Path

import repeated

from asdjax.files import read_csv
from asdjax.recipes import RECIPES
from asdjax.report import console

PRINTED = Path(__file__).with_name("published") / "xju2025.csv"


def main() -> None:
    options, fields = repeated.parse(__doc__, "xju2025")
    results = repeated.run_all(options, fields)
    table_1(options)
    for system, runs in results.items():
        repeated.compare(system, runs, options)


def table_1(options) -> None:
    """Print what the report trained with beside what ran, of the first system that did."""
    first = repeated.folder(options.out, options.systems[0], 0)
    train = json.loads((first / "config.json").read_text())["system"]["train"]
    scorer = json.loads((first / "config.json").read_text())["system"]["scorer"]
    classes = json.loads((first / "labels.json").read_text())["0"]
    margin, contrastive = (head["loss"] for head in train["heads"])
    schedule = train["optimizer"]["schedule"]
    step, decay = train["optimizer"]["kind"], train["optimizer"]["weight_decay"]
    smote = scorer["oversample"]
    ours = {
        "Training Mode": f"OS-SCL: perturbation {train['perturbation']}, contrastive term, mixup",
        "Loss Function": f"sub-center {margin['kind']}, scale {margin['scale']:g}",
        "Margin Parameter": f"{margin['margin']:g}",
        "Sub-Center Number": f"1 of a class, {margin['subcenters_without_attributes']} of machines "
        "without attributes",
        "Total Training Steps": f"{train['steps']:,} micro-batches",
        "Batch Size": train["batch"],
        "Learning Rate": f"{schedule['peak']:g}",
        "Optimizer": f"{step}, weight decay {decay:g} on matrices",
        "Warm-up Steps": f"{schedule['warmup']} micro-batches",
        "Gradient Accumulation": train["accumulate"],
        "Learning Rate Scheduler": schedule["shape"],
        "Data Augmentation": f"SpecAugment {train['augment']['mask']}",
        "KNN Settings": f"SMOTE ratio {smote['ratio']:g}, neighbors {smote['neighbors']}; nearest "
        f"{scorer['k']} (a reading)",
        "Temperature": f"{contrastive['temperature']:g}",
        "EMA Momentum": f"{train['ema']:g}{', with a ramp' if train['ema_ramp'] else ''}",
        "Number of Classes": len(classes),
    }
    printed = [(name, value) for table, _, _, name, value in read_csv(PRINTED)[1:] if table == "1"]
    rows = [[name, value, ours[name]] for name, value in printed]
    console.table(["", "report", "here"], rows, f"Table 1, {RECIPES[options.systems[0]].source}")


if __name__ == "__main__":
    main()
