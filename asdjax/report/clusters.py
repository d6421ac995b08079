"""The figure of one machine's clusters: clips in two dimensions, by UMAP and by PCA.

UMAP keeps neighbors together: count its islands. PCA keeps distances, as far as two directions can.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asdjax.report.canvas import canvas
from asdjax.types import Clip

NEIGHBORS = 15  # of UMAP; machines of fewer clips get no such picture
SEED = 0  # of UMAP
# Okabe and Ito 2008, told apart by colour-blind readers too; with the shapes 32 styles.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b5a800", "#4d4d4d")
SHAPES = ("o", "^", "s", "D")
DOMAINS = {  # colour, shape, area
    "source": ("#56b4e9", "o", 9),
    "target": ("#d55e00", "^", 48),
    None: ("#4d4d4d", "s", 9),
}


def write(path: Path, clips: Sequence[Clip], rows: np.ndarray, labels: np.ndarray) -> None:
    """Write a png: a row each for UMAP and PCA, a column by cluster and one by domain.

    Args:
      path: of the picture.
      clips: of one machine and section.
      rows: `[n, E]` float32 of length 1, as they were clustered.
      labels: `[n]` int, 0 up.
    """
    views = _views(rows)
    title = f"{' '.join(clips[0].group)}: {_counted(clips, labels)}"
    if len(rows) <= NEIGHBORS:
        title += f" (UMAP needs more than {NEIGHBORS} clips)"
    with canvas(path, 12, 5.4 * len(views) + 0.4) as figure:
        figure.suptitle(title, parse_math=False)
        axes = figure.subplots(len(views), 2, squeeze=False)
        for row, (name, (points, names)) in zip(axes, views.items(), strict=True):
            _by_cluster(row[0], points, labels)
            _by_domain(row[1], points, clips)
            for axis, what in zip(row, ("by cluster", "by domain"), strict=True):
                axis.set(xlabel=names[0], ylabel=names[1])
                axis.set_title(f"{name}, {what}", fontsize=11)


def _counted(clips: Sequence[Clip], labels: np.ndarray) -> str:
    counts = {"clip": len(clips), "cluster": len(np.unique(labels))}
    return ", ".join(f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items())


def _views(rows: np.ndarray) -> dict[str, tuple[np.ndarray, tuple[str, str]]]:
    """Return name -> points [n, 2] and the names of both axes."""
    points, shares = pca(rows)
    names = tuple(f"component {i} ({share:.0%} of variance)" for i, share in enumerate(shares, 1))
    views = {"PCA": (points, names)}
    if len(rows) > NEIGHBORS:
        views = {"UMAP (cosine)": (umap(rows), ("UMAP 1", "UMAP 2")), **views}
    return views


def pca(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two principal components `[n, 2]` and their shares of the variance `[2]`."""
    centered = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    points, variance = (left * singular)[:, :2], np.square(singular)
    missing = 2 - points.shape[1]  # a single clip
    shares = variance[:2] / max(variance.sum(), np.finfo(float).tiny)
    return np.pad(points, ((0, 0), (0, missing))), np.pad(shares, (0, missing))


def umap(rows: np.ndarray) -> np.ndarray:
    """Return `[n, 2]` float32: UMAP by cosine distance, the same in every call.

    Source: McInnes, Healy and Melville 2018.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on parts of the graph that are not connected
        from umap import UMAP

        # A seed excludes several threads; said here, it is no warning.
        model = UMAP(n_neighbors=NEIGHBORS, metric="cosine", random_state=SEED, n_jobs=1)
        return model.fit_transform(rows)


def _by_cluster(axis, points: np.ndarray, labels: np.ndarray) -> None:
    """Draw every cluster, its number beside its median: above or below, as two may share one."""
    for label in np.unique(labels):
        own = points[labels == label]
        color = COLORS[label % len(COLORS)]
        shape = SHAPES[label // len(COLORS) % len(SHAPES)]
        axis.scatter(*own.T, s=16, color=color, marker=shape, alpha=0.7, lw=0)
        axis.annotate(
            str(label),
            np.median(own, 0),
            (0, -11 if label % 2 else 11),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": color, "lw": 1.5},
        )


def _by_domain(axis, points: np.ndarray, clips: Sequence[Clip]) -> None:
    """Draw the few target clips last and larger."""
    for domain, (color, shape, area) in DOMAINS.items():
        own = points[[clip.domain == domain for clip in clips]]
        if len(own):
            label = f"{domain or 'no domain'} ({len(own)})"
            edge = {"edgecolor": "black", "linewidth": 0.6} if domain == "target" else {"lw": 0}
            axis.scatter(*own.T, s=area, color=color, marker=shape, label=label, **edge)
    axis.legend(fontsize=9)
