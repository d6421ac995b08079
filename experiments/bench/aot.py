"""Compile asdjax's programs for GPUs and TPUs that are not there, and say what bounds their speed.

    pip install "jax[tpu]"        # or "jax[cuda13]"; in an environment of its own
    python experiments/bench/aot.py --target v5e [--case LoRA] [--out FILE] [--against FILE]
    python experiments/bench/aot.py --target h100 --chips 8

Nothing runs. A table has for each program the clips on a chip, the GFLOP of its matrix products, of
a GPU what its operations read and write in its memory, of a TPU the cycles that its compiler
estimates (of loops as often as they turn), memory, collectives and the bound that follows: on a GPU
its bytes at the full bandwidth, or its products at the peak if these take longer; on a TPU the
compiler's cycles at the published clock; and what devices send each other at the full speed of
their links, less what is scheduled beside it. No compiler says what a Pallas kernel takes; what is
added for it is its products at half of the rate that their depth allows, its bytes at 80 % of the
bandwidth, or its exponentials, whichever take longest; cuDNN's attention counts with its bytes
alone. **Only memory and bytes sent are not estimates.** The JSON has them by kind of operation as
well, and the ten heaviest operations.
`--against` prints the ratios to an earlier JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import hlo
from targets import CUDA, TARGETS, TPU, Target, environment, mesh

HEAVIEST = 10


def main() -> None:
    given = arguments()
    os.environ |= environment(given.target)
    from programs import CASES

    names = [n for n in CASES if not given.case or any(c.lower() in n.lower() for c in given.case)]
    if TARGETS[given.target].platform != CUDA:
        names = [n for n in names if "cuDNN" not in n]
    if not names:
        raise SystemExit(f"--case: none of {'; '.join(CASES)} has {' or '.join(given.case)}")
    batch = given.batch or given.chips * TARGETS[given.target].batch
    if batch % given.chips:
        raise SystemExit(f"--batch: expected a multiple of --chips {given.chips}, got {batch}")
    out = given.out or Path(f"aot-{given.target}-{given.chips}.json")
    rows, apart = [], multiprocessing.get_context("spawn")
    for name in names:
        # A compiler that crashes ends its process: the other programs go on.
        with ProcessPoolExecutor(1, apart) as one:
            try:
                rows.append(one.submit(row, given.target, name, given.chips, batch).result())
                print(line(rows[-1]), flush=True)
            except Exception as error:  # out of memory, say
                crashed = isinstance(error, BrokenProcessPool)
                why = "the compiler crashed" if crashed else str(error).splitlines()[0][:300]
                rows.append({"case": name, "failed": why})
                print(f"{name:26} {why}", flush=True)
        # Nothing compiled is lost.
        out.write_text(json.dumps({"about": about(given), "rows": rows}, indent=1) + "\n")
    if given.against:
        print("\n".join(compared(rows, json.loads(given.against.read_text())["rows"])))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument("--chips", type=int, default=1)
    parser.add_argument("--batch", type=int, help="clips of all chips; 64 on a GPU, 16 on a TPU")
    parser.add_argument("--case", nargs="+", default=[], help="parts of names; all by default")
    parser.add_argument("--out", type=Path, help="JSON; aot-TARGET-CHIPS.json by default")
    parser.add_argument("--against", type=Path, help="print ratios to this JSON")
    return parser.parse_args()


def about(given: argparse.Namespace) -> dict:
    """Return what the numbers are of."""
    import jax
    from run import machine

    found = {"target": given.target, "figures": TARGETS[given.target]._asdict()}
    return found | {"chips": given.chips, "jax": jax.__version__, "compiled on": machine()}


def row(target: str, name: str, chips: int, batch: int) -> dict:
    """Compile a program; return what can be said of one chip."""
    import jax
    import programs

    program = programs.CASES[name](mesh(target, chips), batch)
    how = TARGETS[target]
    began = time.perf_counter()
    traced = program.function.trace(*program.arguments)
    lowered, tiled = traced.lower(lowering_platforms=(how.platform,)), True
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # Untuned, XLA's own kernels may find no tiles for a product.
        if how.platform != CUDA or "output tile sizes" not in str(error):
            raise
        compiled, tiled = lowered.compile({"xla_gpu_enable_triton_gemm": False}), False
    took = time.perf_counter() - began
    memory, works = compiled.memory_analysis(), hlo.read(compiled.as_text(), program.turns)
    works, kernels_s = with_kernels(works, programs.kernels(traced.jaxpr.jaxpr), how)
    moved = sum(w.times * w.bytes for w in works)
    outside = moved - sum(w.times * w.bytes for w in works if w.kind == "kernel")
    cycles = sum(w.times * w.cycles for w in works if w.kind != "collective")
    gflop = (program.gflop or programs.products(traced.jaxpr.jaxpr)) / chips
    products = gflop / how.gflop_s
    bound = cycles / how.ghz / 1e9 if cycles else outside / how.gb_s / 1e9 + kernels_s
    bound = max(bound, products)
    sent = collectives(works, how, chips)
    alone = bound + sum(one["times"] * one["waited_s"] for one in sent)
    unit, other = ("cycles", "bytes") if how.platform == TPU else ("bytes", "cycles")
    heaviest = sorted(works, key=lambda w: w.times * getattr(w, unit), reverse=True)[:HEAVIEST]
    kinds, listed = hlo.by_kind(works), [w._asdict() for w in heaviest]
    for entry in (*kinds.values(), *listed):
        del entry[other]
    return {
        "case": name,
        "rows_per_chip": program.rows // chips,
        "dtype": program.dtype,
        "gflop_needed": gflop,
        "products_by": "XLA" if tiled else "cuBLAS",
        "estimated_bytes": None if how.platform == TPU else moved,
        "kernels": sum(w.times for w in works),
        "estimated_cycles": cycles or None,
        "estimated_kernels_s": kernels_s,
        "estimated_by_kind": kinds,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "collectives": sent,
        "collective_bytes": sum(one["times"] * one["bytes"] for one in sent),
        "compile_s": took,
        "estimated_efficiency": bound / alone,
        "bound_s": alone,
        "bound_rows_per_s": program.rows / alone,
        "bound_utilisation": products / alone,
        "heaviest": listed,
    }


def with_kernels(works: list[hlo.Work], costs: dict, how: Target) -> tuple[list[hlo.Work], float]:
    """Return the work with the cycles of Pallas kernels on a TPU, and the seconds in all of them.

    They are estimated as the head of this file says.

    Args:
      costs: of each kernel by its name and the bytes of its results.

    Raises:
      ValueError: the program has kernels, and none was found as compiled; or one without a cost.
    """
    found, total, rate = [], 0.0, 0.5 * how.gflop_s * 1e9
    for one in works:
        if one.kind == "kernel":
            known = (
                cost
                for (name, size), cost in costs.items()
                if f"{name}/" in f"{one.label}/" and size == one.result
            )
            if (cost := next(known, None)) is None:
                raise ValueError(f"{one.name}: no cost of this kernel is known ({one.label})")
            cost, depth = cost
            products = cost.flops / rate / min(1, depth / how.depth)
            moved = cost.bytes_accessed / (0.8 * how.gb_s * 1e9)
            took = max(products, moved, cost.transcendentals / how.gexp_s / 1e9)
            total += one.times * took
            if how.platform == TPU:
                one = one._replace(cycles=round(took * how.ghz * 1e9))
        found.append(one)
    if costs and not total:
        raise ValueError(f"expected kernels in the compiled program, found none of {list(costs)}")
    return found, total


def collectives(works: list[hlo.Work], how: Target, chips: int) -> list[dict]:
    """Return what devices send each other: bytes, seconds, and how many of them nothing else runs.

    What is scheduled beside takes its compiler's cycles, else its bytes at the full bandwidth; two
    that are under way together share what is beside both.

    Raises:
      ValueError: a collective whose time is not known here.
    """
    left = {
        w.name: w.cycles / how.ghz / 1e9 if w.cycles else w.bytes / how.gb_s / 1e9 for w in works
    }
    found = []
    for one in works:
        if one.kind != "collective":
            continue
        kind, size = one.opcode.removesuffix("-start"), one.result
        if kind not in ("all-reduce", "all-gather"):
            raise ValueError(f"{one.name}: the time of {one.opcode} is not known")
        if one.opcode == "all-gather-start":  # its type has what is given as well
            size *= chips / (chips + 1)
        took = how.sent_s(size, chips, summed=kind == "all-reduce")
        waited = took
        for name in one.beside:
            hidden = min(waited, left.get(name, 0.0))
            waited -= hidden
            left[name] = left.get(name, 0.0) - hidden
        times = {"times": one.times, "estimated_s": took, "waited_s": waited}
        found.append({"name": one.name, "bytes": size} | times)
    return found


def line(row: dict) -> str:
    """Return a row of the table."""
    cycles, share = row["estimated_cycles"], row["bound_utilisation"]
    cells = [
        f"{row['case']:26}{row['rows_per_chip']:7} a chip",
        f"{row['gflop_needed']:9.0f} GFLOP",
        "" if cycles else f"{row['estimated_bytes'] / 1e9:8.1f} GB moved",
        f"{row['kernels']:6} operations",
        f"{cycles:9.3g} cycles" if cycles else "",
        f"{1e3 * row['estimated_kernels_s']:6.1f} ms in kernels",
        f"{row['temporary_bytes'] / 1e9:6.2f} + {row['argument_bytes'] / 1e9:.2f} GB",
        f"{row['collective_bytes'] / 1e6:8.1f} MB sent" if row["collectives"] else "",
        f"efficiency {row['estimated_efficiency']:6.1%}" if row["collectives"] else "",
        f"bound {1e3 * row['bound_s']:8.1f} ms {row['bound_rows_per_s']:10.0f}/s",
        f"{share:5.0%} of the peak",
        f"products by {row['products_by']}" if row["products_by"] != "XLA" else "",
        f"compiled in {row['compile_s']:.0f} s",
    ]
    return ", ".join(cell for cell in cells if cell)


def compared(rows: list[dict], before: list[dict]) -> list[str]:
    """Return the ratios of rows to earlier ones of the same case, now / before."""
    old, lines = {one["case"]: one for one in before if "failed" not in one}, []
    fields = ("estimated_bytes", "estimated_cycles", "temporary_bytes", "kernels", "bound_s")
    for one in rows:
        if one["case"] in old and "failed" not in one:
            pairs = [(name, one[name], old[one["case"]][name]) for name in fields]
            ratios = [f"{name} {now / then:.2f}" for name, now, then in pairs if now and then]
            lines.append(f"{one['case']}, now / before: {', '.join(ratios)}")
    return lines


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
