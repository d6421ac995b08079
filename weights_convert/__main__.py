"""`python -m weights_convert beats|eat IN OUT.safetensors`: convert without PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from asdjax.models.beats import BeatsConfig
from asdjax.types import InputError
from weights_convert import beats, eat


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.model == "beats":
            config = BeatsConfig.base() if options.config else None
            header = beats.convert_file(options.source, options.out, config)
        else:
            header = eat.convert_file(options.source, options.out, options.config)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.model}, from a file with SHA-256 {header.source_sha256}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weights_convert",
        description="Convert a checkpoint to the weight file of asdjax. PyTorch is not needed, and "
        "nothing in the file is executed.",
    )
    models = parser.add_subparsers(dest="model", required=True)
    for_beats = models.add_parser("beats", help="Microsoft's .pt")
    for_eat = models.add_parser("eat", help="fairseq's .pt or Hugging Face's model.safetensors")
    for each in (for_beats, for_eat):
        each.add_argument("source", type=Path, help="the original file")
        each.add_argument("out", type=Path, help="the .safetensors file to write")
    for_beats.add_argument(
        "--config", choices=["base"], help="the structure of a file that does not carry its own"
    )
    for_eat.add_argument(
        "--config",
        type=Path,
        help="the config.json of a model.safetensors, if it does not lie beside it",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
