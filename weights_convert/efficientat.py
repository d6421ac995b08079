"""EfficientAT: the names and layouts of the published checkpoints, and ours.

A file is a `.pt` of named tensors without a configuration: the width of the network is that of its
class head. Models with other time steps or numbers of bands have the same tensors, so that a file
cannot say what it was trained on; ours are those of 10 ms and 128 bands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from asdjax.files import sha256_file
from asdjax.models.backbone import abstract
from asdjax.models.efficientat import HIDDEN, EfficientATConfig
from asdjax.models.weights_file import Header, listing, save
from asdjax.types import InputError
from weights_convert import table, torch_file

COUNTERS = ".num_batches_tracked"  # of norms in training; nothing reads them
HEAD = "classifier.2.weight", "classifier.5.weight"


def convert_file(source: Path | str, out: Path | str, config: Path | str | None = None) -> Header:
    """Convert a checkpoint to a weight file and return its header; write nothing on failure.

    Raises:
        InputError: not such a checkpoint, another head or structure than ours, a configuration.
    """
    if config is not None:
        raise InputError(f"{source}: such files have no configuration; leave --config out")
    tensors = torch_file.read(source)
    try:
        structure = structure_of(tensors)
        arrays = convert(tensors, structure)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    header = Header(structure.kind, asdict(structure), sha256_file(Path(source)))
    save(out, arrays, header)
    return header


def structure_of(tensors: Any) -> EfficientATConfig:
    """Return the structure, from the shapes of the class head."""
    tensors = tensors if isinstance(tensors, dict) else {}
    shapes = [np.shape(tensors.get(name)) for name in HEAD]
    if "features.0.0.weight" not in tensors or any(len(shape) != 2 for shape in shapes):
        raise InputError(
            f"not an EfficientAT with two dense layers behind its features (tensors "
            f"features.0.0.weight, {', '.join(HEAD)})"
            + listing("its first tensors", list(map(str, tensors))[:5])
        )
    return EfficientATConfig(shapes[0][0] / HIDDEN, shapes[1][0])


def convert(tensors: Mapping[str, Any], config: EfficientATConfig) -> dict[str, np.ndarray]:
    """Return our parameters, float32, from the tensors of a checkpoint, strictly one to one."""
    state = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)}
    return table.convert(state, _table(config), abstract(config)[1])


def _table(config: EfficientATConfig) -> table.Table:
    rows = _convolution(r"features\.0", "stem", _filters)
    for i, block in enumerate(config.blocks):
        parts = ["expand"] * (block.hidden != block.inputs) + ["depthwise"]
        parts += ["squeeze"] * (block.squeeze > 0) + ["project"]
        for j, part in enumerate(parts):
            theirs = rf"features\.{i + 1}\.block\.{j}"
            if part == "squeeze":
                rows += table.linear(rf"{theirs}\.conc_se_layers\.0\.(fc1|fc2)", rf"blocks.{i}.\1")
            else:
                layout = _filters if part == "depthwise" else _products
                rows += _convolution(theirs, f"blocks.{i}.{part}", layout)
    rows += _convolution(rf"features\.{len(config.blocks) + 1}", "last")
    return rows + table.linear(r"classifier\.2", "hidden") + table.linear(r"classifier\.5", "head")


def _products(x):  # (out, in, 1, 1) -> [in, out]
    return x.reshape(x.shape[:2]).T


def _filters(x):  # (channels, 1, mel, time) -> [time, mel, channels]
    return x.transpose(3, 2, 1, 0)[:, :, 0]


def _convolution(theirs: str, ours: str, layout: table.Layout = _products) -> table.Table:
    return [
        (theirs + r"\.0\.weight", ours + ".kernel", layout),
        *table.norm(theirs + r"\.1", ours),
        (theirs + r"\.1\.running_(mean|var)", ours + r".\1", table.same),
    ]
