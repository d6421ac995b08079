"""Low-rank adapters: train a product of two thin matrices beside a frozen kernel.

A model knows nothing of them. `adapt` replaces linear layers of a built model by layers that hold
the same kernel and bias under the same names, so weights of the plain model load into the adapted
one; `fold` adds the product to the kernel, so weights of the adapted model run in the plain one.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from asdjax.models.layers import Dropout, Linear, dense, dense_backward
from asdjax.models.weights_file import Params, listing
from asdjax.types import InputError, check

ADAPTER = "lora_a", "lora_b"


@dataclass(frozen=True)
class Lora:
    """Which layers get an adapter, and of what kind.

    Args:
        rank: columns of A and rows of B.
        alpha: the update is alpha / rank A B.
        dropout: rate on the adapter's input, in training only.
        targets: patterns of layer names, as in file names: "q" and "attn.q" match every layer whose
            name ends so, "layers.1*.attn.q" those of layers 1 and 10 to 19.
    """

    rank: int = 64
    alpha: float = 64.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v", "out")

    def __post_init__(self):
        check(
            self,
            ("rank", ">= 1", self.rank >= 1),
            ("alpha", "> 0", 0 < self.alpha < math.inf),
            ("dropout", "a rate in [0, 1)", 0 <= self.dropout < 1),
            ("targets", "at least one pattern", bool(self.targets)),
        )


class LoraLinear(Linear):
    """x W + b + alpha / rank (x A) B: equation 3, with the scale of section 4.1.

    Computed in the dtype of the base layer; A `[in, rank]` and B `[rank, out]` are float32. B
    starts at 0, A uniform within 1 / sqrt(in) as in the authors' code (normal in the paper).

    Args:
        base: the layer whose kernel, bias and settings it takes over (the objects, no copies).
        train: apply the dropout of `config`.
    """

    def __init__(self, base: nnx.Linear, config: Lora, *, train: bool, rngs: nnx.Rngs):
        for name, value in vars(base).items():
            if not name.startswith("_"):  # what is flax's own is there already
                setattr(self, name, value)
        (inputs, outputs), rank = base.kernel.shape, config.rank
        bound = inputs**-0.5
        start = jax.random.uniform(rngs.params(), (inputs, rank), minval=-bound, maxval=bound)
        self.lora_a = nnx.LoRAParam(start)
        self.lora_b = nnx.LoRAParam(jnp.zeros((rank, outputs)))
        self.scale = config.alpha / rank
        self.dropout = Dropout(config.dropout if train else 0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[..., out]` from `[..., in]`, in the base layer's dtype."""
        if self.dropout.key is not None:
            return self._apart(x)
        return lax.platform_dependent(x, cpu=self._thin, default=self._joined)

    def _apart(self, x):
        """Three products: dropout stands between them."""
        y = self.product(x, self.kernel[...])
        low = dense(self.dropout(x.astype(y.dtype)), self.lora_a[...], None)
        return y + dense(self.scale * low, self.lora_b[...], None)

    def _joined(self, x):
        """One product, x (W + alpha / rank A B) + b; on accelerators passes over tokens count."""
        return super().__call__(x)

    def _thin(self, x):
        """The same, whose gradient needs no more operations: on a CPU these count."""
        return _joined_thinly(
            self.scale,
            self.typed(x),
            self.kernel[...],
            self.own_bias(),
            self.lora_a[...],
            self.lora_b[...],
        )

    def whole_kernel(self) -> jax.Array:
        """Return W + alpha / rank A B, without the dropout between them."""
        return self.kernel[...] + self.scale * jnp.matmul(self.lora_a[...], self.lora_b[...])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _joined_thinly(scale, x, kernel, bias, a, b):
    """Return x (W + scale A B) + b; its gradients of A and B pass by no matrix of W's size."""
    return _joined_thinly_forward(scale, x, kernel, bias, a, b)[0]


def _joined_thinly_forward(scale, x, kernel, bias, a, b):
    whole = kernel + scale * jnp.matmul(a, b)
    return dense(x, whole, bias), (x, whole, bias, a, b)


def _joined_thinly_backward(scale, saved, slope):
    x, whole, bias, a, b = saved
    to_x, to_kernel, to_bias = dense_backward((x, whole, bias), slope)
    _, to_a, _ = dense_backward((x, a, None), dense(slope, b.T, None))
    _, to_b, _ = dense_backward((dense(x, a, None), b, None), slope)
    return to_x, to_kernel, to_bias, scale * to_a, scale * to_b


