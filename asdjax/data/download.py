"""Download files; an interrupted or damaged transfer is never taken for a complete file.

`download` gets one file; `fetch` downloads, verifies and unpacks an edition's recordings, which
`asdjax.data.archives` lists. Everything else in asdjax works without a network.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Literal

from asdjax.data.archives import ARCHIVES, Archive
from asdjax.files import full_disk
from asdjax.types import InputError

BACKOFF_S = (0.5, 1.0, 2.0, 4.0)  # waits between attempts that brought no byte
BLOCK_BYTES = 1 << 18
TIMEOUT_S = 30
UNPACKED_FACTOR = 1.25  # the archives unpack to 1.15-1.2 times their size
_TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)

Part = Literal["dev", "eval", "all"]
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all (None: not announced)


# --- one file


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
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        "{task.description}",
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )


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
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
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
        raise ConnectionError(f"expected bytes from {offset} on, got {content_range!r}")
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


# --- the recordings of an edition


def fetch(
    year: int,
    part: Part,
    out: Path | str,
    machines: Sequence[str] | None = None,
    mirror: str = "https://zenodo.org",
) -> Path:
    """Download and unpack one edition's recordings; what is already unpacked is left alone.

    Args:
        part: "dev", or "eval" for the additional training and the evaluation test sets (without
            labels: `archives.EVALUATORS` says where those are), or "all" for both, beside each
            other.
        out: the recordings go to `OUT/dcase<year>t2/<part>_data/raw/<machine>/`.
        machines: machine types; None or none for all.
        mirror: a server with Zenodo's `records/` and `api/records/` paths.

    Returns:
        The `raw` folder; of "all" the folder that has both.

    Raises:
        InputError: no such edition, part or machine type; no room; a server that is no Zenodo.
    """
    if part == "all":
        of_part = {one: {a.machine for a in _select(year, one, None)} for one in ("dev", "eval")}
        if unknown := sorted(set(machines or ()) - set().union(*of_part.values())):
            raise InputError(
                f"DCASE {year} has no machine type {', '.join(unknown)}; there are (case matters): "
                f"{', '.join(sorted(set().union(*of_part.values())))}"
            )
        for one, known in of_part.items():
            own = [machine for machine in machines or () if machine in known]
            if own or not machines:
                fetch(year, one, out, own, mirror)
        return Path(out) / f"dcase{year}t2"
    raw = Path(out) / f"dcase{year}t2" / f"{part}_data" / "raw"
    missing = [a for a in _select(year, part, machines) if not _marker(raw, a).exists()]
    if not missing:
        return raw
    raw.mkdir(parents=True, exist_ok=True)
    mirror = mirror.rstrip("/")
    listed = _list_files(missing, mirror)
    sizes = [size for size, _ in listed]
    check_space(raw, int(UNPACKED_FACTOR * sum(sizes) + max(sizes)))
    with progress_bars() as bars:
        for archive, (size, checksum) in zip(missing, listed, strict=True):
            task = bars.add_task(archive.name, total=size)
            file = download(
                f"{mirror}/records/{archive.record}/files/{archive.name}",
                raw.with_name(archive.name),
                checksum=checksum,
                size=size,
                progress=lambda received, _, task=task: bars.update(task, completed=received),
            )
            bars.update(task, description=f"{archive.name} (unpacking)", completed=size)
            unpack(file, raw, archive.machine)
            _marker(raw, archive).touch()
            file.unlink()
            bars.update(task, description=archive.name)
    return raw


def _select(year: int, part: str, machines: Sequence[str] | None) -> list[Archive]:
    """Return the archives wanted; refuse unknown years, parts and machine types."""
    if (year, part) not in ARCHIVES:
        known = ", ".join(f"{y} {p}" for y, p in ARCHIVES)
        raise InputError(f"no recordings for year {year}, part {part!r}; there are: {known}")
    archives = ARCHIVES[year, part]
    known = sorted({archive.machine for archive in archives})
    if unknown := sorted(set(machines or ()) - set(known)):
        raise InputError(
            f"DCASE {year} {part} has no machine type {', '.join(unknown)}; "
            f"there are (case matters): {', '.join(known)}"
        )
    return [a for a in archives if not machines or a.machine in machines]


def _marker(raw: Path, archive: Archive) -> Path:
    """Return the empty file that says "this archive is unpacked"; it goes with its machine."""
    return raw / archive.machine / f".unpacked-{archive.name}"


def _list_files(archives: Sequence[Archive], mirror: str) -> list[tuple[int, str]]:
    """Return size and checksum of each archive; the md5 recorded in the table must agree."""
    listings = {record: _read_record(record, mirror) for record in {a.record for a in archives}}
    files = [listings[archive.record].get(archive.name, (0, "none")) for archive in archives]
    problems = []
    for archive, (_, listed) in zip(archives, files, strict=True):
        known = f"md5:{archive.md5}" if archive.md5 else "a checksum"
        if listed == "none" or (archive.md5 and listed != known):
            problems.append(f"  {archive.name}: expected {known}, listed {listed}")
    if problems:
        raise InputError("\n".join([f"{mirror} has other archives than known:", *problems]))
    return files


def _read_record(record: int, mirror: str) -> dict[str, tuple[int, str]]:
    """Return the size and checksum of every file of a record, as the server lists them."""
    url = f"{mirror}/api/records/{record}"
    with tempfile.TemporaryDirectory() as folder:
        reply = download(url, Path(folder) / "record.json").read_bytes()
    try:
        return {f["key"]: (int(f["size"]), f["checksum"]) for f in json.loads(reply)["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"expected a Zenodo record (JSON) at {url}, got something else") from error


def unpack(file: Path, raw: Path, machine: str) -> None:
    """Unpack a zip of `<machine>/...` into `raw`: first beside it, then by renaming.

    An interruption leaves a machine without the new files or, among folders that both have,
    with some of them, never with half a file. Files of the same name are replaced.
    """
    temporary = raw.with_name(f".unpacking-{file.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of an interrupted call
    try:
        with full_disk(raw), zipfile.ZipFile(file) as archive:
            _refuse_escapes(file, archive.namelist())
            check_space(raw, sum(member.file_size for member in archive.infolist()))
            archive.extractall(temporary)
        if not (temporary / machine).is_dir():
            raise InputError(f"expected a folder {machine} in {file}, found none; remove the file")
        _merge(temporary, raw)
    except zipfile.BadZipFile as error:
        raise InputError(f"{file} is not a whole zip ({error}); remove it and try again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_escapes(file: Path, names: Sequence[str]) -> None:
    """Refuse names that would lie outside the folder unpacked into."""
    paths = {name: PureWindowsPath(name) for name in names}  # knows both kinds of slashes
    if bad := [name for name, path in paths.items() if path.anchor or ".." in path.parts]:
        raise InputError(f"{file} holds unsafe paths, nothing was unpacked: {', '.join(bad[:5])}")


def _merge(source: Path, target: Path) -> None:
    """Move `source` to `target`; folders that exist in both are merged, whole folders renamed."""
    if not (source.is_dir() and target.is_dir()):
        source.replace(target)
        return
    for child in sorted(source.iterdir()):
        _merge(child, target / child.name)
