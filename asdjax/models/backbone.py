"""A pretrained backbone as users see it: waves in, tokens out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.efficientat import EfficientATConfig
from asdjax.models.layers import InitialKeys, Which, check_layer, patch_grid
from asdjax.models.speech import SpeechConfig
from asdjax.models.weights_file import Params, merge, misfits, split
from asdjax.types import InputError

# The configuration of every backbone. Each offers the following, so that no other code asks which
# one it is:
#   kinds                     what headers of weight files call it, one or several
#   frontend(wave, lengths)   features `[B, T, F]` of waves `[B, N]`, or the waves; pure
#   token_padding(N, lengths) `[B, L]` bool, True = padding, for rows of N samples; pure
#   for_features(params)      structure and weights without a class head
#   width, layers_count       D, and how many layers; 0: the last one alone is given
#   bands                     patches beside each other in frequency; 1: SpecAugment is refused
#   extra_tokens              before the patches: 1 with a class token, else 0
#   shortest_samples          of a wave
#   has_classes               whether there is a class head
#   build(**how)              the module, `(features, padding, layer) -> tokens`; dtype, ...; no
#                             clip sees another one
#   token_count(samples)      L, extra tokens included, of a row of `samples`
#   clip_bytes(samples, how)  memory of the forward pass of a row, at most, with such attention;
#                             inf: it is too long
#   without_dropout()         the structure with every rate of dropping values and layers at 0
Structure = BeatsConfig | EatConfig | EfficientATConfig | SpeechConfig


class Backbone:
    """BEATs, EAT, EfficientAT or a speech model, with its front end and weights.

    A wave is `[B, N]`, 16 kHz, float in [-1, 1] or int16. `lengths [B]` are the valid samples of
    each clip, at least `config.shortest_samples`; the rest of its row should be zeros. A clip of
    any model but BEATs gives the tokens it gives alone, whatever row it is in. For BEATs, as
    in the reference, lengths only decide which tokens are padding: the front end sees the whole
    row, so a clip in a longer row gives nearly, not exactly, its own tokens (the filter bank of
    zeros is not "nothing").

    Args:
        config: the structure.
        params: one array per name; refused with a list when names or shapes do not fit.
        dtype: of the matrix products; the weights stay float32. On NVIDIA cards "float32"
            follows `jax_default_matmul_precision`, whose default there is TF32.
        labels: class names of a fine-tuned model.
        sha256: of the file the weights come from; "" when made up.

    Example:
        backbone = asdjax.load_backbone("beats-iter3")
        tokens = backbone(wave)  # [B, L, D]
        embedding = tokens.mean(1)
        patches = backbone.patches(tokens)  # [B, T, F, D], without EAT's class token tokens[:, 0]
    """

    def __init__(
        self,
        config: Structure,
        params: Mapping[str, jax.Array | np.ndarray],
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        labels: tuple[str, ...] = (),
        sha256: str = "",
    ):
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"expected dtype float32 or bfloat16, got {dtype}")
        self._graph, expected = abstract(config, dtype)
        if problems := misfits(params, expected):
            raise InputError(f"the weights do not fit the model{problems}")
        self.config, self.labels, self.sha256 = config, labels, sha256
        self.params: Params = {
            name: jnp.asarray(value, jnp.float32) for name, value in params.items()
        }
        self._frontend = jax.jit(config.frontend)
        self._tokens = jax.jit(self.apply, static_argnames="layer")
        self._classify = jax.jit(self._probabilities)

    def frontend(self, wave, lengths=None) -> jax.Array:
        """Return what the model is given: a normalized log-mel `[B, T, 128]`, or the wave.

        See `frontend` of the structure; `lengths` does not matter to BEATs.
        """
        self._check(wave, lengths)
        return self._frontend(wave, _array(lengths))

    def __call__(self, wave, lengths=None, layer: Which = None) -> jax.Array:
        """Return float32 tokens `[B, L, D]`, compiled once per shape.

        Args:
            layer: 0 is the input of the first layer, i the output of layer i, "mean" the mean of
                all outputs; None the final one.
        """
        self._check(wave, lengths)
        return self._tokens(self.params, wave, _array(lengths), layer=layer)

    def classify(self, wave, lengths=None) -> jax.Array:
        """Return class probabilities `[B, C]` of a fine-tuned model.

        They are in the order of `labels`, which BEATs' files carry and EAT's do not.
        """
        if not self.config.has_classes:
            raise InputError("this model has no class head; load a fine-tuned one")
        self._check(wave, lengths)
        return self._classify(self.params, wave, _array(lengths))

    def apply(self, params: Params, wave, lengths=None, layer: Which = None) -> jax.Array:
        """Do the same as a call, purely, for use inside the caller's own jit; shapes unchecked."""
        check_layer(layer, self.config.layers_count)
        check_samples(self.config, wave.shape[1])
        padding = None if lengths is None else self.token_padding(wave.shape[1], lengths)
        mel = self.config.frontend(wave, lengths)
        return merge(self._graph, params)(mel, padding, layer)

    def token_padding(self, samples: int, lengths) -> jax.Array:
        """Return `[B, L]` bool, True = padding, for rows of `samples`; pure."""
        return self.config.token_padding(samples, lengths)

    def token_count(self, samples: int) -> int:
        """Return L, the tokens of a row of `samples`, with the class token if there is one."""
        return self.config.token_count(samples)

    def patches(self, tokens: jax.Array) -> jax.Array:
        """Return `[B, T, F, D]` from `[B, L, D]`: time and band of each patch, no class token."""
        return patch_grid(tokens, self.config.extra_tokens, self.config.bands)

    def _probabilities(self, params, wave, lengths):
        padding = None if lengths is None else self.token_padding(wave.shape[1], lengths)
        model = merge(self._graph, params)
        return model.classify(model(self.config.frontend(wave, lengths), padding), padding)

    def _check(self, wave, lengths) -> None:
        """Refuse what cannot be computed; host work only, no device is waited for."""
        shape, dtype = np.shape(wave), np.dtype(wave.dtype)
        if len(shape) != 2 or 0 in shape:
            raise InputError(f"expected a wave [B, N], got shape {shape}")
        if dtype.kind != "f" and dtype != np.int16:
            raise InputError(f"expected float samples in [-1, 1] or int16, got {dtype}")
        check_samples(self.config, shape[1])
        if lengths is not None and np.shape(lengths) != shape[:1]:
            raise InputError(f"expected lengths {shape[:1]}, got {np.shape(lengths)}")
        if lengths is not None and not isinstance(lengths, jax.Array):  # a device is not waited for
            check_samples(self.config, int(np.min(lengths)))


def check_samples(config: Structure, samples: int) -> None:
    if samples < config.shortest_samples:
        raise InputError(
            f"expected at least {config.shortest_samples} samples (one token), got "
            f"{samples}; pad the clip"
        )


def _array(lengths) -> jax.Array | None:
    return None if lengths is None else jnp.asarray(lengths)


def abstract(config: Structure, dtype: str = "float32") -> tuple[nnx.GraphDef, dict]:
    """Return the model's graph and the shape of each parameter, without making any."""
    return split(nnx.eval_shape(lambda: config.build(dtype=dtype, rngs=InitialKeys(0))))


def initialize(config: Structure, seed: int = 0) -> Params:
    """Return random weights, for training from scratch and for benchmarks without a checkpoint."""
    return split(config.build(rngs=InitialKeys(seed)))[1]
