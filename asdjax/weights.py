"""Where weights come from: the public checkpoints, the cache directory, and loading.

The cache is `ASDJAX_HOME` (default `~/.cache/asdjax`); converted weights lie in its `weights`
folder as NAME.safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asdjax import params
from asdjax.files import sha256_file
from asdjax.models.backbone import STRUCTURES, Backbone
from asdjax.types import InputError

README = "https://github.com/microsoft/unilm/tree/master/beats"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Checkpoint:
    """A public checkpoint of BEATs or EAT (both MIT licence).

    Microsoft links BEATs on OneDrive, which needs a browser. `url` is then a copy that plain HTTP
    can fetch; others made it, so it is trusted only if its SHA-256 is that of Microsoft's file.
    EAT comes from its authors' own pages.
    """

    file: str
    sha256: str  # "" = not published: a download is checked by its format and tensors alone
    page: str  # the authors' link
    url: str | None = None  # None: no copy is known to us
    size: int | None = 361_499_833  # None: not known to us
    kind: Literal["beats", "eat"] = "beats"


def _eat(repository: str, sha256: str = "") -> Checkpoint:
    """Return a checkpoint of EAT's authors; its `config.json` lies beside the weights."""
    page = f"{HUB}/worstchan/{repository}"
    url = f"{page}/resolve/main/model.safetensors"
    return Checkpoint(f"{repository}.safetensors", sha256, page, url, None, "eat")


FINETUNED_BYTES = 363_145_291
CHECKPOINTS = {
    "beats-iter3": Checkpoint(
        "BEATs_iter3.pt",
        "8d1b234032a9ccff353612dc6c20982346dc2968b205b79d97303eb5e77bfb34",
        "https://1drv.ms/u/s!AqeByhGUtINrgcpxJUNDxg4eU0r-vA?e=qezPJ5",
        f"{HUB}/lpepino/beats_ckpts/resolve/main/BEATs_iter3.pt",
    ),
    "beats-iter3-finetuned-cpt1": Checkpoint(
        "BEATs_iter3_finetuned_on_AS2M_cpt1.pt",
        "379369a41d0b3749f746cdcea8036de506cb3aedecce84de7db0a75fda2a4fe7",
        "https://1drv.ms/u/s!AqeByhGUtINrgcplb48ll1zIt82eWQ?e=XyxrX7",
        f"{HUB}/lpepino/beats_ckpts/resolve/main/BEATs_iter3_finetuned_on_AS2M_cpt1.pt",
        FINETUNED_BYTES,
    ),
    "beats-iter3-finetuned-cpt2": Checkpoint(
        "BEATs_iter3_finetuned_on_AS2M_cpt2.pt",
        "08374f1cbd49143900b351bc81cd307de386a11f8e609eb3862634e992068b55",
        "https://1drv.ms/u/s!AqeByhGUtINrgcptb4S-CeJnlJGtZA?e=2FyDy3",
        size=FINETUNED_BYTES,
    ),
    "beats-iter3-plus-as20k": Checkpoint(
        "BEATs_iter3_plus_AS20K.pt",
        "8008b126bb5e8ab08912c60c58847ed676d32e64a5864c922356b7c2522fb2f8",
        "https://1drv.ms/u/s!AqeByhGUtINrgcpvdNz8-aYim60CIg?e=53V8pg",
    ),
    "beats-iter3-plus-as2m": Checkpoint(
        "BEATs_iter3_plus_AS2M.pt",
        "d43cbfad4d7b56381c061d7a24774f908d4d94c72961f6eb1d9090ff18cd8d34",
        "https://1drv.ms/u/s!AqeByhGUtINrgcpke6_lRSZEKD5j2Q?e=A3FpOf",
        f"{HUB}/lpepino/beats_ckpts/resolve/main/BEATs_iter3_plus_AS2M.pt",
    ),
    "beats-iter3-plus-as2m-finetuned-cpt1": Checkpoint(
        "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt1.pt",
        "7f9362028ac6e5c049e8dc314d87e90e4f82a15a8e472deb56af55d7f9b34d6a",
        "https://1drv.ms/u/s!AqeByhGUtINrgcpoZecQbiXeaUjN8A?e=DasbeC",
        size=FINETUNED_BYTES,
    ),
    "beats-iter3-plus-as2m-finetuned-cpt2": Checkpoint(
        "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt",
        "e5815275a04b6885e7b8af63d120b29bffae2cd2225cf4915e1ec6d819d3022c",
        "https://1drv.ms/u/s!AqeByhGUtINrgcpj8ujXH1YUtxooEg?e=E9Ncea",
        f"{HUB}/WeiChihChen/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2/resolve/main/"
        "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt",
        FINETUNED_BYTES,
    ),
    "eat-base": _eat(
        "EAT-base_epoch30_pretrain",
        "8623072d09aac4f3ad1168b4fed3a24e4f68fe1da25b9fe733375efb237e5f48",  # a user's record
    ),
    "eat-base-finetuned": _eat("EAT-base_epoch30_finetune_AS2M"),
    "eat-large": _eat("EAT-large_epoch20_pretrain"),
    "eat-large-finetuned": _eat("EAT-large_epoch20_finetune_AS2M"),
}


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
    arrays, header = params.load(path)
    if header.kind not in STRUCTURES:
        kinds = " or ".join(f"'{kind}'" for kind in STRUCTURES)
        raise InputError(f"{path}: expected weights of kind {kinds}, got '{header.kind}'")
    try:
        return Backbone(
            STRUCTURES[header.kind](**header.config),
            arrays,
            dtype=dtype,
            labels=header.labels,
            sha256=sha256_file(path),
        )
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def find(path_or_name: Path | str) -> Path:
    """Return the weight file of a path or name; InputError says how to get it otherwise."""
    path = Path(path_or_name)
    if path.suffix == ".safetensors":
        return path
    if path.suffix in (".pt", ".pth", ".bin"):
        to = f"{path} {path.with_suffix('.safetensors').name}"
        ways = " or ".join(f"python -m weights_convert {kind} {to}" for kind in _kinds_of(path))
        raise InputError(f"{path}: a PyTorch checkpoint has to be converted first: {ways}")
    name = str(path_or_name)
    _known(name)
    if not cached(name).is_file():
        raise InputError(
            f"the weights {name} are not in {cached(name).parent}; get them with "
            f"`asdjax weights fetch {name}`"
        )
    return cached(name)


