"""EAT: the names and layouts of the published checkpoints, and ours.

They come in two forms that hold the same numbers:

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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asdjax import params
from asdjax.files import sha256_file
from asdjax.models.backbone import abstract
from asdjax.models.beats import MEL_BANDS
from asdjax.models.eat import RATES, EatConfig
from asdjax.types import InputError
from weights_convert import table, torch_file

HEAD_NORM_EPS = {"fairseq": 1e-6, "Hugging Face": 1e-5}  # of the two implementations
MODALITY = re.compile(r"(?:model\.)?modality_encoders\.(\w+)\..*")
DECODER = re.compile(r"modality_encoders\.IMAGE\.decoder\..*")


def _third(part: int, layout: table.Layout, x: np.ndarray) -> np.ndarray:
    """Lay out q, k or v, which are stacked along the first axis: (3 D, ...)."""
    return layout(np.split(x, 3)[part])


ENCODER = r"(?:modality_encoders\.IMAGE\.)?"
NORM = r"(?:modality_encoders\.IMAGE\.context_encoder\.norm|pre_norm)"
BLOCK = r"blocks\.(\d+)\."
QKV = BLOCK + r"attn\.qkv\."
TABLE: table.Table = [
    (ENCODER + r"extra_tokens", "class_token", table.last),
    (ENCODER + r"local_encoder\.proj\.weight", "patch_embed.kernel", table.patch),
    (ENCODER + r"local_encoder\.proj\.bias", "patch_embed.bias", table.same),
    (ENCODER + r"fixed_positional_encoder\.positions", "positions", partial(np.squeeze, axis=0)),
    (NORM + r"\.weight", "norm.scale", table.same),
    (NORM + r"\.bias", "norm.bias", table.same),
    *(
        (QKV + r"weight", rf"layers.\1.attn.{name}.kernel", partial(_third, part, table.linear))
        for part, name in enumerate("qkv")
    ),
    *(
        (QKV + r"bias", rf"layers.\1.attn.{name}.bias", partial(_third, part, table.same))
        for part, name in enumerate("qkv")
    ),
    (BLOCK + r"attn\.proj\.weight", r"layers.\1.attn.out.kernel", table.linear),
    (BLOCK + r"attn\.proj\.bias", r"layers.\1.attn.out.bias", table.same),
    (BLOCK + r"norm1\.weight", r"layers.\1.attn_norm.scale", table.same),
    (BLOCK + r"norm1\.bias", r"layers.\1.attn_norm.bias", table.same),
    (BLOCK + r"mlp\.(fc1|fc2)\.weight", r"layers.\1.\2.kernel", table.linear),
    (BLOCK + r"mlp\.(fc1|fc2)\.bias", r"layers.\1.\2.bias", table.same),
    (BLOCK + r"norm2\.weight", r"layers.\1.ffn_norm.scale", table.same),
    (BLOCK + r"norm2\.bias", r"layers.\1.ffn_norm.bias", table.same),
    (r"fc_norm\.weight", "head_norm.scale", table.same),
    (r"fc_norm\.bias", "head_norm.bias", table.same),
    (r"head\.weight", "head.kernel", table.linear),
    (r"head\.bias", "head.bias", table.same),
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


def convert_file(
    source: Path | str, out: Path | str, config: Path | str | None = None
) -> params.Header:
    """Convert a checkpoint to a weight file and return its header; write nothing on failure.

    Args:
        source: of the Hugging Face form if its name ends in .safetensors, else of fairseq.
        config: the `config.json` of a Hugging Face file, if it does not lie beside it.

    Raises:
        InputError: not an EAT checkpoint, no configuration, another structure than ours, or
            tensors that are not exactly the model's.
    """
    source = Path(source)
    hugging_face = source.suffix == ".safetensors"
    tensors, cfg = (_read_hugging_face if hugging_face else _read_fairseq)(source, config)
    try:
        state = _state(tensors)
        structure = (_hugging_face_structure if hugging_face else _fairseq_structure)(cfg)
        eps = HEAD_NORM_EPS["fairseq" if _modalities(tensors) else "Hugging Face"]
        structure = replace(structure, head_norm_eps=eps)
        arrays = convert(state, structure)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    header = params.Header("eat", asdict(structure), sha256_file(source))
    params.save(out, arrays, header)
    return header


def convert(state: Mapping[str, Any], config: EatConfig) -> dict[str, np.ndarray]:
    """Return our parameters, float32, from the tensors of a checkpoint, strictly one to one.

    Args:
        state: tensors by name, in either form, without the prefix `model.`.
    """
    return table.convert(state, TABLE, abstract(config)[1])


def _read_fairseq(source: Path, config: Path | str | None) -> tuple[dict, Any]:
    """Return the tensors and the configuration of the model, None without one."""
    if config is not None:
        raise InputError(f"{source}: carries its own configuration ('cfg'); leave --config out")
    tree = torch_file.read(source)
    tree = tree if isinstance(tree, dict) else {}
    tensors = tree.get("model")
    return tensors if isinstance(tensors, dict) else {}, _inside(tree, "cfg", "model")


def _read_hugging_face(source: Path, config: Path | str | None) -> tuple[dict, Any]:
    import safetensors

    if not source.is_file():
        raise InputError(f"{source}: no such file")
    try:
        with safetensors.safe_open(source, framework="numpy") as file:
            if (file.metadata() or {}).get("format") == params.FORMAT:
                raise InputError(f"{source}: a weight file of asdjax already; load it as it is")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"{source}: not a complete safetensors file ({error})") from error
    return tensors, _json(source.with_name("config.json") if config is None else Path(config))


def _json(path: Path) -> Any:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected the config.json that belongs to the weights there, "
            "or where --config says"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def _state(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of encoder and class head by name, without the prefix `model.`."""
    tensors = {str(name): tensor for name, tensor in tensors.items() if name != "_ema"}
    _check_kind(tensors)
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if len(state) < len(tensors):
        twice = [name for name in tensors if f"model.{name}" in tensors]
        raise InputError(f"holds two models{params.listing('with and without `model.`', twice)}")
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
            + params.listing("its first tensors", list(tensors)[:5])
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
    _check_settings(encoder, ALWAYS)
    _check_settings(image, ALWAYS_IMAGE | {"embed_dim": encoder.get("embed_dim")})
    found = _fields(encoder, SIZES, RATES) | _fields(image, IMAGE_SIZES)
    if finetuned:
        _check_settings(model, ALWAYS_FINETUNED)
        found |= _fields(model, ("num_classes",))
    return EatConfig(**found)


