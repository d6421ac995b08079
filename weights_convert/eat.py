"""EAT: the names and layouts of the published checkpoints, and ours.

They come in two forms that hold the same values:

- fairseq `.pt`: `{"cfg": dict, "model": {name: tensor}, ...}`. `model` also holds the decoder of
  the pre-training and, as a dict among tensors, the teacher `_ema`; both are left out. Fine-tuned
  files put `model.` before the names of the encoder and add `fc_norm` and `head`.
- Hugging Face `model.safetensors` beside a `config.json`, every name behind `model.`.

Every other tensor must be used exactly once and every parameter of the model be filled. The two
forms normalize before the class head with another epsilon, which is taken over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from asdjax.files import sha256_file
from asdjax.models.backbone import abstract
from asdjax.models.eat import RATES, EatConfig
from asdjax.models.layers import MEL_BANDS
from asdjax.models.weights_file import FORMAT, Header, listing, readable, save
from asdjax.types import InputError
from weights_convert import table, torch_file

HEAD_NORM_EPS = {"fairseq": 1e-6, "Hugging Face": 1e-5}  # of the two implementations
MODALITY = re.compile(r"(?:model\.)?modality_encoders\.(\w+)\..*")
DECODER = re.compile(r"modality_encoders\.IMAGE\.decoder\..*")


ENCODER = r"(?:modality_encoders\.IMAGE\.)?"
NORM = r"(?:modality_encoders\.IMAGE\.context_encoder\.norm|pre_norm)"
BLOCK = r"blocks\.(\d+)\."


def _third(part: int, name: str) -> table.Table:
    """Return the rows of q, k or v, which are stacked along the first axis: (3 D, ...)."""

    def cut(x):
        return np.split(x, 3)[part]

    target = rf"layers.\1.attn.{name}"
    return table.linear(BLOCK + r"attn\.qkv", target, lambda x: cut(x).T, cut)


TABLE: table.Table = [
    (ENCODER + r"extra_tokens", "class_token", table.last),
    *table.linear(ENCODER + r"local_encoder\.proj", "patch_embed", table.patches),
    (ENCODER + r"fixed_positional_encoder\.positions", "positions", lambda x: x.squeeze(0)),
    *table.norm(NORM, "norm"),
    *_third(0, "q"),
    *_third(1, "k"),
    *_third(2, "v"),
    *table.linear(BLOCK + r"attn\.proj", r"layers.\1.attn.out"),
    *table.norm(BLOCK + r"norm1", r"layers.\1.attn_norm"),
    *table.linear(BLOCK + r"mlp\.(fc1|fc2)", r"layers.\1.\2"),
    *table.norm(BLOCK + r"norm2", r"layers.\1.ffn_norm"),
    *table.norm("fc_norm", "head_norm"),
    *table.linear("head", "head"),
]

SIZES = "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps"
IMAGE_SIZES = "patch_size", "max_length"
RENAMED = {"attn_drop_rate": "attention_dropout", "drop_rate": "encoder_dropout"}  # Hugging Face's
# What our model does; a file that says otherwise holds another one.
ALWAYS = {"layer_norm_first": False, "norm_affine": True}
ALWAYS_IMAGE = {
    "in_chans": 1,
    "num_extra_tokens": 1,
    "prenet_depth": 0,
    "fixed_positions": True,
    "use_alibi_encoder": False,
}
ALWAYS_FINETUNED = {"prediction_mode": "CLS_TOKEN", "use_fc_norm": True}
ALWAYS_HUGGING_FACE = {
    **ALWAYS,
    "model_type": "eat",
    "in_chans": 1,
    "mel_bins": MEL_BANDS,
    "qkv_bias": True,
    "fixed_positions": True,
}


def convert_file(source: Path | str, out: Path | str, config: Path | str | None = None) -> Header:
    """Convert a checkpoint to a weight file and return its header; write nothing on failure.

    Args:
        source: of the Hugging Face form if its name ends in .safetensors, else of fairseq.
        config: the `config.json` of a Hugging Face file, if it does not lie beside it.

    Raises:
        InputError: not an EAT checkpoint, no configuration, another structure than ours, or
            tensors that are not exactly the model's.
    """
    source = Path(source)
    if source.suffix == ".safetensors":
        (tensors, cfg), structure_of = _read_hugging_face(source, config), _hugging_face_structure
    elif config is None:
        (tensors, cfg), structure_of = _read_fairseq(source), _fairseq_structure
    else:
        raise InputError(f"{source}: carries its own configuration ('cfg'); leave --config out")
    try:
        state = _state(tensors)
        eps = HEAD_NORM_EPS["fairseq" if _modalities(tensors) else "Hugging Face"]
        structure = replace(structure_of(cfg), head_norm_eps=eps)
        arrays = convert(state, structure)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    header = Header(structure.kind, asdict(structure), sha256_file(source))
    save(out, arrays, header)
    return header


def convert(state: Mapping[str, Any], config: EatConfig) -> dict[str, np.ndarray]:
    """Return our parameters, float32, from the tensors of a checkpoint, strictly one to one.

    Args:
        state: tensors by name, in either form, without the prefix `model.`.
    """
    return table.convert(state, TABLE, abstract(config)[1])


def _read_fairseq(source: Path) -> tuple[dict, Any]:
    """Return the tensors and the configuration of the model, None without one."""
    tree = torch_file.read(source)
    tensors = _inside(tree, "model")
    return tensors if isinstance(tensors, dict) else {}, _inside(tree, "cfg", "model")


def _read_hugging_face(source: Path, config: Path | str | None) -> tuple[dict, Any]:
    """Return the tensors and the content of `config.json`."""
    import safetensors

    with readable(source), safetensors.safe_open(source, framework="numpy") as file:
        if (file.metadata() or {}).get("format") == FORMAT:
            raise InputError(f"{source}: a weight file of asdjax already; load it as it is")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path = source.with_name("config.json") if config is None else Path(config)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected the config.json that belongs to the weights there, "
            "or where --config says"
        )
    try:
        return tensors, json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def _state(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of encoder and class head by name, without the prefix `model.`."""
    tensors = {str(name): tensor for name, tensor in tensors.items() if name != "_ema"}
    _check_kind(tensors)
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if len(state) < len(tensors):
        twice = [name for name in tensors if f"model.{name}" in tensors]
        raise InputError(f"holds two models{listing('with and without `model.`', twice)}")
    return {name: tensor for name, tensor in state.items() if not DECODER.fullmatch(name)}


