"""Checkpoints of a run: kept complete, kept few, and refused by another run.

FOLDER/step_<n>/state     the arrays, as orbax stores them
FOLDER/step_<n>/record    JSON: what trained them, and their validation metric

A checkpoint is written beside its place and renamed when complete, so a killed process leaves at
most `step_<n>.<something>`, which the next start removes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax

from asdjax.artifact import differences
from asdjax.files import full_disk
from asdjax.types import InputError, preview

STEP = re.compile(r"step_(\d+)")
LEFTOVER = re.compile(r"step_\d+\.(orbax-checkpoint-tmp.*|removed)")  # half written, half removed
ECHO = "_SignalingThread.run() raised"  # what orbax logs of an error that it also raises
SHARED_BYTES = 2**20  # of a part: devices share the saving of larger arrays, at a compilation each
REMEDY = "run the same command as before, choose another --out, or train anew with --force"


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for the last save.

    Every process of a run makes the same calls; they share the folder.

    Args:
        folder: made when absent.
        described: plain JSON that says what is trained, on what and from what. It is stored with
            each checkpoint; `restore` refuses to go on from another one.
        keep: how many of the newest checkpoints stay, besides the one with the best metric.

    Raises:
        InputError: the folder is a file, or holds something else.

    Example:
        with Checkpoints(out / "checkpoints", described) as checkpoints:
            if checkpoints.latest() is not None:
                state, step = checkpoints.restore(abstract)
            ...
            checkpoints.save(step, state, metric=accuracy)
    """

    def __init__(self, folder: Path, described: dict, keep: int = 2):
        if keep < 1:
            raise ValueError(f"expected keep >= 1, got {keep}")
        self._folder = folder.resolve()  # orbax takes absolute paths only
        self._described = json.loads(json.dumps(described))  # as it will be read: tuples are lists
        self._keep = keep
        self._metrics: dict[int, float | None] = {}  # of each complete checkpoint
        self._saving: tuple[int, float | None, Any] | None = None  # step, metric, orbax's response

    def __enter__(self) -> Checkpoints:
        _clean(self._folder)
        for path in self._folder.iterdir():
            if found := STEP.fullmatch(path.name):
                self._metrics[int(found[1])] = _metric(path)
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def latest(self) -> int | None:
        """Return the newest step, None without any; waits for a save."""
        self.wait()
        return max(self._metrics, default=None)

    def best(self) -> int | None:
        """Return the step with the largest metric, the newer of equals; waits for a save."""
        self.wait()
        measured = {step: m for step, m in self._metrics.items() if m is not None}
        return max(measured, key=lambda step: (measured[step], step), default=None)

    def save(self, step: int, state: Any, metric: float | None = None) -> None:
        """Start to save `state`; it may be donated as soon as this returns.

        orbax has then copied it to the host. (On CPUs it holds the very buffers instead, and JAX
        donates none that others hold.) Waits for the save before.

        Args:
            state: tree of arrays, typed random keys among them.
            metric: larger is better; None (or nan) where nothing was measured.

        Raises:
            InputError: the disk is full, now or during the save before.
        """
        self.wait()
        metric = None if metric is None or math.isnan(metric) else float(metric)
        record = {"described": self._described, "metric": metric}
        ocp, context = _orbax()
        with context, _full_disk(self._folder):
            response = ocp.save_checkpointables_async(
                self._path(step), {"state": state, "record": record}
            )
        self._saving = step, metric, response

    def wait(self) -> None:
        """Wait until the last save is on disk, then remove the checkpoints no longer kept."""
        if self._saving is None:
            return
        step, metric, response = self._saving
        try:
            with _full_disk(self._folder):
                response.result()
        except Exception:
            self._saving = None  # it is over; after Ctrl-C it is not, and `__exit__` waits again
            _remove_leftovers(self._folder)
            raise
        self._saving = None
        self._metrics[step] = metric
        newest = sorted(self._metrics)[-self._keep :]
        for old in self._metrics.keys() - {*newest, self.best()}:
            self._remove(old)

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, int]:
        """Return the state of a checkpoint and its step.

        Args:
            abstract: tree of arrays or `jax.ShapeDtypeStruct` with shardings: where each shall lie.
            step: which; None takes the newest.

        Raises:
            InputError: made by another command (each field that differs is named), or damaged.
        """
        self.refuse_others()
        step = self.latest() if step is None else step
        with self._named(step) as path:
            return _load(path, "state", abstract), step

    def refuse_others(self) -> None:
        """Raise InputError, with each field that differs, where another command made the newest."""
        step = self.latest()
        if step is not None:
            with self._named(step) as path:
                self._compare(_load(path, "record")["described"])

    @contextlib.contextmanager
    def _named(self, step: int) -> Iterator[Path]:
        """Yield the path of a checkpoint; an error while it is read becomes one of the user's."""
        path = self._path(step)
        try:
            yield path
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # says nothing against the checkpoint
        except Exception as error:  # orbax and tensorstore have no common one for damage
            cause = _innermost(error)
            reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
            raise InputError(
                f"expected a whole checkpoint at {path}, got: {reason}\nremove that folder to go "
                "on from the one before, or train anew with --force"
            ) from error

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step}"

    def _compare(self, stored: dict) -> None:
        if lines := differences(stored, self._described):
            listed = "".join(f"\n  {line}" for line in lines)
            raise InputError(
                f"expected checkpoints of this training in {self._folder}, got those of another:"
                f"{listed}\n{REMEDY}"
            )

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, out of sight first: a kill leaves no half of it."""
        del self._metrics[step]
        if jax.process_index() == 0:
            gone = self._path(step).rename(self._folder / f"step_{step}.removed")
            shutil.rmtree(gone, ignore_errors=True)  # the next start tries again


def _clean(folder: Path) -> None:
    """Make the folder, refuse one of other things, remove what a killed process left in it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder for checkpoints, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    foreign = [n for n in names if not STEP.fullmatch(n) and not LEFTOVER.fullmatch(n)]
    if foreign:
        raise InputError(
            f"expected nothing but checkpoints in {folder}, got {preview(foreign, 10)}; "
            "move it elsewhere or choose another --out"
        )
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    if jax.process_index() == 0:
        for path in folder.iterdir():
            if LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _orbax() -> tuple[Any, Any]:
    """Return orbax (0.2 s to import) and a context in which a "record" is JSON, not arrays."""
    from orbax.checkpoint import v1 as ocp

    _quieten()
    context, registry = ocp.Context(), ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="record")
    context.checkpointables.registry = registry
    context.array.saving.min_slice_bytes_for_replica_parallel = SHARED_BYTES
    return ocp, context


@cache
def _quieten() -> None:
    """Print no traceback of an error that is raised: orbax does so in every thread that waits.

    And tensorstore does where a write ends when nobody waits any more, as the one before failed.
    """
    told = sys.unraisablehook

    def tell(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            told(unraisable)

    sys.unraisablehook = tell
    logging.getLogger("absl").addFilter(lambda record: ECHO not in str(record.msg))


def _load(path: Path, part: str, abstract: Any = None) -> Any:
    ocp, context = _orbax()
    with context:
        return ocp.load_checkpointables(path, {part: abstract})[part]


def _metric(path: Path) -> float | None:
    """Return the metric of a checkpoint; None without one, or when it cannot be read."""
    try:
        return _load(path, "record")["metric"]
    except Exception:  # `restore` says what is wrong with it, should it come to that
        return None


def _innermost(error: BaseException) -> BaseException:
    """Return the first of a chain of errors: orbax wraps it in what else it tried."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Turn "no space left" into an InputError, also where it comes as text (tensorstore)."""
    with full_disk(folder):
        try:
            yield
        except ValueError as error:
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            raise OSError(errno.ENOSPC, str(error)) from error