def cached(name: str) -> Path:
    """Return where the converted weights of a public checkpoint lie once fetched."""
    home = os.environ.get("ASDJAX_HOME") or Path.home() / ".cache" / "asdjax"
    return Path(home).expanduser() / "weights" / f"{name}.safetensors"


def fetch(
    name: str,
    from_file: Path | str | None = None,
    *,
    note: Callable[[str], None] = print,
    progress: Callable[[int, int | None], None] = lambda received, total: None,
) -> Path:
    """Download, verify, convert and cache a public checkpoint; return the converted file.

    What is cached already is not fetched again, unless `from_file` is given.

    Args:
        name: a key of `CHECKPOINTS`.
        from_file: the original .pt, or EAT's model.safetensors with its config.json beside it, on
            disk, instead of a download. A file whose SHA-256 is not the published one (fine-tuned
            by yourself, say) is converted all the same, with a note; the converted header keeps
            its real SHA-256.
        note: told each step and each oddity.
        progress: called with the bytes so far and in all while downloading.
    """
    checkpoint, target = _known(name), cached(name)
    if from_file is not None:
        source, header = from_file, _convert(checkpoint, Path(from_file), target)
    elif _is_made_from(checkpoint, target):
        return target
    else:
        source, *config = _download(name, checkpoint, target.parent, note, progress)
        header = _convert(checkpoint, source, target, *config)
        for file in (source, *config):
            file.unlink()
    if problem := _unverified(checkpoint, header.source_sha256):
        note(f"note: {source} {problem}; it is '{name}' from now on")
    return target


def _convert(checkpoint: Checkpoint, source: Path, out: Path, *config: Path) -> params.Header:
    from weights_convert import beats, eat

    return (beats if checkpoint.kind == "beats" else eat).convert_file(source, out, *config)


def _is_made_from(checkpoint: Checkpoint, path: Path) -> bool:
    """Tell whether a readable weight file was converted from this checkpoint."""
    try:
        header = params.load(path)[1]
    except InputError:  # absent, damaged, or of an older format
        return False
    return header.kind == checkpoint.kind and checkpoint.sha256 in ("", header.source_sha256)


def _unverified(checkpoint: Checkpoint, sha256: str) -> str:
    """Return what is to be told of a file with this SHA-256; "" if it is the published one."""
    if sha256 == checkpoint.sha256:
        return ""
    if not checkpoint.sha256:
        return f"has the SHA-256 {sha256}; none is published to compare with"
    return (
        f"is not the published {checkpoint.file} (SHA-256 {sha256}, published {checkpoint.sha256})"
    )


def _known(name: str) -> Checkpoint:
    if name not in CHECKPOINTS:
        raise InputError(
            f"{name}: neither a .safetensors file nor a known name ({', '.join(CHECKPOINTS)})"
        )
    return CHECKPOINTS[name]


def _kinds_of(path: Path) -> list[str]:
    """Return which models a file may hold, by its name; all of them if the name does not tell."""
    name = path.name.lower()
    if "beats" in name:  # "eat" is in there too
        return ["beats"]
    return ["eat"] if "eat" in name else list(STRUCTURES)


def _download(name: str, checkpoint: Checkpoint, folder: Path, note, progress) -> list[Path]:
    """Return the downloaded file and, for EAT, the configuration that lies beside it."""
    from asdjax.data.download import download

    if checkpoint.url is None:
        raise InputError(
            f"no address of {checkpoint.file} is known that works without a browser. Download it "
            f"from {checkpoint.page} (linked at {README}), then run "
            f"`asdjax weights fetch {name} --from {checkpoint.file}`"
        )
    size = f" ({checkpoint.size / 1e6:.0f} MB)" if checkpoint.size else ""
    note(f"downloading {checkpoint.url}{size}")
    url, path, config = checkpoint.url, folder / checkpoint.file, []
    if checkpoint.kind == "eat":
        address = url.replace("model.safetensors", "config.json")
        config = [download(address, path.with_suffix(".json"))]
    checksum = f"sha256:{checkpoint.sha256}" if checkpoint.sha256 else None
    download(url, path, checksum=checksum, size=checkpoint.size, progress=progress)
    return [path, *config]
