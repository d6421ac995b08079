"""The public checkpoints, the cache of converted weights, and loading a backbone.

The cache is `ASDJAX_HOME` (default `~/.cache/asdjax`); converted weights lie in its `weights`
folder as NAME.safetensors. `weights_convert.fetch` puts them there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from asdjax.models import backbone
from asdjax.models.backbone import Backbone
from asdjax.models.weights_file import open_weights
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
    kind: str = "beats"


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


def structures() -> dict[str, type]:
    """Return the configuration class of each kind of backbone, as weight files name it."""
    return {structure.kind: structure for structure in get_args(backbone.Structure)}


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
    arrays, header, sha256 = open_weights(path)
    known = structures()
    if header.kind not in known:
        kinds = " or ".join(f"'{kind}'" for kind in known)
        raise InputError(f"{path}: expected weights of kind {kinds}, got '{header.kind}'")
    try:
        config = known[header.kind](**header.config)
        return Backbone(config, arrays, dtype=dtype, labels=header.labels, sha256=sha256)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def find(path_or_name: Path | str) -> Path:
    """Return the weight file of a path or name; InputError says how to get it otherwise."""
    path, name = Path(path_or_name), str(path_or_name)
    if path.suffix == ".safetensors":
        return path
    if path.suffix in (".pt", ".pth", ".bin"):
        known = structures()
        kinds = [kind for kind in known if path.name.lower().startswith(kind)] or known
        to = f"{path} {path.with_suffix('.safetensors').name}"
        ways = " or ".join(f"python -m weights_convert {kind} {to}" for kind in kinds)
        raise InputError(f"{path}: a PyTorch checkpoint has to be converted first: {ways}")
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
    home = os.environ.get("ASDJAX_HOME") or Path.home() / ".cache" / "asdjax"
    return Path(home).expanduser() / "weights" / f"{name}.safetensors"
