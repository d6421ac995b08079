"""`python -m weights_convert beats|eat IN OUT.safetensors`: convert without PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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
        help="the original file: Microsoft's .pt of BEATs; fairseq's .pt or Hugging Face's "
        "model.safetensors of EAT",
    )
    parser.add_argument("out", help="the .safetensors file to write")
    parser.add_argument(
        "--config",
        help="beats: `base`, the structure of a file that does not carry its own. "
        "eat: the config.json of a model.safetensors, if it does not lie beside it",
    )
    given = parser.parse_args(arguments)
    try:
        header = CONVERTERS[given.kind](given.source, given.out, given.config)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {given.kind}, from a file with SHA-256 {header.source_sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
