"""`python -m weights_convert KIND IN OUT.safetensors`: convert without PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from asdjax.models.speech import KINDS
from asdjax.types import InputError
from weights_convert import CONVERTERS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m weights_convert",
        description="Convert a checkpoint to the weight file of asdjax. PyTorch is not needed, and "
        "nothing in the file is executed.",
    )
    parser.add_argument("kind", choices=CONVERTERS, help="of backbone")
    parser.add_argument(
        "source",
        help="the original: Microsoft's .pt of BEATs; fairseq's .pt or Hugging Face's "
        "model.safetensors of EAT; the .pt of EfficientAT; Hugging Face's folder of a speech model",
    )
    parser.add_argument("out", help="the .safetensors file to write")
    parser.add_argument(
        "--config",
        help="beats: `base`, the structure of a file that does not carry its own. "
        "others: the config.json of Hugging Face's form, if it does not lie beside the weights",
    )
    parser.add_argument(
        "--without-head",
        action="store_true",
        help="of a speech model: leave out the head that it was fine-tuned with",
    )
    given = parser.parse_args(arguments)
    options = {"without_head": True, "note": print} if given.without_head else {}
    if options and given.kind not in KINDS:
        parser.error("--without-head is of the speech models; others keep their head")
    try:
        header = CONVERTERS[given.kind](given.source, given.out, given.config, **options)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {given.kind}, from a file with SHA-256 {header.source_sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
