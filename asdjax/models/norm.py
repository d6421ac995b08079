"""Batch norm as the networks here use it."""

from __future__ import annotations

from flax import nnx


def batch_norm(width: int, *, train: bool, rngs: nnx.Rngs, epsilon: float = 1e-5) -> nnx.BatchNorm:
    """Return a norm of the last axis, of `width`: by the batch in training, else by running values.

    Statistics are those of all other axes and of the whole batch, however many devices hold it, and
    float32 whatever comes in. Running ones (`nnx.BatchStat`) move by 0.1 of the way in each step
    (momentum 0.9; PyTorch calls it 0.1): within 100 steps they forget where they started, which
    Keras' 0.99 does not in the few hundred steps of a short training. Their variance is that of
    the population (1 / n); PyTorch's is that of a sample (1 / (n - 1)).
    """
    return nnx.BatchNorm(
        width,
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        use_fast_variance=False,  # E[x^2] - E[x]^2 cancels where the mean is large
        rngs=rngs,
    )
