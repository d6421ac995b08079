"""Download a file so that an interrupted or wrong transfer never passes for a whole one."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from asdjax.files import full_disk
from asdjax.types import InputError

BACKOFF_S = (0.5, 1.0, 2.0, 4.0)  # waits between attempts that brought no byte
BLOCK_BYTES = 1 << 18
TIMEOUT_S = 30
_TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all (None: not announced)


def download(
    url: str,
    path: Path | str,
    *,
    checksum: str | None = None,
    size: int | None = None,
    progress: Progress = lambda received, total: None,
) -> Path:
    """Download `url` to `path`, which appears only when complete and verified.

    Bytes go to `path` + ".part"; a later call (after Ctrl-C or a lost network) continues there.

    Args:
        checksum: "md5:<hex>" or "sha256:<hex>". A file already at `path` that matches is kept.
        size: bytes expected, if known.
        progress: called with the bytes so far and in all after every block.

    Raises:
        InputError: the address does not answer, the checksum differs (the file is then removed),
            or the disk lacks room.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if checksum and path.is_file() and _digest(path, checksum) == checksum:
        return path
    with full_disk(part):
        _transfer_all(url, part, size, progress)
    if checksum and (found := _digest(part, checksum)) != checksum:
        part.unlink()
        raise InputError(
            f"wrong checksum of {url}: expected {checksum}, got {found}. The file was removed; try "
            "again, and if the sum is wrong again, the file on the server is not the known one"
        )
    return part.replace(path)


def _transfer_all(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Try until `part` is complete; give up after a row of attempts that brought nothing new."""
    failures = 0
    while size is None or _size(part) != size:
        before = _size(part)
        try:
            return _transfer(url, part, size, progress)
        except _TRANSIENT as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > len(BACKOFF_S):
                raise InputError(
                    f"cannot download {url}: {error}. Check the network and run the same command "
                    f"again; it continues after the {_size(part):,} bytes in {part}"
                ) from error
            time.sleep(BACKOFF_S[failures - 1])
    return None


def _transfer(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Make one request for what `part` lacks and append the answer to it."""
    offset = _size(part)
    with _open(url, offset) as response:
        if response.status == 416 and offset:  # nothing after `offset`: complete, or another file
            if response.headers.get("Content-Range") == f"bytes */{offset}":
                return
            part.unlink()
            raise ConnectionError(f"the server has no bytes from {offset} on")
        if response.status != 206:
            offset = 0  # a server without ranges sends everything again
        total = _total(response, offset)
        if size is not None and total not in (None, size):
            part.unlink(missing_ok=True)
            raise InputError(f"expected {size:,} bytes at {url}, the server announces {total:,}")
        check_space(part.parent, (total or size or 0) - offset)
        received = offset
        with part.open("ab" if offset else "wb") as file:
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                received += len(block)
                progress(received, total)
    if total is not None and received != total:
        raise ConnectionError(f"the connection ended after {received:,} of {total:,} bytes")


def _open(url: str, offset: int) -> http.client.HTTPResponse | urllib.error.HTTPError:
    """Send the request. Raise a transient error if waiting may help, else InputError."""
    headers = {"User-Agent": "asdjax", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        problem = f"the server answered {error.code} {error.reason}"
        if error.code in (408, 429) or error.code >= 500:
            raise ConnectionError(problem) from None
        raise InputError(f"cannot download {url}: {problem}; check the address") from None


def _total(response: http.client.HTTPResponse, offset: int) -> int | None:
    """Return the bytes of the whole file; refuse a range that does not start at `offset`."""
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return int(length) if length else None
    content_range = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
    if not match or int(match[1]) != offset:
        raise ConnectionError(f"asked for bytes from {offset} on, got {content_range!r}")
    return int(match[2])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, checksum: str) -> str:
    """Return the checksum of a file in the notation, and with the algorithm, of `checksum`."""
    algorithm = checksum.partition(":")[0]
    if algorithm not in ("md5", "sha256"):
        raise ValueError(f"expected a checksum 'md5:<hex>' or 'sha256:<hex>', got {checksum!r}")
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise InputError if the disk of the existing `folder` has less than `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise InputError(
            f"not enough room in {folder.resolve()}: {needed_bytes / 1e9:.2f} GB needed, "
            f"{free / 1e9:.2f} GB free. Free some space or choose another folder"
        )


def progress_bars():
    """Return rich bars for downloads: bytes, speed, time left; on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
