"""Areas under the ROC curve of one list of scores, and the interval the evaluators print with them.

The AUC counts ties half. The pAUC is the area up to a false-positive rate of 0.1, standardized
after McClish: chance 0.5, best 1, lowest 0.4737; it is not area / 0.1.
"""

from __future__ import annotations

import numpy as np

MAX_FPR = 0.1


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Return P(anomaly > normal) + P(equal) / 2; `label [n]` 0 or 1 with both, `score [n]`."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, score))


def pauc(label: np.ndarray, score: np.ndarray) -> float:
    """Return the McClish-standardized partial AUC; arguments as `auc`."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, score, max_fpr=MAX_FPR))


def aucs(label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return `[W]`: `auc` of each row of `scores [W, n]`, all at once; `label [n]`."""
    return _areas(label, scores, 1.0)


def paucs(label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return `[W]`: `pauc` of each row of `scores [W, n]`, all at once; `label [n]`."""
    lowest = MAX_FPR**2 / 2
    return 0.5 * (1 + (_areas(label, scores, MAX_FPR) - lowest) / (MAX_FPR - lowest))


def _areas(label: np.ndarray, scores: np.ndarray, max_fpr: float) -> np.ndarray:
    """Return `[W]`: the area below each row's ROC curve between FPR 0 and `max_fpr`.

    The curve has a corner behind the last clip of each score, counted here in clips; at the clips
    before it, `x` and `y` stay at the corner of the score above, so clips of equal scores make one
    straight piece together.
    """
    order = np.argsort(-scores, axis=1)
    ranked, anomaly = np.take_along_axis(scores, order, axis=1), label[order] == 1
    corner = np.ones(scores.shape, dtype=bool)
    corner[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    x, y = (
        np.maximum.accumulate(np.where(corner, np.cumsum(kind, axis=1), 0), axis=1)
        for kind in (~anomaly, anomaly)
    )
    normals, anomalies = np.diff(x, axis=1, prepend=0), np.diff(y, axis=1, prepend=0)  # a piece's
    width = np.clip(max_fpr * x[:, -1:] - (x - normals), 0, normals)
    area = width * (y - anomalies) + anomalies * width**2 / (2 * np.maximum(normals, 1))
    return area.sum(axis=1) / (x[:, -1] * y[:, -1])


def replicate_half_width(label: np.ndarray, score: np.ndarray) -> float:
    """Return the `official score ci95` of the evaluators since 2022; arguments as `auc`.

    It is the 95 % t interval of the mean of the n delete-one replicates, `t(n - 1) * sd / sqrt(n)`,
    averaged over AUC and pAUC. That is not an interval for the AUC itself: the jackknife's
    factor n - 1 is missing, so it is n - 1 times too narrow. nan with fewer than two clips of a
    class, where a replicate would have none.
    """
    from scipy.stats import t

    if min(np.count_nonzero(label), np.count_nonzero(label == 0)) < 2:
        return float("nan")
    replicates = np.stack([delete_one_areas(label, score), delete_one_areas(label, score, MAX_FPR)])
    replicates[1] *= 0.5 / (MAX_FPR - MAX_FPR**2 / 2)  # McClish's slope; his shift has no spread
    n = len(label)
    return float(t.ppf(0.975, n - 1) * replicates.std(axis=1, ddof=1).mean() / np.sqrt(n))


def delete_one_areas(label: np.ndarray, score: np.ndarray, max_fpr: float = 1.0) -> np.ndarray:
    """Return `[n]`: the ROC area between FPR 0 and `max_fpr` with clip i left out; ties exact.

    Clips of one score form one straight piece of the curve, counted here in clips, highest score
    first: piece g goes from (x0, y0) to (x0 + normals, y0 + anomalies). Leaving out a clip of
    piece g changes that piece and shifts all later ones, so each area has a closed form.
    """
    _, piece = np.unique(-score, return_inverse=True)
    normals = np.bincount(piece[label == 0], minlength=piece.max() + 1).astype(float)
    anomalies = np.bincount(piece[label == 1], minlength=piece.max() + 1).astype(float)
    x0, y0 = np.cumsum(normals) - normals, np.cumsum(anomalies) - anomalies

    def area(limit: float, width: np.ndarray = normals) -> np.ndarray:
        """Return each piece's area left of `limit`, were it `width` wide."""
        x = np.clip(limit - x0, 0, width)
        return x * y0 + anomalies * x**2 / (2 * np.maximum(width, 1))

    limit = max_fpr * normals.sum()
    # An anomaly less: the curve is 1 lower right of piece g, and on a slope towards that within.
    x = np.clip(limit - x0, 0, normals)
    lost = x**2 / (2 * np.maximum(normals, 1)) + np.clip(limit - x0 - normals, 0, None)
    without_anomaly = (area(limit).sum() - lost) / ((anomalies.sum() - 1) * normals.sum())
    # A normal less: piece g is 1 narrower, later pieces start 1 earlier, and the limit moves in.
    limit = max_fpr * (normals.sum() - 1)
    before = np.cumsum(area(limit)) - area(limit)
    after = area(limit + 1).sum() - np.cumsum(area(limit + 1))
    kept = before + area(limit, np.maximum(normals - 1, 0)) + after
    without_normal = kept / (anomalies.sum() * (normals.sum() - 1))
    return np.where(label == 1, without_anomaly[piece], without_normal[piece])