_joined_thinly.defvjp(_joined_thinly_forward, _joined_thinly_backward)


def adapt(model: nnx.Module, config: Lora, *, train: bool, rngs: nnx.Rngs) -> None:
    """Replace, in place, the linear layers of `model` that `config.targets` names.

    Raises:
        InputError: a pattern matches nothing, or something else than an `nnx.Linear`, or the rank
            is larger than a matched layer; nothing is changed then.
    """
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    _check(modules, config)
    for name in _matched(modules, config.targets):
        parent, _, last = name.rpartition(".")
        layer = LoraLinear(modules[name], config, train=train, rngs=rngs)
        if isinstance(modules[parent], nnx.List):
            modules[parent][int(last)] = layer
        else:
            setattr(modules[parent], last, layer)


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name, or its last components, fit a pattern; `*` also stands for dots."""
    return fnmatchcase(f".{name}", f"*.{pattern}")


def _matched(modules: Mapping[str, nnx.Module], targets: Iterable[str]) -> list[str]:
    return [name for name in modules if name and any(matches(name, each) for each in targets)]


def _check(modules: Mapping[str, nnx.Module], config: Lora) -> None:
    """Refuse, all at once, what `adapt` cannot do; `modules` by dotted name, the root by ""."""
    matched = _matched(modules, config.targets)
    linear = {
        name: m.kernel.shape for name, m in modules.items() if type(m) in (nnx.Linear, Linear)
    }
    unused = [target for target in config.targets if not _matched(modules, [target])]
    others = [f"{name}: {type(modules[name]).__name__}" for name in matched if name not in linear]
    narrow = [
        f"{name}: {list(linear[name])}"
        for name in matched
        if name in linear and min(linear[name]) < config.rank
    ]
    problems = (
        listing("targets that match no layer", unused)
        + listing("matched, but not a linear layer to adapt", others)
        + listing(f"narrower than rank {config.rank}", narrow)
    )
    if problems:
        layers = listing("linear layers of this model", sorted(set(map(_pattern, linear))))
        raise InputError(f"these adapters do not fit the model{problems}{layers}")


def _pattern(name: str) -> str:
    """Return a dotted name with `*` for each index of a list."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def is_adapter(name: str) -> bool:
    """Whether a parameter's dotted name is that of an adapter."""
    return name.rpartition(".")[2] in ADAPTER


def fold(params: Params, config: Lora) -> Params:
    """Return the parameters of the plain model: W + alpha / rank A B for each adapted kernel.

    Args:
        params: all parameters of the adapted model, frozen and trained.

    Raises:
        InputError: the adapters have another rank than `config`.
    """
    folded = {name: value for name, value in params.items() if not is_adapter(name)}
    for name, a in params.items():
        layer = name.removesuffix("lora_a")
        if layer == name:
            continue
        if a.shape[1] != config.rank:
            raise InputError(f"{name}: expected rank {config.rank}, got shape {list(a.shape)}")
        update = jnp.matmul(a, params[f"{layer}lora_b"], precision=lax.Precision.HIGHEST)
        kernel = params[f"{layer}kernel"]  # not +=, which would write into a host array
        folded[f"{layer}kernel"] = kernel + config.alpha / config.rank * update
    return folded


def summary(frozen: Mapping, trainable: Mapping) -> list[tuple[str, str, int, int]]:
    """Return what trains as rows of (names, shape, numbers, layers), alike layers in one row.

    An adapter is a row such as `("layers.*.attn.q + LoRA", "[768, 768] rank 64", 1179648, 12)`,
    any other parameter `("layers.*.fc1.kernel", "[768, 3072]", 28311552, 12)`. A spectral network
    is one row.

    Args:
        frozen, trainable: dotted names to anything with a `shape`.
    """
    every = {**frozen, **trainable}
    rows: dict[tuple[str, str], Counter] = {}
    for name, value in trainable.items():
        layer, row = name, (_pattern(name), str(list(value.shape)))
        if ".network." in name:
            layer = f"{name.partition('.network.')[0]}.network"
            row = layer, ""
        if is_adapter(name):
            layer = name.rpartition(".")[0]
            kernel, rank = every[f"{layer}.kernel"], min(value.shape)
            row = f"{_pattern(layer)} + LoRA", f"{list(kernel.shape)} rank {rank}"
        rows.setdefault(row, Counter())[layer] += math.prod(value.shape)
    return [(*row, sum(layers.values()), len(layers)) for row, layers in rows.items()]
