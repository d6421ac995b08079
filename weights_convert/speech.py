"""HuBERT, wav2vec 2.0, WavLM and UniSpeech-SAT: Hugging Face's names and layouts, and ours.

A checkpoint is a folder with `model.safetensors` or `pytorch_model.bin`, `config.json` and
`preprocessor_config.json`. Names may stand behind `hubert.`, `wav2vec2.` and so on. What belongs to
the pre-training is left out; every other tensor must be used exactly once and every parameter of
the model be filled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from asdjax.files import sha256_file
from asdjax.models.backbone import abstract
from asdjax.models.speech import SpeechConfig
from asdjax.models.weights_file import FORMAT, Header, listing, readable, save
from asdjax.types import SAMPLE_RATE_HZ, InputError
from weights_convert import table, torch_file


def _conv(x):  # (O, I, K) -> [K, I, O]
    return x.transpose(2, 1, 0)


CONV = r"feature_extractor\.conv_layers\.(\d+)\."
POS = r"encoder\.pos_conv_embed\.conv\."
LAYER = r"encoder\.layers\.(\d+)\."
ATTN = LAYER + r"attention\."
TABLE: table.Table = [
    (CONV + r"conv\.weight", r"convs.\1.kernel", _conv),
    (CONV + r"conv\.bias", r"convs.\1.bias", table.same),
    *table.norm(CONV + "layer_norm", r"convs.\1.norm"),
    *table.norm(r"feature_projection\.layer_norm", "frame_norm"),
    *table.linear(r"feature_projection\.projection", "proj"),
    (POS + r"(?:weight_g|parametrizations\.weight\.original0)", "pos_conv.gain", table.last),
    (POS + r"(?:weight_v|parametrizations\.weight\.original1)", "pos_conv.direction", _conv),
    (POS + "bias", "pos_conv.bias", table.same),
    *table.norm(r"encoder\.layer_norm", "norm"),
    *table.linear(ATTN + r"(q|k|v|out)_proj", r"layers.\1.attn.\2"),
    *table.linear(ATTN + "gru_rel_pos_linear", r"layers.\1.attn.gate"),
    (ATTN + "gru_rel_pos_const", r"layers.\1.attn.gate_scale", np.ravel),
    (r"encoder\.layers\.0\.attention\.rel_attn_embed\.weight", "relative_bias", table.same),
    *table.norm(LAYER + "layer_norm", r"layers.\1.attn_norm"),
    *table.linear(LAYER + r"feed_forward\.intermediate_dense", r"layers.\1.fc1"),
    *table.linear(LAYER + r"feed_forward\.output_dense", r"layers.\1.fc2"),
    *table.norm(LAYER + "final_layer_norm", r"layers.\1.ffn_norm"),
]
PREFIXES = ("hubert.", "wav2vec2.", "wavlm.", "unispeech_sat.")
PRE_TRAINING = re.compile(
    r"(masked_spec_embed|quantizer|project_q|project_hid|label_embeddings_concat|speaker_proj"
    r"|layer_norm_for_extract)\b.*"
)
HEADS = re.compile(r"(lm_head|classifier|projector|layer_weights|adapter)\b.*")
# What our model does; a file that says otherwise holds another one.
ALWAYS = {
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
}
OURS = "kind", "do_normalize"  # fields that `config.json` does not have
ALWAYS_PREPROCESSOR = {"sampling_rate": SAMPLE_RATE_HZ, "feature_size": 1}


def convert_file(
    kind: str,
    source: Path | str,
    out: Path | str,
    config: Path | str | None = None,
    *,
    without_head: bool = False,
    note: Callable[[str], object] = lambda line: None,
) -> Header:
    """Convert a checkpoint to a weight file and return its header; write nothing on failure.

    Args:
        kind: one of `speech.KINDS`.
        source: the folder, or the file of weights in it.
        config: the `config.json`, if it does not lie beside the weights; its
            `preprocessor_config.json` lies beside it.
        without_head: leave out the head that a fine-tuned model ends with.
        note: is told what is left out of it.

    Raises:
        InputError: no such files, another kind, structure or rate, or tensors that are not exactly
            the model's.
    """
    source = _weights_in(Path(source))
    path = source.with_name("config.json") if config is None else Path(config)
    preprocessor = path.with_name(f"preprocessor_{path.name}")
    structure = _structure(kind, _read_json(path), _read_json(preprocessor))
    try:
        state = _state(_read(source), without_head, note)
        arrays = convert(state, structure)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    header = Header(kind, asdict(structure), sha256_file(source))
    save(out, arrays, header)
    return header


def convert(state: Mapping[str, Any], config: SpeechConfig) -> dict[str, np.ndarray]:
    """Return our parameters, float32, from the tensors of a checkpoint, strictly one to one."""
    return table.convert(state, TABLE, abstract(config)[1])


def _weights_in(source: Path) -> Path:
    if not source.is_dir():
        return source
    names = "model.safetensors", "pytorch_model.bin"
    found = [source / name for name in names if (source / name).is_file()]
    if not found:
        raise InputError(f"{source}: expected {' or '.join(names)} in this folder, got neither")
    return found[0]


def _read(source: Path) -> dict[str, Any]:
    """Return the tensors of a file by name."""
    if source.suffix != ".safetensors":
        tensors = torch_file.read(source)
        return tensors if isinstance(tensors, dict) else {}
    import safetensors

    with readable(source), safetensors.safe_open(source, framework="numpy") as file:
        if (file.metadata() or {}).get("format") == FORMAT:
            raise InputError("a weight file of asdjax already; load it as it is")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected config.json and preprocessor_config.json of the same "
            "page beside the weights, or where --config says"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def _state(
    tensors: Mapping[str, Any],
    without_head: bool = False,
    note: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Return the tensors of the encoder by name, without prefix and what pre-training needs."""
    state: dict[str, Any] = {}
    for name, tensor in tensors.items():
        prefix = next((p for p in PREFIXES if str(name).startswith(p)), "")
        short = str(name).removeprefix(prefix)
        if short in state:
            raise InputError(f"holds two models: {short} with and without {prefix or 'a prefix'}")
        state[short] = tensor
    if "feature_projection.projection.weight" not in state:
        raise InputError(
            "not a speech model of Hugging Face: no tensor named "
            "feature_projection.projection.weight" + listing("its first tensors", list(state)[:5])
        )
    heads = [name for name in state if HEADS.fullmatch(name)]
    if heads and not without_head:
        raise InputError(
            "a fine-tuned model with a head, which asdjax does not use; --without-head leaves it "
            f"out{listing('tensors of the head', heads)}"
        )
    if heads:
        note(f"left out of {len(state)} tensors{listing('the head', heads)}")
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in heads and not PRE_TRAINING.fullmatch(name)
    }


