"""An encoder with a pretrained backbone: tokens, pooling, and a dense layer where it is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from asdjax.arithmetic import BFLOAT16_UNITS, processor_flags
from asdjax.devices import by_device
from asdjax.frontend.fbank import FRAME_SAMPLES
from asdjax.models.attention import Implementation
from asdjax.models.backbone import Backbone, Structure, check_samples
from asdjax.models.checkpoints import load_backbone, structure_of
from asdjax.models.layers import Remat, Which, check_layer
from asdjax.models.lora import Lora, adapt
from asdjax.models.pooling import Pool, Pooling, make_pool, pool_width
from asdjax.models.system import Input, Network
from asdjax.types import InputError, check


@dataclass(frozen=True)
class Pretrained:
    """A pretrained backbone and how its tokens become one vector.

    Frozen (in a system without training) it has neither adapter nor dense layer (`embedding` none),
    and pooling without weights.

    Args:
      weights: a name of `asdjax weights list` or a converted `.safetensors` file to start from.
      adapter: LoRA; None trains every weight of the backbone.
      pooling: from tokens to one vector: the mean of the patches, the class token (EAT), or
        attentive statistics of the patches.
      embedding: width of the dense layer behind the pooling; None: no such layer.
      layer: which layer's output is pooled (0: the input of the first), or "mean", that of all
        outputs; several: each by itself, concatenated; None: the last, behind the norm that ends
        some models.
      pools: other means of the patches in place of `pooling`, whose vectors are concatenated, such
        as mean,bands or rdp8power3; none: that.
      scored: means of the patches of a trained backbone that make the vectors that are scored, in
        place of its pooling and dense layer; none: those.
      dropout: drop values and layers in training at the rates that the checkpoint carries. (Its
        decay of gradients from layer to layer, 1 in the pretrained files, holds either way.)
      dtype: of matrix products and of what lies between layers; parameters, sums, pooling and
        margins stay float32. "auto" is bfloat16 on accelerators (of NVIDIA's, those before Ampere
        have no units for it) and on processors with units for it, else float32; a run records
        what it was. bfloat16 moves official numbers of frozen systems by up to 5.5 points
        (experiments/bench/precision.py).
      remat: what is computed again for the gradient instead of being kept. BEATs with LoRA in
        bfloat16 keeps 119 MB of a clip of 10 s; without the hidden values of feed-forward layers
        77 MB (13 % more arithmetic), without all that is inside layers 27 MB (47 % more).
      attention: "auto": fused kernels on NVIDIA GPUs and TPUs; "plain": none; "cudnn": that of
        `jax.nn.dot_product_attention`, for bfloat16 on NVIDIA cards.
    """

    weights: str = "beats-iter3"
    adapter: Lora | None = None
    pooling: Pooling = "statistics"
    embedding: int | None = 128
    layer: Which = None
    pools: tuple[Pool, ...] = ()
    scored: tuple[Pool, ...] = ()
    dropout: bool = True
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    remat: Remat = "nothing"
    attention: Implementation = "auto"

    of_training = "adapter", "embedding", "scored", "dropout", "remat"  # for systems that train
    one_length = False
    shortest_samples = FRAME_SAMPLES

    def __post_init__(self):
        check(self, ("embedding", ">= 2 or none", self.embedding is None or self.embedding >= 2))
        for pools in (self.pools, self.scored):
            if len({pool.bands for pool in pools}) > 1:
                raise InputError("expected all pools by bands or none, so that parts are equal")
        if self.pools and self.pooling not in ("mean", "statistics"):
            raise InputError(f"expected pools or a pooling, got pools beside {self.pooling!r}")
        if self._pooling == "statistics" and isinstance(self.layer, tuple):
            raise InputError("expected one layer for attentive statistics, or another pooling")

    @property
    def needs_training(self) -> bool:
        return bool(self.adapter or self.embedding) or self._pooling == "statistics"

    @property
    def views(self) -> tuple[tuple[str, ...], int]:
        """Return the names of the vectors that lie behind each other, and the parts of each."""
        pools = self.scored or self.pools
        names = [str(pool) for pool in pools] or [
            self.pooling if self.embedding is None else "dense"
        ]
        if isinstance(self.layer, tuple):
            names = [f"layer {layer}, {name}" for layer in self.layer for name in names]
        return tuple(names), structure_of(self.weights).bands if pools and pools[0].bands else 1

    @property
    def _pooling(self) -> Pooling | tuple[Pool, ...]:
        return self.pools or self.pooling

    def clip_bytes(self, samples: int) -> float:
        """Return how much memory a clip needs, at most.

        It grows with the square of its length where attention has no kernels or has a bias.
        """
        structure = structure_of(self.weights)
        return 50 * samples + structure.clip_bytes(samples, self.attention)  # log-mel and tokens

    def network(self, samples: int | None = None) -> Network:
        """Return the network with the backbone's weights, for waves of any length.

        Raises:
          InputError: no such weights; pooling or layer that the backbone does not have.
        """
        return self.network_of(load_backbone(self.weights, product_dtype(self.dtype)))

    def network_of(self, backbone: Backbone) -> Network:
        """Return the network with this backbone; raises as `network`."""
        structure, params = backbone.config.for_features(backbone.params)
        by_bands = any(pool.bands for pool in (*self.pools, *self.scored))
        if structure.bands == 1 and by_bands:
            raise InputError(
                f"pooling by bands: {self.weights} is given a wave and has no bands; leave them out"
            )
        if self._pooling == "cls" and not structure.extra_tokens:
            raise InputError(
                f'pooling "cls": {self.weights} has no class token; use "mean" or "statistics"'
            )
        check_layer(self.layer, structure.layers_count)

        def front_end(wave: jax.Array, lengths: jax.Array | None = None) -> Input:
            samples = wave.shape[1]
            check_samples(structure, samples)
            padding = None if lengths is None else structure.token_padding(samples, lengths)
            return Input(structure.frontend(wave, lengths), padding)

        def build(*, train: bool, adapted: bool, rngs: nnx.Rngs) -> PretrainedModule:
            config = self if adapted else replace(self, adapter=None)
            if self.scored and not (train or adapted):
                config = replace(config, pools=self.scored, embedding=None)
            return PretrainedModule(config, structure, train=train, rngs=rngs)

        return Network(
            front_end,
            build,
            self.embedding or self._pooled_width(structure),
            {f"backbone.{name}": value for name, value in params.items()},
            self.adapter,
            wave=structure.bands == 1,
            only_trains=("pool.", "project.") if self.scored else (),
        )

    def _pooled_width(self, structure: Structure) -> int:
        layers = len(self.layer) if isinstance(self.layer, tuple) else 1
        return layers * pool_width(self._pooling, structure.width, structure.bands)


def product_dtype(dtype: str) -> str:
    """Return a type of products; that of "auto" where this runs."""
    if dtype != "auto":
        return dtype
    return "float32" if slow_in_bfloat16() else "bfloat16"


def slow_in_bfloat16() -> bool:
    """Return whether this is a CPU of which no units for bfloat16 are known."""
    return jax.default_backend() == "cpu" and not processor_flags() & BFLOAT16_UNITS


class PretrainedModule(nnx.Module):
    """Input of the front end in, `[B, E]` out."""

    def __init__(self, config: Pretrained, structure: Structure, *, train: bool, rngs: nnx.Rngs):
        structure = structure if config.dropout else structure.without_dropout()
        self.layer = config.layer
        self.first = 0 if config._pooling == "cls" else structure.extra_tokens
        self.backbone = structure.build(
            dtype=jnp.dtype(product_dtype(config.dtype)),
            train=train,
            remat=config.remat if train else "nothing",
            attention=config.attention,
            rngs=rngs,
        )
        if config.adapter is not None:
            adapt(self.backbone, config.adapter, train=train, rngs=rngs)
        how = {"train": train, "rngs": rngs}
        self.pool = make_pool(config._pooling, structure.width, structure.bands, **how)
        width, embedding = config._pooled_width(structure), config.embedding
        self.project = None if embedding is None else nnx.Linear(width, embedding, rngs=rngs)

    def __call__(self, given: Input) -> jax.Array:
        graph, weights = nnx.split(self.backbone)

        def tokens_of(given, weights):
            return nnx.merge(graph, weights)(given.x, given.padding, self.layer)

        tokens = by_device(tokens_of, given, weights)[..., self.first :, :]
        inside = None if given.padding is None else ~given.padding[:, self.first :]
        if isinstance(self.layer, tuple):
            layers = [self.pool(tokens[:, i], inside) for i in range(len(self.layer))]
            pooled = jnp.concatenate(layers, -1)
        else:
            pooled = self.pool(tokens, inside)
        return pooled if self.project is None else self.project(pooled)
