"""What a compiled program says of itself: operations, the bytes they move, loops, collectives.

`read` takes the text of a compiled program (`jax.stages.Compiled.as_text`) and returns every
operation that runs, those of a loop as often as it turns. Operations inside a fusion are none: a
fusion reads its operands and writes its results once.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16, "token": 0}  # of other types
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|"
    r"false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LABEL = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SCRATCH = re.compile(r", s8\[\d+\]\{0\}\)$")  # behind the results of cuBLAS
_KERNELS = ("tpu_custom_call", "triton", "mosaic")  # in the targets of what Pallas compiles
_LAYOUTS = {"ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound"}  # nothing runs
NOTHING = {  # opcodes that are names for other values
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
}
COLLECTIVES = {
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "collective-broadcast",
}
_MOVES = {
    *("copy", "transpose", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "pad"),
    *("concatenate", "gather", "broadcast", "iota", "convert", "reverse"),
}


class Operation(NamedTuple):
    name: str
    opcode: str
    type: str  # of its result
    operands: tuple[str, ...]
    called: tuple[str, ...]  # computations
    text: str  # all of the line


class Work(NamedTuple):
    """An operation that runs."""

    name: str
    kind: str  # product, kernel, fft, collective, reduction, movement or elementwise
    opcode: str  # of what it does; of a fusion "fusion"
    label: str  # where it is from, in the words of JAX
    times: int  # in one call of the program
    bytes: float  # read and written, each time; of a TPU in its fast memory as well
    cycles: int  # as the compiler estimates, each time; 0: it does not say
    result: float  # bytes of the result
    beside: tuple[str, ...] = ()  # of a collective: what the schedule has between its two ends


class Module(NamedTuple):
    entry: str
    computations: dict[str, dict[str, Operation]]


def parse(text: str) -> Module:
    """Return the computations of a compiled program."""
    computations, entry, own = {}, "", {}
    for line in text.splitlines():
        if line.endswith("{") and (head := _HEAD.match(line)):
            own = computations.setdefault(head[1], {})
            entry = head[1] if line.startswith("ENTRY") else entry
        elif name := _NAME.match(line):
            own[name[1]] = _operation(name[1], line[name.end() :])
    return Module(entry, computations)


def _operation(name: str, text: str) -> Operation:
    kind = text[: _closing(text, 0)] if text[0] == "(" else text.split(" ", 1)[0]
    rest = text[len(kind) :].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    called = tuple(
        each.lstrip("%")
        for group in _CALLED.findall(rest[end:])
        for each in group.strip("{}").split(", ")
    )
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[start:end]))
    return Operation(name, rest[:start].strip(), kind, operands, called, text)


def label(operation: Operation) -> str:
    """Return where an operation is from, in the words of JAX; "" where it does not say."""
    found = _LABEL.search(operation.text)
    return found[1] if found else ""


def _closing(text: str, start: int) -> int:
    """Return the place behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"a bracket is open in {text[:80]}")


def size(kind: str) -> float:
    """Return the bytes of a type, such as `(f32[8,128]{1,0}, s32[])`."""
    total = 0.0
    for element, sizes in _ARRAY.findall(kind):
        bits = re.match(r"[a-z]+(\d+)", element)
        each = _BYTES.get(element, int(bits[1]) / 8 if bits else 0)
        total += each * math.prod(int(n) for n in sizes.split(",") if n)
    return total


def read(text: str, turns: int | None = None) -> list[Work]:
    """Return what runs in one call of a compiled program.

    Args:
      text: of the program.
      turns: of loops whose number the compiler does not know.

    Raises:
      ValueError: there is such a loop, and `turns` is None.
    """
    module = parse(text)
    return list(_walk(module, module.entry, 1, turns))


def _walk(module: Module, name: str, times: int, turns: int | None) -> Iterator[Work]:
    own = module.computations[name]
    for place, one in enumerate(own.values()):
        target = _TARGET.search(one.text)
        if one.opcode in NOTHING or one.opcode.endswith(("-done", "-update")):
            continue
        if target and target[1] in _LAYOUTS:
            continue
        if one.opcode == "while":
            own_turns = _turns(module, one) or turns
            if own_turns is None:
                raise ValueError(f"the compiler does not know how often {one.name} turns")
            yield from _walk(module, one.called[0], times * own_turns, turns)
        elif one.opcode in ("call", "conditional", "async-start"):
            branches = [list(_walk(module, each, times, turns)) for each in one.called]
            yield from max(branches, key=lambda works: sum(w.times * w.bytes for w in works))
        else:
            work = _work(module, own, one, times)
            if work.kind == "collective":
                work = work._replace(beside=_beside(own, place, one))
            yield work


