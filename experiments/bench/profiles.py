"""Seconds by operation of one of our rows on this machine.

    python experiments/bench/profiles.py --suite cpu --case "EAT-base LoRA" [--top 25] [--out FILE]

Joins the trace of `jax.profiler` with the compiled program, whose operations it names: their kind,
type, and where they are from in the words of JAX. An operation of a loop counts with all its turns,
and not the loop itself. On a CPU large products that XLA computes by itself, not by YNNPACK, run
apart and are in no event: they are most of what a call takes beside the sum. A profile slows what
it measures; times of `run.py` are without it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import hlo

TURNS = {"while", "call", "conditional"}  # what they contain is named as well


class Entry(NamedTuple):
    seconds: float  # of one call
    calls: int
    name: str
    kind: str  # of the operation's result
    label: str


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        dump, trace = Path(folder) / "hlo", Path(folder) / "trace"
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_dump_to={dump} --xla_dump_hlo_as_text".strip()
        sys.argv[1:] = [given.suite]  # as `sides.py` is started
        import sides

        cases = [case for case in sides.CASES[given.suite] if given.case.lower() in case.lower()]
        if len(cases) != 1:
            raise SystemExit(f"--case: expected a part of one name, got {cases or given.case!r}")
        call = sides.CASES[given.suite][cases[0]]["ours"]()
        call()  # compiles
        call()
        began = time.perf_counter()
        call()
        took = time.perf_counter() - began
        import jax

        with jax.profiler.trace(str(trace)):
            call()
        found = entries(events(trace), operations(dump))
    total = sum(entry.seconds for entry in found)
    print(f"{cases[0]}: {took:.3f} s a call; {total:.3f} s in operations that are named")
    kinds: Counter[str] = Counter()
    for entry in found:
        kinds[entry.name.rstrip("0123456789.").replace(".clone", "")] += entry.seconds
    for name, seconds in kinds.most_common(12):
        print(f"  {seconds:8.3f} s  {name}")
    print()
    for entry in found[: given.top]:
        print(f"{entry.seconds:8.4f} s {entry.calls:6}  {entry.name:34} {entry.kind:44}")
        print(f"{'':17}{entry.label}")
    if given.out:
        rows = [entry._asdict() for entry in found[: given.top]]
        about = {"case": cases[0], "seconds": took, "in_operations": total}
        given.out.write_text(json.dumps({**about, "kinds": kinds, "heaviest": rows}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", required=True, choices=("cpu", "gpu"))
    parser.add_argument("--case", required=True, help="part of the name of one case")
    parser.add_argument("--top", type=int, default=25)
    parser.add_argument("--out", type=Path, help="also write this JSON file")
    return parser.parse_args()


def events(trace: Path) -> dict[str, tuple[float, int]]:
    """Return seconds and number of the events of a trace, by name."""
    found: dict[str, list] = defaultdict(lambda: [0.0, 0])
    for path in trace.rglob("*.trace.json.gz"):
        with gzip.open(path) as file:
            for event in json.load(file)["traceEvents"]:
                if event.get("ph") == "X":
                    own = found[event["name"]]
                    own[0] += event.get("dur", 0) / 1e6
                    own[1] += 1
    return {name: tuple(own) for name, own in found.items()}


def operations(dump: Path) -> dict[str, hlo.Operation]:
    """Return the operations of all compiled programs by name, those of the largest first."""
    found: dict[str, hlo.Operation] = {}
    paths = [p for p in dump.glob("*after_optimizations.txt") if "buffer" not in p.name]
    for path in sorted(paths, key=lambda path: -path.stat().st_size):
        for computation in hlo.parse(path.read_text()).computations.values():
            for name, operation in computation.items():
                found.setdefault(name, operation)
    return found


def entries(events: dict, operations: dict[str, hlo.Operation]) -> list[Entry]:
    """Return what takes time, the heaviest first."""
    found = []
    for name, (seconds, calls) in events.items():
        operation = operations.get(name)
        if operation is None or operation.opcode in TURNS:
            continue
        found.append(Entry(seconds, calls, name, operation.type, hlo.label(operation)))
    return sorted(found, reverse=True)


if __name__ == "__main__":
    main()
