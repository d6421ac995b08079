"""HuBERT of `transformers`, with our weights: a peer to time.

Its attention is PyTorch's fused one ("sdpa"). No dropout, no masks of time or features.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch_parts import LoraLinear
from transformers import HubertConfig, HubertModel

from asdjax.models.speech import SpeechConfig

RULES = (  # our name -> theirs
    (r"convs\.(\d+)\.kernel", r"feature_extractor.conv_layers.\1.conv.weight"),
    (r"convs\.(\d+)\.bias", r"feature_extractor.conv_layers.\1.conv.bias"),
    (r"convs\.(\d+)\.norm\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"frame_norm\.", r"feature_projection.layer_norm."),
    (r"proj\.", r"feature_projection.projection."),
    (r"pos_conv\.gain", r"encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv\.direction", r"encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"pos_conv\.bias", r"encoder.pos_conv_embed.conv.bias"),
    (r"norm\.", r"encoder.layer_norm."),
    (r"layers\.(\d+)\.attn\.(\w+)\.", r"encoder.layers.\1.attention.\2_proj."),
    (r"layers\.(\d+)\.attn_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"layers\.(\d+)\.ffn_norm\.", r"encoder.layers.\1.final_layer_norm."),
)
LAST = {"kernel": "weight", "scale": "weight"}


def torch_speech(
    config: SpeechConfig, params: dict[str, np.ndarray], device: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the encoder: wave `[B, N, 1]` to tokens `[B, L, D]`."""
    model = Speech(config, adapted=False).to(device).eval()
    found = model.model.load_state_dict(speech_state(params), strict=False)
    assert not found.unexpected_keys, found
    assert found.missing_keys in ([], ["masked_spec_embed"]), found
    return model


class Speech(nn.Module):
    def __init__(self, config: SpeechConfig, adapted: bool):
        super().__init__()
        none = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), 0.0)
        none |= {"feat_proj_dropout": 0.0, "layerdrop": 0.0, "apply_spec_augment": False}
        made = HubertConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            attn_implementation="sdpa",
            **none,
        )
        self.model = HubertModel(made)
        for layer in self.model.encoder.layers if adapted else ():
            for name in ("q_proj", "v_proj", "out_proj"):
                old = getattr(layer.attention, name)
                setattr(layer.attention, name, LoraLinear(old.in_features, old.out_features))

    def forward(self, wave):
        return self.model(wave[..., 0]).last_hidden_state


def speech_state(arrays: dict[str, np.ndarray], prefix: str = "") -> dict[str, torch.Tensor]:
    """Return our weights by their names and in their layout."""
    found = {}
    for name, value in arrays.items():
        own = name.removeprefix(prefix)
        whole, _, last = own.rpartition(".")
        if re.fullmatch(r"convs\.\d+", whole) is None:  # whose rules name the kernel
            own = f"{whole}.{LAST.get(last, last)}"
        pattern, theirs = next(rule for rule in RULES if re.match(rule[0], own))
        value = np.array(value)
        if last in ("kernel", "direction"):
            value = value.T.copy()
        if last == "gain":
            value = value[None, None]
        found[prefix + re.sub(pattern, theirs, own, count=1)] = torch.from_numpy(value)
    return found


class Normalized(nn.Module):
    """Int16 waves `[B, N]` to `[B, N, 1]` of mean 0 and variance 1."""

    @torch.no_grad()
    def forward(self, wave):
        wave = wave.float() / 32_768
        wave = wave - wave.mean(1, keepdim=True)
        return (wave / (wave.square().mean(1, keepdim=True) + 1e-7).sqrt())[..., None]
