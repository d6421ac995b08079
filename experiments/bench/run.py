"""Time asdjax against its peers, all rows by one command.

    pip install ".[bench]"
    python experiments/bench/run.py --suite cpu [--only kNN fbank] [--rounds 5] [--out DIR]
    python experiments/bench/run.py --suite gpu --attention cudnn      # in steps of EAT
    python experiments/bench/run.py --suite cpu --against DIR/cpu.jsonl

A row is one case: the same input for asdjax and each peer, each in a process of its own, warm
before the clock starts (what the first call took is reported, not counted). A round is one call of
every side, one after the other, so that a drift of the machine's speed hits all of them; the ratio
of a peer is the median over the rounds of peer / ours, above 1 when we are faster. Results are
compared as well, where both sides compute the same quantity. A peer that is not installed is named
absent, and so is a case that this processor has no units for. On a CPU that others use, ratios of
sides that need all cores to those that do not mean little.

Writes `DIR/SUITE.jsonl` (a line for each row, as soon as it is there), `DIR/SUITE.md` (a table) and
`DIR/SUITE.png` (a bar chart). `--against` compares the ratios with those of an earlier file and
exits with 1 if one has fallen by more than `--tolerance`, or if no row is in both.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sides import CASES, GFLOP, KERNELS, SUITES, absent_units

HERE = Path(__file__).parent
PEAK_GFLOP_S = {"NVIDIA H200": 989e3}  # dense bfloat16, as NVIDIA states


class Absent(Exception):
    """A side whose library is not installed, or does not take this input."""


class Side:
    """A warm process that computes once per `seconds()`.

    Raises:
      Absent: a package of the peer is not installed, or it ended with an error.
    """

    def __init__(self, suite: str, case: str, name: str, folder: Path):
        self.name, self.output = name, folder / f"{name.replace(' ', '_')}.npy"
        words = [sys.executable, str(HERE / "sides.py"), suite, case, name, str(self.output)]
        # On a GPU all sides share its memory; PyTorch's takes its weights from our CPU code.
        apart = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if suite == "cpu" or "torch" in name:
            apart["JAX_PLATFORMS"] = "cpu"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(words, env=os.environ | apart, **pipes)
        self.described = json.loads(self._line())
        if missing := self.described.get("absent"):
            self.close()
            raise Absent(f"{missing} is not installed")

    def seconds(self) -> float:
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Absent("it ended while it waited, see above") from error
        measured = json.loads(self._line())
        self.peak_bytes = measured["peak_bytes"]
        return measured["seconds"]

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise Absent("it ended with an error, see above")
        return line


def compare(suite: str, case: str, rounds: int) -> list[dict]:
    """Return a row for each peer of one case."""
    if reason := absent_units(case):
        return [{"case": case, "peer": "all", "absent": reason}]
    sides: list[Side] = []
    times: list[list[float]] = []  # of each side
    rows = []

    def leave_out(number: int, name: str, error: Absent) -> None:
        if number == 0:  # ours
            raise SystemExit(f"{case}: asdjax itself: {error}") from error
        rows.append({"case": case, "peer": name, "absent": str(error)})

    with tempfile.TemporaryDirectory() as folder:
        for name in CASES[suite][case]:
            try:
                sides.append(Side(suite, case, name, Path(folder)))
                times.append([])
            except Absent as error:
                leave_out(len(sides), name, error)
        for _ in range(rounds):
            for number, side in reversed(list(enumerate(sides))):
                if len(sides) == 1:  # no peer, or none any more
                    break
                try:
                    times[number].append(side.seconds())
                except Absent as error:
                    side.close()
                    leave_out(number, side.name, error)
                    del sides[number], times[number]
        for side in sides:
            side.close()
        results = [np.load(side.output) for side in sides]
    peers = range(1, len(sides))
    return [row(case, sides, times, results, peer) for peer in peers] + rows


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


def table(rows: Sequence[dict]) -> str:
    """Return the rows as a table in Markdown, with where they were measured below."""
    lines = [
        "| case | peer | ours | peer | peer / ours | range | difference | first call | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "absent" in r:
            lines.append(f"| {r['case']} | {r['peer']} | absent: {r['absent']} | | | | | | |")
            continue
        apart = r["largest_difference"]
        low, high = r["ratio_range"]
        cells = (
            r["case"],
            r["peer"],
            f"{r['ours_s']:.4g} s",
            f"{r['peer_s']:.4g} s",
            f"**{r['ratio']:.2f}**",
            f"{low:.2f}-{high:.2f}",
            "-" if apart is None else f"{apart:.0e}",
            f"{r['ours']['first_call_s']:.1f} / {r['theirs']['first_call_s']:.1f} s",
            f"{r['ours_peak_bytes'] / 1e9:.2f} / {r['peer_peak_bytes'] / 1e9:.2f} GB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    where = rows[0]["machine"]
    found = {}
    for r in rows:
        found |= {
            k: v for k, v in (r.get("ours", {}) | r.get("theirs", {})).items() if "_" not in k
        }
    versions = ", ".join(f"{name} {value}" for name, value in sorted(found.items()))
    about = [f"{where['processor']}, {where['cores']} cores, {where['date']}, {where['commit']}"]
    if rounds := max((r["rounds"] for r in rows if "rounds" in r), default=0):
        about += [f"medians of {rounds} rounds", versions]
    return "\n".join([*lines, "", "; ".join(about)]) + "\n"


def chart(rows: Sequence[dict], path: Path) -> None:
    """Draw the ratios as bars."""
    from matplotlib.figure import Figure

    measured = [r for r in rows if "ratio" in r][::-1]
    if not measured:
        return
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(measured)), layout="constrained")
    axes, places = figure.subplots(), range(len(measured))
    ratios = [r["ratio"] for r in measured]
    spread = [[abs(r["ratio_range"][end] - r["ratio"]) for r in measured] for end in (0, 1)]
    colors = ["tab:blue" if ratio >= 1 else "tab:orange" for ratio in ratios]
    axes.barh(places, ratios, xerr=spread, color=colors, ecolor="0.4")
    axes.set_yticks(places, [f"{r['case']} · {r['peer']}" for r in measured], fontsize=8)
    axes.axvline(1, color="0.2", linewidth=1)
    axes.set(xscale="log", xlabel="time of the peer / time of asdjax (above 1: asdjax is faster)")
    ticks = [t for t in (0.25, 0.5, 1, 2, 5, 10, 20, 50) if t <= 2 * max(ratios)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    figure.savefig(path, dpi=110)


def read(path: Path) -> list[dict]:
    """Return the rows of an earlier file; exit with a message if it is none."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if rows and all("case" in row and "peer" in row for row in rows):
            return rows
        why = "its lines are no rows"
    except (OSError, ValueError, TypeError) as error:
        why = error
    raise SystemExit(f"--against: {path} is no .jsonl of this program ({why})")


