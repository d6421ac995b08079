"""Get a public checkpoint: download, verify, convert, and put it into the cache of asdjax."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from asdjax.data.download import Progress, download
from asdjax.models import checkpoints
from asdjax.models.checkpoints import Checkpoint
from asdjax.models.speech import KINDS
from asdjax.models.weights_file import load
from asdjax.types import InputError
from weights_convert import CONVERTERS


def fetch(
    name: str,
    source: Path | str | None = None,
    *,
    without_head: bool = False,
    note: Callable[[str], None] = print,
    progress: Progress = lambda received, total: None,
) -> Path:
    """Download, verify, convert and cache a public checkpoint; return the converted file.

    What is cached already is not fetched again, unless `source` is given.

    Args:
        name: of `asdjax weights list`.
        source: the original .pt, EAT's model.safetensors with its config.json beside it, or the
            folder of a speech model, on disk, instead of a download. A file whose SHA-256 is not
            the published one (fine-tuned by yourself, say) is converted all the same, with a note;
            the converted header keeps its real SHA-256.
        without_head: of a speech model: leave out the head that it was fine-tuned with.
        note: called with each step and each oddity.
        progress: called with the bytes so far and in all while downloading.
    """
    checkpoint, target = checkpoints.public(name), checkpoints.cached(name)
    if source is None and _is_made_from(checkpoint, target):
        return target
    downloaded = [] if source else _download(name, checkpoint, target.parent, note, progress)
    original, *config = downloaded or [Path(source)]
    options = {"without_head": True, "note": note} if without_head else {}
    if options and checkpoint.kind not in KINDS:
        raise InputError(f"{name}: only speech models are converted without a head")
    header = CONVERTERS[checkpoint.kind](original, target, *config[:1], **options)
    for file in downloaded:
        file.unlink()
    if header.source_sha256 != checkpoint.sha256:
        published = f"that of the published {checkpoint.file} is {checkpoint.sha256}"
        known = published if checkpoint.sha256 else "none is published to compare with"
        note(
            f"note: {original} has the SHA-256 {header.source_sha256}; {known}; "
            f"it is '{name}' from now on"
        )
    return target


def _is_made_from(checkpoint: Checkpoint, path: Path) -> bool:
    """Return whether a weight file was converted from this checkpoint, and is as it was written."""
    with suppress(InputError):  # absent, damaged, or of an older format
        header = load(path).header
        made_from = checkpoint.sha256 in ("", header.source_sha256)
        return header.kind == checkpoint.kind and made_from and header.checksum != ""
    return False


def _download(
    name: str,
    checkpoint: Checkpoint,
    folder: Path,
    note: Callable[[str], None],
    progress: Progress,
) -> list[Path]:
    """Return the downloaded file and, of Hugging Face's form, the configurations beside it."""
    if checkpoint.url is None:
        raise InputError(
            f"no address of {checkpoint.file} is known that works without a browser. Download it "
            f"from {checkpoint.page} (linked at {checkpoints.README}), then run "
            f"`asdjax weights fetch {name} --from {checkpoint.file}`"
        )
    size = f" ({checkpoint.size / 1e6:.0f} MB)" if checkpoint.size else ""
    note(f"downloading {checkpoint.url}{size}")
    url, path, config = checkpoint.url, folder / checkpoint.file, []
    folder_url, _, file = url.rpartition("/")
    if file in ("model.safetensors", "pytorch_model.bin"):  # Hugging Face's, without configuration
        json = path.with_suffix(".json")
        config = [download(f"{folder_url}/config.json", json)]
        if checkpoint.kind in KINDS:
            beside = json.with_name(f"preprocessor_{json.name}")
            config.append(download(f"{folder_url}/preprocessor_config.json", beside))
    checksum = f"sha256:{checkpoint.sha256}" if checkpoint.sha256 else None
    download(url, path, checksum=checksum, size=checkpoint.size, progress=progress)
    return [path, *config]