def _check_kind(tensors: Mapping[str, Any]) -> None:
    """Refuse tensors that are not those of an EAT."""
    if any(name.endswith("patch_embedding.weight") for name in tensors):
        raise InputError(
            "not an EAT checkpoint but BEATs; convert it with `python -m weights_convert beats`"
        )
    if others := _modalities(tensors) - {"IMAGE"}:
        raise InputError(
            "expected the modality IMAGE alone, as EAT calls its log-mel, got also "
            f"{', '.join(sorted(others))}: another model of the data2vec family"
        )
    if not _modalities(tensors) and "model.local_encoder.proj.weight" not in tensors:
        raise InputError(
            "not an EAT checkpoint: no tensor named modality_encoders.IMAGE.* (fairseq) or "
            "model.local_encoder.proj.weight (Hugging Face)"
            + listing("its first tensors", list(tensors)[:5])
        )


def _modalities(tensors: Mapping[str, Any]) -> set[str]:
    """Return the modalities in the names of a fairseq checkpoint; none in another."""
    return {match[1] for name in tensors if (match := MODALITY.fullmatch(str(name)))}


def _fairseq_structure(model: Any) -> EatConfig:
    """Return the structure from `cfg["model"]`."""
    finetuned = bool(_inside(model, "pretrained_model_args"))
    encoder = _inside(model, "pretrained_model_args", "model") if finetuned else model
    image = _inside(encoder, "modalities", "image")
    if not image:
        raise InputError(
            "no model configuration in the file (cfg.model.modalities.image); expected a "
            "checkpoint as fairseq wrote it, or the files from Hugging Face"
        )
    found = _settings(encoder, ALWAYS, SIZES, RATES)
    found |= _settings(image, ALWAYS_IMAGE | {"embed_dim": found["embed_dim"]}, IMAGE_SIZES)
    if finetuned:
        found |= _settings(model, ALWAYS_FINETUNED, ["num_classes"])
    return EatConfig(**found)


def _hugging_face_structure(cfg: Any) -> EatConfig:
    """Return the structure from the content of a `config.json`."""
    if not isinstance(cfg, dict):
        raise InputError(f"config.json: expected an object, got {type(cfg).__name__}")
    cfg = {RENAMED.get(name, name): value for name, value in cfg.items()}
    finetuned = cfg.get("model_variant") == "finetune"
    fixed = ALWAYS_HUGGING_FACE | {
        "stride": cfg.get("patch_size"),
        "model_variant": "finetune" if finetuned else "pretrain",
    }
    # Pre-trained ones name a number of classes too.
    needed = [*SIZES, *IMAGE_SIZES, *["num_classes"] * finetuned]
    return EatConfig(**_settings(cfg, fixed, needed, RATES))


def _inside(tree: Any, *path: str) -> Any:
    """Return what lies at the end of `path` in nested dicts; None if there is nothing."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _settings(
    cfg: dict, fixed: Mapping[str, Any], needed: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, int | float]:
    """Return fields of `EatConfig` from a file's configuration.

    Args:
        fixed: what our model always does; a file that says otherwise is refused.
        needed, optional: names of the fields that must be there and of those that may be.
    """
    kinds = {field.name: type(field.default) for field in fields(EatConfig)}
    names = [*needed, *(name for name in optional if name in cfg)]
    problems = [
        f"{name}: expected {value!r}, got {cfg[name]!r}"
        for name, value in fixed.items()
        if name in cfg and cfg[name] != value
    ]
    problems += [
        f"{name}: expected {kinds[name].__name__}, got {cfg.get(name)!r}"
        for name in names
        if type(cfg.get(name)) not in {int, kinds[name]}
    ]
    if problems:
        raise InputError(f"not the configuration of an EAT{listing('settings', problems)}")
    return {name: kinds[name](cfg[name]) for name in names}