def check(rows: Sequence[dict], before: Sequence[dict], tolerance: float) -> None:
    """Print ratios beside those before; exit with 1 if one fell by more than `tolerance`, or none.

    None: no row is in both, so that nothing can be said.
    """
    old = {(r["case"], r["peer"]): r["ratio"] for r in before if "ratio" in r}
    both = [r for r in rows if "ratio" in r and (r["case"], r["peer"]) in old]
    slower = 0
    for r in both:
        then = old[r["case"], r["peer"]]
        fell = r["ratio"] < (1 - tolerance) * then
        slower += fell
        told = "slower" if fell else "not slower"
        print(f"{r['case']}, {r['peer']}: {r['ratio']:.2f} now, {then:.2f} before: {told}")
    if slower or not both:
        raise SystemExit(f"--against: {slower} of {len(both)} rows that both have are slower")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", required=True, choices=SUITES)
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder of the results")
    parser.add_argument("--against", type=Path, help="an earlier .jsonl: exit with 1 if slower")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of a ratio, for --against")
    parser.add_argument("--attention", choices=KERNELS, default="auto", help="in steps of EAT")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    os.environ["EAT_ATTENTION"] = given.attention  # for the sides
    cases = CASES[given.suite]
    chosen = [c for c in cases if not given.only or any(o.lower() in c.lower() for o in given.only)]
    if not chosen:
        raise SystemExit(
            f"--only: no row has {' or '.join(given.only)}; there are\n  " + "\n  ".join(cases)
        )
    before = []
    if given.against:
        before = read(given.against)
    given.out.mkdir(parents=True, exist_ok=True)
    where, rows = machine(), []
    path = given.out / f"{given.suite}.jsonl"
    path.write_text("")
    for case in chosen:
        for found in compare(given.suite, case, given.rounds):
            rows.append({**found, "machine": where})
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            told = f"{found['ratio']:.2f}" if "ratio" in found else f"absent: {found['absent']}"
            print(f"{case}, {found['peer']}: {told}", flush=True)
        path.with_suffix(".md").write_text(table(rows))
        chart(rows, path.with_suffix(".png"))
    print(table(rows))
    if given.against:
        check(rows, before, given.tolerance)


if __name__ == "__main__":
    main()
