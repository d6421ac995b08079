"""Finished work: a product is a path and a key, and it is built only where it is not there yet.

FOLDER/finished.json   name of a product -> its key, and the content of each of its files
FOLDER/finished.*.json the same of what other processes built, until all have (`gather`)

A key is plain JSON and holds everything that the product depends on: settings as they are, and the
content of recordings and weights as digests. A product counts as finished when its entry has the
same key and its files still have the content they had. Times of change and paths never matter, so
a copied folder stays valid.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from asdjax.devices import agree, leads, process_number
from asdjax.files import atomic, content_of_file, write_json
from asdjax.types import CONTENT, InputError

FILE = "finished.json"
MOST_DIFFERENCES = 20  # lines of a refusal


@dataclass(frozen=True)
class Product:
    """What one stage leaves in a folder.

    Args:
      folder: of a run, or any other.
      name: a file or a folder in it.
      key: plain JSON: all that the product depends on.
      beside: further files that belong to it, where there are such.
    """

    folder: Path
    name: str
    key: dict
    beside: tuple[str, ...] = ()

    def __post_init__(self):
        # As it is read back: tuples become lists.
        object.__setattr__(self, "key", json.loads(json.dumps(self.key)))

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def files(self) -> list[str]:
        """Return the names, in the folder, of the files that are there."""
        paths = [self.folder / name for name in (self.name, *self.beside)]
        inside = [file for path in paths for file in (path, *sorted(path.rglob("*")))]
        names = [file.relative_to(self.folder).as_posix() for file in inside if file.is_file()]
        return [name for name in names if "/." not in name]  # such as .DS_Store


def make(
    product: Product,
    build: Callable[[], object],
    *,
    force: bool = False,
    reuse: Sequence[Path] = (),
    replaces: bool = True,
    alone: bool = False,
) -> str:
    """Keep a product that is finished, copy it from another folder, or build it.

    Every process of a training makes the same call, of which only the first writes.

    Args:
      build: writes the product at its path; what an interrupted build left is there when it is
        called again. A build that refuses before it writes leaves the earlier product finished.
      force: build in any case.
      reuse: folders of other runs, searched in order for the same product.
      replaces: whether a finished product of another key may be replaced.
      alone: no other process makes this call.

    Returns:
      "kept", "built" or "copied from FOLDER".

    Raises:
      InputError: a finished product of another key must not be replaced; lists what differs.
    """
    found = not force and is_finished(product)
    others = [] if force or found else [replace(product, folder=folder) for folder in reuse]
    other = next((one for one in others if is_finished(one)), None)
    if not alone:
        agree({"--out": str(found), "--reuse": str(other and other.folder)})
    writes = alone or leads()
    if found:
        return "kept"
    if not (force or replaces):
        refuse_others(product)
    if other is None:
        build()
    elif writes:
        _copy(other, product)
    if writes:
        record(product)
    return "built" if other is None else f"copied from {other.folder}"


def is_finished(product: Product) -> bool:
    """Return whether the product is there, of this key, and as it was when it was finished."""
    entry = recorded(product.folder, product.name)
    return entry["key"] == product.key and entry["files"] == _contents(product)


def refuse_others(product: Product) -> None:
    """Raise an InputError with what differs if a finished product of another key is there."""
    before = recorded(product.folder, product.name)["key"]
    if before and product.path.exists():
        refuse(product, before)


def refuse(product: Product, before: dict) -> NoReturn:
    """Raise an InputError with what differs between the key of what is there and the product's."""
    what = f"{product.path} was changed after it was finished"
    if before != product.key:
        lines = differences(before, product.key)
        what = f"{product.path} is there already, from other settings or recordings:\n  "
        what += "\n  ".join(lines)
    raise InputError(f"{what}\nchoose another --out, or replace it with --force")


def differences(before: dict, now: dict) -> list[str]:
    """Return in words what differs between two keys, a line for each entry."""
    versions = [key.get("asdjax", "an earlier version") for key in (before, now)]
    if versions[0] != versions[1]:
        return ["asdjax: {} before, {} now".format(*versions)]
    before, now = _flatten(_brief(before, now)), _flatten(_brief(now, before))
    names = [n for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n)]
    lines = []
    for name in names[:MOST_DIFFERENCES]:
        then, today = before.get(name, "nothing"), now.get(name, "nothing")
        if CONTENT in then and CONTENT in today:
            lines.append(f"{name} differs")
        else:
            then, today = ("something" if CONTENT in x else x for x in (then, today))
            lines.append(f"{name}: {then} before, {today} now")
    if len(names) > len(lines):
        lines.append(f"and {len(names) - len(lines)} more")
    return lines


def _brief(key: dict, other: dict) -> dict:
    """Return a key without the details of those of its parts that the other lacks."""
    brief = {}
    for name, part in key.items():
        if isinstance(part, dict) and isinstance(other.get(name), dict):
            brief[name] = _brief(part, other[name])
        else:
            alone = name not in other and isinstance(part, dict | list)
            brief[name] = CONTENT if alone else part
    return brief


def _flatten(value: object, name: str = "") -> dict[str, str]:
    """Return dotted names to JSON; dicts and lists that hold something become their entries."""
    if not isinstance(value, dict | list) or not value:
        return {name: json.dumps(value)}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    parts = [_flatten(entry, f"{name}.{key}" if name else str(key)) for key, entry in entries]
    return {key: text for part in parts for key, text in part.items()}


def recorded(folder: Path, name: str) -> dict[str, dict]:
    """Return the "key" of a finished product and the content of its "files"; both empty if none."""
    return _entries(folder).get(name, {"key": {}, "files": {}})


def _entries(folder: Path) -> dict[str, dict]:
    """Return what is finished in a folder, by any process."""
    found = _read(folder / FILE)
    for path in _parts(folder):
        found |= _read(path)
    return found


def _read(path: Path) -> dict[str, dict]:
    """Return the entries of a list of finished work; a damaged one has none."""
    try:
        entries = json.loads(path.read_text())
        return {n: {"key": entry["key"], "files": entry["files"]} for n, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _write(path: Path, entries: dict[str, dict]) -> None:
    write_json(path, dict(sorted(entries.items())))


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("finished.*.json"))


def _own(folder: Path) -> Path:
    """Return the list of this process, in which it writes what it finished and nothing else."""
    return folder / (FILE if leads() else f"finished.{process_number()}.json")


def gather(folder: Path) -> None:
    """Make one list of what all processes finished; called by the first while no other writes."""
    if parts := _parts(folder):
        _write(folder / FILE, _entries(folder))
        for path in parts:
            path.unlink()


def _contents(product: Product) -> dict[str, str]:
    return {name: content_of_file(product.folder / name) for name in product.files()}


def record(product: Product) -> None:
    """Count a product as finished."""
    entry = {"key": product.key, "files": _contents(product)}
    own = _own(product.folder)
    _write(own, _read(own) | {product.name: entry})


def forget(product: Product) -> None:
    """No longer count a product as finished."""
    own = _own(product.folder)
    entries = _read(own)
    if entries.pop(product.name, None) is not None:
        _write(own, entries)


def _copy(source: Product, target: Product) -> None:
    """Copy the files of a product, its own file last."""
    for name in reversed(source.files()):
        with atomic(target.folder / name) as temporary:
            shutil.copyfile(source.folder / name, temporary)
