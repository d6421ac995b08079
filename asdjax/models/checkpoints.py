"""The public checkpoints, the cache of converted weights, and loading a backbone.

The cache is `ASDJAX_HOME` (default `~/.cache/asdjax`); converted weights lie in its `weights`
folder as NAME.safetensors. `weights_convert.fetch` puts them there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from asdjax.files import cache_folder, read_csv
from asdjax.models import backbone
from asdjax.models.backbone import Backbone
from asdjax.models.weights_file import open_weights
from asdjax.types import InputError

README = "https://github.com/microsoft/unilm/tree/master/beats"


@dataclass(frozen=True)
class Checkpoint:
    """A public checkpoint.

    BEATs, EAT and EfficientAT ("mn") have the MIT licence, HuBERT and wav2vec 2.0 Apache-2.0; for
    WavLM and UniSpeech-SAT see their pages. Microsoft links BEATs on OneDrive, which needs a
    browser. `url` is then a copy that plain HTTP can fetch; others made it, so it is trusted only
    if its SHA-256 is that of Microsoft's file. The others come from their authors' own pages; that
    of eat-base has its SHA-256 from a user's record.
    """

    file: str
    sha256: str  # "" = not published: a download is checked by its format and tensors alone
    page: str  # the authors' link
    url: str | None = None  # None: no copy is known to us
    size: int | None = None  # bytes; None: not known to us
    kind: str = "beats"


def _read_table() -> dict[str, Checkpoint]:
    _, *rows = read_csv(Path(__file__).with_name("checkpoints.csv"))
    return {
        name: Checkpoint(file, sha256, page, url or None, int(size) if size else None, kind)
        for name, kind, file, sha256, size, page, url in rows
    }


CHECKPOINTS = _read_table()


def structures() -> dict[str, type]:
    """Return the configuration class of each kind of backbone, as weight files name it."""
    known = get_args(backbone.Structure)
    return {kind: structure for structure in known for kind in structure.kinds}


def load_backbone(
    path_or_name: Path | str, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Backbone:
    """Return the encoder of a converted weight file or of a fetched public checkpoint.

    Args:
        path_or_name: a .safetensors file, or a name of `CHECKPOINTS`.
        dtype: of the matrix products.

    Raises:
        InputError: no such file or name, not converted, or weights that do not fit.
    """
    path = find(path_or_name)
    config = structure_of(path)
    arrays, header, sha256 = open_weights(path)
    try:
        return Backbone(config, arrays, dtype=dtype, labels=header.labels, sha256=sha256)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def structure_of(path_or_name: Path | str) -> backbone.Structure:
    """Return the structure that a weight file is of; arguments and errors as `load_backbone`."""
    path = find(path_or_name)
    header, known = open_weights(path).header, structures()
    if header.kind not in known:
        kinds = " or ".join(f"'{kind}'" for kind in known)
        raise InputError(f"{path}: expected weights of kind {kinds}, got '{header.kind}'")
    try:
        return known[header.kind](**header.config)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def find(path_or_name: Path | str) -> Path:
    """Return the weight file of a path or name; InputError says how to get it otherwise."""
    path, name = Path(path_or_name), str(path_or_name)
    if path.suffix == ".safetensors":
        return path
    if path.suffix in (".pt", ".pth", ".bin"):
        kinds = [kind for kind in structures() if path.name.lower().startswith(kind)]
        way = f"python -m weights_convert {kinds[0] if kinds else 'KIND'} {path} "
        which = "" if kinds else f", where KIND is {' or '.join(structures())}"
        way += path.with_suffix(".safetensors").name + which
        raise InputError(f"{path}: a PyTorch checkpoint has to be converted first: {way}")
    public(name)
    if not cached(name).is_file():
        raise InputError(
            f"the weights {name} are not in {cached(name).parent}; get them with "
            f"`asdjax weights fetch {name}`"
        )
    return cached(name)


def public(name: str) -> Checkpoint:
    """Return a public checkpoint; InputError lists the names that are known."""
    if name not in CHECKPOINTS:
        raise InputError(
            f"{name}: neither a .safetensors file nor a known name ({', '.join(CHECKPOINTS)})"
        )
    return CHECKPOINTS[name]


def cached(name: str) -> Path:
    """Return where the converted weights of a public checkpoint lie once fetched."""
    return cache_folder() / "weights" / f"{name}.safetensors"