def _hugging_face_structure(cfg: Any) -> EatConfig:
    """Return the structure from the content of a `config.json`."""
    if not isinstance(cfg, dict):
        raise InputError(f"config.json: expected an object, got {type(cfg).__name__}")
    cfg = {RENAMED.get(name, name): value for name, value in cfg.items()}
    finetuned = cfg.get("model_variant") == "finetune"
    own = {
        "stride": cfg.get("patch_size"),
        "model_variant": "finetune" if finetuned else "pretrain",
    }
    _check_settings(cfg, ALWAYS_HUGGING_FACE | own)
    found = _fields(cfg, (*SIZES, *IMAGE_SIZES), RATES)
    if finetuned:  # pre-trained ones name a number of classes too
        found |= _fields(cfg, ("num_classes",))
    return EatConfig(**found)


def _inside(tree: Any, *path: str) -> Any:
    """Return what lies at the end of `path` in nested dicts; None if there is nothing."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _check_settings(cfg: dict, wanted: Mapping[str, Any]) -> None:
    """Refuse every setting that has another value than `wanted`; an absent one has not."""
    problems = [
        f"{name}: expected {value!r}, got {cfg[name]!r}"
        for name, value in wanted.items()
        if name in cfg and cfg[name] != value
    ]
    if problems:
        raise InputError(f"another structure than EAT's{params.listing('settings', problems)}")


def _fields(cfg: dict, needed: Sequence[str], known: Sequence[str] = ()) -> dict[str, int | float]:
    """Return fields of `EatConfig` from a file's configuration, of which some may be absent."""
    kinds = {field.name: type(field.default) for field in fields(EatConfig)}
    names = [*needed, *(name for name in known if name in cfg)]
    problems = [
        f"{name}: expected {kinds[name].__name__}, got {cfg.get(name)!r}"
        for name in names
        if type(cfg.get(name)) not in {int, kinds[name]}
    ]
    if problems:
        raise InputError(f"not a configuration of EAT{params.listing('settings', problems)}")
    return {name: kinds[name](cfg[name]) for name in names}