def _beside(own: dict[str, Operation], place: int, one: Operation) -> tuple[str, ...]:
    """Return what is scheduled between the start of an operation and its end; nothing without."""
    later = list(own.values())[place + 1 :]
    ends = [
        i
        for i, each in enumerate(later)
        if each.opcode.endswith("-done") and one.name in each.operands
    ]
    return tuple(each.name for each in later[: ends[0]]) if ends else ()


def _turns(module: Module, loop: Operation) -> int | None:
    """Return how often a loop turns: as it says, or as a scan's condition does (i < constant)."""
    if trips := _TRIPS.search(loop.text):
        return int(trips[1])
    condition = module.computations[_CONDITION.search(loop.text)[1]]
    root = next(reversed(condition.values()))
    if root.opcode != "compare" or "direction=LT" not in root.text:
        return None
    bounds = [_CONSTANT.search(condition[name].text) for name in root.operands]
    return next((int(bound[1]) for bound in bounds if bound), None)


def _work(module: Module, own: dict[str, Operation], one: Operation, times: int) -> Work:
    inner = module.computations.get(one.called[0], {}) if one.opcode == "fusion" else {}
    cycles = _CYCLES.search(one.text)
    library = (target := _TARGET.search(one.text)) and target[1].startswith("__cublas")
    result = size(_SCRATCH.sub("", one.type) if library else one.type)
    moved = _written(inner, result)
    for place, operand in enumerate(one.operands):
        whole = size(own[operand].type) if operand in own else 0.0
        moved += _read_of(inner, place, whole)
    return Work(
        one.name,
        _kind(module, one),
        one.opcode,
        label(one),
        times,
        moved,
        int(cycles[1]) if cycles else 0,
        result,
    )


def _read_of(inner: dict[str, Operation], place: int, whole: float) -> float:
    """Return the bytes that a fusion reads of an operand; of one that it slices, the slices."""
    parameter = next(
        (
            o.name
            for o in inner.values()
            if o.opcode == "parameter" and f"parameter({place})" in o.text
        ),
        None,
    )
    users = [o for o in inner.values() if parameter in o.operands]
    if users and all(o.opcode in ("slice", "dynamic-slice", "gather") for o in users):
        return min(whole, sum(size(o.type) for o in users))
    if users and all(
        o.opcode == "dynamic-update-slice" and o.operands[0] == parameter for o in users
    ):
        return 0.0  # updated where it lies
    return whole


def _written(inner: dict[str, Operation], result: float) -> float:
    """Return the bytes that a fusion writes: of an array that it updates in place, the update."""
    root = next(reversed(inner.values())) if inner else None
    if root is not None and root.opcode == "dynamic-update-slice":
        return size(inner[root.operands[1]].type)
    return result


def _kind(module: Module, one: Operation) -> str:
    codes = set(_codes(module, one))
    target = _TARGET.search(one.text)
    if codes & COLLECTIVES:
        return "collective"
    if target and ("gemm" in target[1] or "cublas" in target[1] or "conv" in target[1]):
        return "product"
    if target and any(name in target[1] for name in _KERNELS):
        return "kernel"
    for kind, known in (("product", {"dot", "convolution"}), ("fft", {"fft"})):
        if codes & known:
            return kind
    if codes & {"reduce", "reduce-window", "sort", "scatter"}:
        return "reduction"
    return "movement" if codes <= _MOVES | NOTHING else "elementwise"


def _codes(module: Module, one: Operation) -> Iterator[str]:
    """Yield the opcodes of an operation and of what is fused in it."""
    if one.opcode != "fusion":
        yield one.opcode.removesuffix("-start")
        return
    for inner in module.computations.get(one.called[0], {}).values():
        yield from _codes(module, inner)


def by_kind(works: list[Work]) -> dict[str, dict[str, float]]:
    """Return kernels, bytes and cycles of each kind, of one call."""
    found: dict[str, dict[str, float]] = defaultdict(
        lambda: {"kernels": 0, "bytes": 0, "cycles": 0}
    )
    for one in works:
        own = found[one.kind]
        own["kernels"] += one.times
        own["bytes"] += one.times * one.bytes
        own["cycles"] += one.times * one.cycles
    return dict(found)
