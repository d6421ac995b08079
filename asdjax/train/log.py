"""What a training run tells: `RUN/log.jsonl`, TensorBoard where it is installed, and progress."""

from __future__ import annotations

import json
from pathlib import Path

from asdjax.files import atomic


class Log:
    """One JSON object per logged step, appended; and the same numbers for TensorBoard.

    Args:
      path: of the `.jsonl`; lines of steps after `step` (of a run that was killed later than its
        last checkpoint) are removed.
      step: micro-batches already done.
    """

    def __init__(self, path: Path, step: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        with atomic(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a")
        self._board = _tensorboard(path.parent / "tensorboard")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a log; a killed run may have left half a line."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [line.rstrip("\n") for line in lines if line.endswith("\n")]


def _tensorboard(folder: Path):
    """Return a writer, or None where TensorBoard is not installed."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    return Writer(str(folder))