def _structure(kind: str, cfg: dict, preprocessor: dict) -> SpeechConfig:
    """Return the structure that the two JSON files describe."""
    expected = {"model_type": kind, **ALWAYS}
    problems = [
        f"{name}: expected {value!r}, got {found[name]!r}"
        for found, wanted in ((cfg, expected), (preprocessor, ALWAYS_PREPROCESSOR))
        for name, value in wanted.items()
        if name in found and found[name] != value
    ]
    problems += [] if "model_type" in cfg else [f"model_type: expected {kind!r}, got none"]
    given = [f for f in fields(SpeechConfig) if f.name in cfg and f.name not in OURS]
    known = {field.name: cfg[field.name] for field in given}
    for field in given:
        kind_of, value = type(field.default), known[field.name]
        if type(value) not in {tuple: {list}, float: {int, float}}.get(kind_of, {kind_of}):
            problems.append(f"{field.name}: expected {kind_of.__name__}, got {value!r}")
    normalize = preprocessor.get("do_normalize")
    if not isinstance(normalize, bool):
        problems.append(f"do_normalize: expected true or false, got {normalize!r}")
    if problems:
        raise InputError(f"not the configuration of a {kind} model{listing('settings', problems)}")
    return SpeechConfig(kind=kind, **known, do_normalize=normalize)
