"""`python -m weights_convert beats IN.pt OUT.safetensors`: convert without PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from asdjax.models.beats import BeatsConfig
from asdjax.types import InputError
from weights_convert.beats import convert_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    config = BeatsConfig.base() if options.config else None
    try:
        header = convert_file(options.source, options.out, config)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.model}, from a file with SHA-256 {header.source_sha256}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weights_convert",
        description="Convert a PyTorch checkpoint to the weight file of asdjax. PyTorch is not "
        "needed, and nothing in the file is executed.",
    )
    parser.add_argument("model", choices=["beats"])
    parser.add_argument("source", type=Path, help="the original .pt")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--config", choices=["base"], help="the structure of a file that does not carry its own"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
