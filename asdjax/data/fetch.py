"""Fetch the DCASE Task 2 recordings: download, verify and unpack an edition's archives.

Needs a network; everything else in asdjax works without. `asdjax.data.archives` is the table of
what there is.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Literal

from asdjax.data.archives import ARCHIVES, Archive
from asdjax.data.download import check_space, download, progress_bars
from asdjax.files import full_disk
from asdjax.types import InputError

UNPACKED_FACTOR = 1.25  # these archives unpack to 1.15-1.2 times their size


def fetch(
    year: int,
    part: Literal["dev", "eval"],
    out: Path | str,
    machines: Sequence[str] | None = None,
    mirror: str = "https://zenodo.org",
) -> Path:
    """Download and unpack one edition's recordings; what is already unpacked is left alone.

    Args:
        part: "dev", or "eval" for the additional training and the evaluation test sets (without
            labels: `archives.EVALUATORS` says where those are).
        out: the recordings go to `OUT/dcase<year>t2/<part>_data/raw/<machine>/`.
        machines: machine types; None or none for all.
        mirror: a server with Zenodo's `records/` and `api/records/` paths.

    Returns:
        The `raw` folder.
    """
    wanted = _select(year, part, machines)
    folder = Path(out) / f"dcase{year}t2" / f"{part}_data"
    raw = folder / "raw"
    missing = [archive for archive in wanted if not _marker(raw, archive).exists()]
    if missing:
        raw.mkdir(parents=True, exist_ok=True)
        _fetch_archives(missing, raw, mirror.rstrip("/"))
    return raw


def _fetch_archives(archives: Sequence[Archive], raw: Path, mirror: str) -> None:
    """Download, verify and unpack the archives in turn; each zip goes when it is unpacked."""
    listed = _list_files(archives, mirror)
    sizes = [size for size, _ in listed]
    check_space(raw, int(UNPACKED_FACTOR * sum(sizes) + max(sizes)))
    with progress_bars() as bars:
        for archive, (size, checksum) in zip(archives, listed, strict=True):
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


def _select(year: int, part: str, machines: Sequence[str] | None) -> list[Archive]:
    """Return the archives asked for; refuse unknown years, parts and machine types."""
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
    records = {archive.record for archive in archives}
    listings = {record: _read_record(record, mirror) for record in records}
    problems = []
    for archive in archives:
        listed = listings[archive.record].get(archive.name, (0, "none"))[1]
        if listed == "none" or (archive.md5 and listed != f"md5:{archive.md5}"):
            known = f"md5:{archive.md5}" if archive.md5 else "a checksum"
            problems.append(f"  {archive.name}: expected {known}, listed {listed}")
    if problems:
        raise InputError("\n".join([f"{mirror} has other archives than known:", *problems]))
    return [listings[archive.record][archive.name] for archive in archives]


def _read_record(record: int, mirror: str) -> dict[str, tuple[int, str]]:
    """Ask the server for the size and checksum of every file of a record."""
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
    bad = [
        name
        for name in names
        if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts  # both slashes
    ]
    if bad:
        raise InputError(f"{file} holds unsafe paths, nothing was unpacked: {', '.join(bad[:5])}")


def _merge(source: Path, target: Path) -> None:
    """Move `source` to `target`; folders that exist in both are merged, whole folders renamed."""
    if not (source.is_dir() and target.is_dir()):
        source.replace(target)
        return
    for child in sorted(source.iterdir()):
        _merge(child, target / child.name)
