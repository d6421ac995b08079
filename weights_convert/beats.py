"""BEATs: the names and layouts of the published checkpoints, and ours.

A checkpoint is `{"cfg": dict, "model": {name: tensor}}`, with `"label_dict"` when fine-tuned.
Every tensor of the file must be used exactly once and every parameter of the model be filled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from asdjax.files import sha256_file
from asdjax.models.backbone import abstract
from asdjax.models.beats import BeatsConfig
from asdjax.models.weights_file import Header, listing, save
from asdjax.types import InputError
from weights_convert import table, torch_file


def _conv(x):  # (D, D / groups, K) -> [K, D / groups, D]
    return x.transpose(2, 1, 0)


LAYER = r"encoder\.layers\.(\d+)\."
ATTN = LAYER + r"self_attn\."
POS = r"encoder\.pos_conv\.0\."
TABLE: table.Table = [
    *table.linear("patch_embedding", "patch_embed", table.patches),
    *table.norm("layer_norm", "patch_norm"),
    *table.linear("post_extract_proj", "proj"),
    (POS + r"(?:weight_g|parametrizations\.weight\.original0)", "pos_conv.gain", table.last),
    (POS + r"(?:weight_v|parametrizations\.weight\.original1)", "pos_conv.direction", _conv),
    (POS + r"bias", "pos_conv.bias", table.same),
    *table.norm(r"encoder\.layer_norm", "norm"),
    *table.linear(ATTN + r"(q|k|v|out)_proj", r"layers.\1.attn.\2"),
    *table.linear(ATTN + r"grep_linear", r"layers.\1.attn.gate"),
    (ATTN + r"grep_a", r"layers.\1.attn.gate_scale", np.ravel),
    (ATTN + r"relative_attention_bias\.weight", "relative_bias", table.same),  # in every layer
    *table.norm(LAYER + r"self_attn_layer_norm", r"layers.\1.attn_norm"),
    *table.linear(LAYER + r"(fc1|fc2)(?:\.linear)?", r"layers.\1.\2"),
    *table.norm(LAYER + r"final_layer_norm", r"layers.\1.ffn_norm"),
    *table.linear("predictor", "predictor"),
]
PREFIX = re.compile(r"((?:model\.|module\.|beats\.)*)patch_embedding\.weight")  # of some tools


def convert_file(source: Path | str, out: Path | str, config: str | None = None) -> Header:
    """Convert a checkpoint to a weight file and return its header; write nothing on failure.

    Args:
        config: "base", the published structure, for a file that does not carry its own (`cfg`).

    Raises:
        InputError: not a BEATs checkpoint, or its tensors are not exactly the model's.
    """
    source = Path(source)
    if source.suffix == ".safetensors":
        raise InputError(
            f"{source}: expected the original .pt of BEATs, got a safetensors file; one of EAT is "
            "converted with `python -m weights_convert eat`"
        )
    tree = torch_file.read(source)
    try:
        state = _state(tree)
        structure = _structure(tree, state, config)
        arrays, labels = convert(state, structure), _labels(tree, structure)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    header = Header(structure.kind, asdict(structure), sha256_file(source), labels)
    save(out, arrays, header)
    return header


def convert(state: Mapping[str, Any], config: BeatsConfig) -> dict[str, np.ndarray]:
    """Return our parameters, float32, from the tensors of a checkpoint, strictly one to one.

    Only the relative bias table, which the format repeats in every layer, may come more than once,
    and only with equal values.
    """
    return table.convert(state, TABLE, abstract(config)[1], frozenset({"relative_bias"}))


def _state(tree: Any) -> dict[str, Any]:
    """Return the tensors by name, without the prefixes that wrappers add."""
    tensors = tree.get("model", tree) if isinstance(tree, dict) else None
    tensors = tensors if isinstance(tensors, dict) else {}
    state = {str(name): tensor for name, tensor in tensors.items()}
    prefixes = [match[1] for name in state if (match := PREFIX.fullmatch(name))]
    if not prefixes:
        eat = any("modality_encoders" in name for name in state)
        kind = "EAT (convert it with `python -m weights_convert eat`)" if eat else "another model"
        raise InputError(
            f"not a BEATs checkpoint but {kind}: no tensor named patch_embedding.weight"
            + listing("its first tensors", list(state)[:5])
        )
    if others := [name for name in state if not name.startswith(prefixes[0])]:
        raise InputError(f"more than a BEATs model{listing('other tensors', others)}")
    return {name.removeprefix(prefixes[0]): tensor for name, tensor in state.items()}


def _structure(tree: dict, state: dict[str, Any], config: str | None) -> BeatsConfig:
    cfg = tree.get("cfg")
    if isinstance(cfg, dict) and config is None:
        return BeatsConfig.from_checkpoint(cfg)
    if cfg is not None:
        raise InputError("the file carries its own configuration ('cfg'); leave --config out")
    if config != "base":
        raise InputError(
            "no model configuration ('cfg') in the file; if it has the published base structure, "
            "say so with --config base"
        )
    if "predictor.weight" not in state:
        return BeatsConfig.base()
    return BeatsConfig.base(finetuned_model=True, predictor_class=len(state["predictor.weight"]))


def _labels(tree: dict, config: BeatsConfig) -> tuple[str, ...]:
    """Return the class names of a fine-tuned model in output order."""
    names = tree.get("label_dict")
    if not config.finetuned_model or names is None:
        return ()
    if not isinstance(names, dict) or set(names) != set(range(config.predictor_class)):
        raise InputError(f"label_dict: expected the keys 0..{config.predictor_class - 1}")
    return tuple(str(names[index]) for index in range(config.predictor_class))
