"""Time asdjax against its peers: the same input, separate processes, calls in turn.

    pip install ".[bench]"
    python experiments/bench/compare.py [--rounds 15] [--only kNN] [--out FILE]
    python experiments/bench/compare.py --only EAT --attention cudnn   # NVIDIA cards

Each side runs in its own process and is warm before the clock starts (compilation is reported, not
counted). A round is one call of every side, one after the other, so that a drift of the machine's
speed hits all of them; the ratio of a peer is the median over the rounds of peer / ours, above 1
when we are faster. Every side's result is compared with ours, but that of the dual step, whose peer
trains its two branches as systems of their own, one after the other. What limits: fbank the FFT and
the copies around it, BEATs, EAT, their training and large kNN the matrix products (GFLOP/s are in
the JSON), small kNN the calls. Prints a table, and one JSON line per row.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sides import BATCH, CASES, STEP

HERE = Path(__file__).parent
# GFLOP of a clip of 10 s: forward; back to the first layer; adapters. Forward are 24 L D^2 of dense
# and 4 L^2 D of attention in each of 12 layers (L 496 and 513, D 768) and what lies before them;
# back the same, attention twice, without q, k and v of the first layer.
BEATS, EAT = (98.5, 100.6, 3.5), (97.0, 104.7, 3.6)
LORA = {"BEATs": BEATS[0] + BEATS[1] + 3 * BEATS[2], "EAT": EAT[0] + EAT[1] + 3 * EAT[2]}
GFLOP = {  # of the matrix products of one call; a LoRA step needs no gradient of frozen weights
    "BEATs-base forward, 8 x 10 s, float32": 8 * BEATS[0],
    "EAT-base forward, 8 x 10 s, float32": 8 * EAT[0],
    f"BEATs-base LoRA {STEP}": BATCH * LORA["BEATs"],
    f"BEATs-base full {STEP}": BATCH * 3 * BEATS[0],
    f"EAT-base LoRA {STEP}": BATCH * LORA["EAT"],
    f"EAT-base full {STEP}": BATCH * 3 * EAT[0],
    f"dual LoRA {STEP}": BATCH * (LORA["BEATs"] + LORA["EAT"]),
    "kNN 7 x 200 x 1,000 x 768": 2e-9 * 7 * 200 * 1_000 * 768,
    "kNN 2,000 x 200,000 x 768": 2e-9 * 2_000 * 200_000 * 768,
}
PEAK_GFLOP_S = {"NVIDIA H200": 989e3}  # dense bfloat16, as NVIDIA states


class Side:
    """A warm process that computes once per `seconds()`."""

    def __init__(self, case: str, name: str, folder: Path):
        self.name, self.output = name, folder / f"{name}.npy"
        words = [sys.executable, str(HERE / "sides.py"), case, name, str(self.output)]
        # On a GPU all sides share its memory; PyTorch's takes its weights from our CPU code.
        apart = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        apart |= {"JAX_PLATFORMS": "cpu"} if "torch" in name else {}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(words, env=os.environ | apart, **pipes)
        self.described = json.loads(self._line())

    def seconds(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        measured = json.loads(self._line())
        self.peak_bytes = measured["peak_bytes"]
        return measured["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the side {self.name!r} ended early; its message is above")
        return line


def compare(case: str, rounds: int) -> list[dict]:
    """Return a row per peer of one case."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side(case, name, Path(folder)) for name in CASES[case]]
        times = [[side.seconds() for side in sides] for _ in range(rounds)]
        for side in sides:
            side.close()
        results = [np.load(side.output) for side in sides]
    columns = list(zip(*times, strict=True))
    return [row(case, sides, columns, results, peer) for peer in range(1, len(sides))]


def row(case, sides, columns, results, peer) -> dict:
    ours, theirs = columns[0], columns[peer]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    seconds = statistics.median(ours)
    peak = PEAK_GFLOP_S.get(sides[0].described.get("device"))
    return {
        "case": case,
        "peer": sides[peer].name,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "ours_s": seconds,
        "peer_s": statistics.median(theirs),
        "ours_gflop_s": GFLOP[case] / seconds if case in GFLOP else None,
        "ours_flop_utilisation": GFLOP[case] / seconds / peak if peak and case in GFLOP else None,
        "largest_difference": difference(results[0], results[peer]),
        "rounds": len(ours),
        "ours_peak_bytes": sides[0].peak_bytes,
        "peer_peak_bytes": sides[peer].peak_bytes,
        "ours": sides[0].described,
        "theirs": sides[peer].described,
    }


def difference(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Return the largest difference; None where the two are not the same quantity."""
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else None


def machine() -> dict:
    """Return where and when this was measured."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
    }


def processor() -> str:
    """Return the processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    kernels = "auto", "plain", "cudnn"
    parser.add_argument("--attention", choices=kernels, default="auto", help="in steps of EAT")
    options = parser.parse_args()
    os.environ["EAT_ATTENTION"] = options.attention  # for the sides
    where, rows = machine(), []
    for case in CASES:
        if options.only in case:
            rows += [{**found, "machine": where} for found in compare(case, options.rounds)]
    print(
        f"{'case':44}{'peer':20}{'ours':>10}{'peer':>10}{'ratio':>8}{'difference':>12}"
        f"{'first':>8}{'peer':>8}{'peak GB':>9}{'peer':>7}"
    )
    for r in rows:
        apart = "-" if r["largest_difference"] is None else f"{r['largest_difference']:.1e}"
        print(
            f"{r['case']:44}{r['peer']:20}{r['ours_s']:9.4f}s{r['peer_s']:9.4f}s"
            f"{r['ratio']:7.2f}x{apart:>12}"
            f"{r['ours']['first_call_s']:7.1f}s{r['theirs']['first_call_s']:7.1f}s"
            f"{r['ours_peak_bytes'] / 1e9:9.2f}{r['peer_peak_bytes'] / 1e9:7.2f}"
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    for r in rows:
        print(json.dumps(r))


if __name__ == "__main__":
    main()
