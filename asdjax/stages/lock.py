"""One command at a time in a folder: a lock that the system releases when its process ends.

OUT/.asdjax-lock   which process works in OUT, and on which host
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from asdjax.files import TEMPORARY
from asdjax.report import console
from asdjax.types import InputError

LOCK = ".asdjax-lock"
PARTS = ("embeddings", "figures", "first-stage", "pseudo", "scores")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other commands out of a folder, which is made; remove what a killed one left half.

    Raises:
      InputError: another process works in the folder.
    """
    absent = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(_remove_empty, absent)  # where a command was refused
        file, alone = _open(out / LOCK)
        stack.enter_context(file)
        stack.callback((out / LOCK).unlink, missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        if alone:
            _remove_temporary(out)
        yield


def _open(path: Path) -> tuple[TextIO, bool]:
    """Return the open file of the lock, and whether the system keeps others out."""
    while True:
        file = path.open("a+")
        alone = _lock(file, path)
        with suppress(FileNotFoundError):  # the process before removed it in between
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, alone
        file.close()


def _lock(file: TextIO, path: Path) -> bool:
    """Lock a file; return whether its system can do so."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with file:
            file.seek(0)
            other = file.read() or "another process"
        raise InputError(
            f"{path.parent} is in use by {other}; wait until that command ends, stop it, or use "
            "another folder"
        ) from error
    except (ImportError, OSError) as error:  # not on this system, not on this disk
        console.note(f"{path.parent} cannot be locked ({error}): give one command there at a time")
        return False
    return True


def _remove_temporary(out: Path) -> None:
    """Remove files that a killed process was writing; members of an ensemble look after theirs."""
    inside = [path for part in PARTS for path in (out / part).rglob(TEMPORARY)]
    for path in (*out.glob(TEMPORARY), *inside):
        path.unlink()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove a folder and those that it was in, while they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
