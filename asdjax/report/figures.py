"""Figures as png files: scores, ROC curves and spectrograms of a run; clusters of a machine.

All colours are those of Okabe and Ito 2008, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import contextlib
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asdjax.files import atomic
from asdjax.types import ANOMALY, NORMAL, SAMPLE_RATE_HZ, Clip, InputError, Scores, preview

LABELS = {  # name, colour
    NORMAL: ("normal", "#0072b2"),
    ANOMALY: ("anomaly", "#d55e00"),
    None: ("no label", "#4d4d4d"),
}
LINES = {"source": "-", "target": "--", None: ":"}
TOP_CLIPS = 4
SAMPLES = 60 * SAMPLE_RATE_HZ  # of a clip that are drawn: those of an hour would take gigabytes
MOST_NAMED = 3  # files in a note
TICKS_HZ = 250, 500, 1000, 2000, 4000, 8000

NEIGHBORS = 15  # of UMAP; machines of fewer clips get no such figure
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b5a800", "#4d4d4d")
SHAPES = ("o", "^", "s", "D")  # with the colours 32 styles
DOMAINS = {  # colour, shape, area
    "source": ("#56b4e9", "o", 9),
    "target": ("#d55e00", "^", 48),
    None: ("#4d4d4d", "s", 9),
}


@dataclass(frozen=True)
class Scored:
    """The scored clips of one machine and section."""

    group: tuple[str, str]
    clips: tuple[Clip, ...]
    values: np.ndarray  # [n]

    @property
    def domains(self) -> list[str | None]:
        return sorted({clip.domain for clip in self.clips}, key=str)

    def of(self, domain: str | None, label: int | None) -> np.ndarray:
        return self.values[[c.domain == domain and c.label == label for c in self.clips]]


def write(
    folder: Path,
    scores: Sequence[Scores],
    clips: Sequence[Clip],
    read: Callable[[Path], np.ndarray],
    thresholds: Mapping[tuple[str, str], float | None],
    note: Callable[[str], object],
) -> None:
    """Write `histograms.png`, `roc.png` (needs labels) and `top_clips.png` into `folder`.

    What cannot be drawn is left out: its reason goes to `note`, never to the caller as an error.

    Args:
      folder: made if absent.
      scores: every score file of the run.
      clips: the run's clips; matched to scores by machine, section and name.
      read: returns a file's wave at 16 kHz, `[N]`.
      thresholds: of decisions, by machine and section; none, None or infinite: no line.
      note: gets one line for each reason, with the files it applies to.
    """
    machines = _join(scores, clips)
    folder.mkdir(parents=True, exist_ok=True)
    with _reported(note) as problems:
        with _noted(problems, folder / "histograms.png") as path:
            _histograms(path, machines, thresholds)
        with _noted(problems, folder / "roc.png") as path:
            _roc(path, machines)
        with _noted(problems, folder / "top_clips.png") as path:
            _top_clips(path, machines, read, problems)


@contextlib.contextmanager
def _reported(note: Callable[[str], object]) -> Iterator[dict[str, list[Path]]]:
    """Yield what gets the paths of each problem; note them at the end."""
    problems: dict[str, list[Path]] = defaultdict(list)
    yield problems
    for reason, paths in problems.items():
        note(f"not in the figures: {preview(paths, MOST_NAMED)}: {reason}")


@contextlib.contextmanager
def _noted(problems: dict[str, list[Path]], path: Path) -> Iterator[Path]:
    """Turn any error into a problem of `path`: a figure is not worth the results of a run."""
    try:
        yield path
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else repr(error)
        reason = reason.removeprefix(f"{path}: ").replace(str(path), "it")  # equal for equal files
        problems[" ".join(reason.split())].append(path)


def _join(scores: Sequence[Scores], clips: Sequence[Clip]) -> list[Scored]:
    by_name = {(*clip.group, clip.name): clip for clip in clips if clip.split == "test"}
    rows: dict[tuple[str, str], dict[Clip, float]] = defaultdict(dict)
    for file in scores:
        group = file.machine, file.section
        for name, value in zip(file.names, file.values, strict=True):
            if clip := by_name.get((*group, name)):  # other names are for `metrics` to refuse
                rows[group][clip] = value
    return [Scored(g, tuple(of), np.array([*of.values()])) for g, of in sorted(rows.items())]


@contextlib.contextmanager
def _canvas(path: Path, width: float, height: float) -> Iterator:
    """Yield an empty matplotlib figure of `width` x `height` inches; save it if it shows data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    yield figure
    if any(axis.has_data() for axis in figure.axes):
        with atomic(path) as temporary:  # `savefig` would draw all of it twice
            FigureCanvasAgg(figure).print_png(temporary, pil_kwargs={"compress_level": 3})


@contextlib.contextmanager
def _grid(path: Path, rows: int, columns: int, width: float, height: float) -> Iterator[np.ndarray]:
    """Yield `[rows, columns]` axes of `width` x `height` inches each; one legend serves all."""
    with _canvas(path, width * columns, height * rows + 0.4) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        yield axes
        entries = {}
        for axis in axes.flat:
            handles, names = axis.get_legend_handles_labels()
            entries |= zip(names, handles, strict=True)
            if not axis.has_data():
                axis.set_axis_off()
        if entries:
            figure.legend(
                entries.values(), entries.keys(), loc="outside upper center", ncols=2 * columns
            )


def _title(axis, text: str, **style) -> None:
    axis.set_title(text, parse_math=False, **style)  # a machine may be called $fan$


def _histograms(
    path: Path, machines: Sequence[Scored], thresholds: Mapping[tuple[str, str], float | None]
) -> None:
    """Draw a row per machine and a column per domain."""
    columns = max(len(machine.domains) for machine in machines)
    with _grid(path, len(machines), columns, 4.6, 2.4) as axes:
        for row, machine in zip(axes, machines, strict=True):
            bins = np.histogram_bin_edges(machine.values, 24)
            threshold = thresholds.get(machine.group)
            for axis, domain in zip(row, machine.domains, strict=False):
                for label, (name, color) in LABELS.items():
                    if len(values := machine.of(domain, label)):
                        axis.hist(
                            values, bins, color=color, alpha=0.6, label=name, histtype="stepfilled"
                        )
                if threshold is not None and np.isfinite(threshold):
                    axis.axvline(threshold, color="black", ls="--", label="decision threshold")
                    above = {"xycoords": axis.get_xaxis_transform(), "ha": "center", "fontsize": 8}
                    axis.annotate(f"{threshold:.4g}", (threshold, 1.02), **above)
                axis.set(xlabel="anomaly score", ylabel="clips")
                axis.yaxis.get_major_locator().set_params(integer=True)
                axis.locator_params("x", nbins=5)
                axis.ticklabel_format(axis="x", scilimits=(-2, 4))
                _title(axis, " ".join(filter(None, (*machine.group, domain))), fontsize=10, pad=14)


def _roc(path: Path, machines: Sequence[Scored]) -> None:
    """Draw each domain's normal clips against all anomalies (the rule since 2022)."""
    machines = [m for m in machines if {NORMAL, ANOMALY} <= {clip.label for clip in m.clips}]
    if not machines:
        return
    columns = min(len(machines), 4)
    with _grid(path, -(-len(machines) // columns), columns, 3.4, 3.8) as axes:
        for axis, machine in zip(axes.flat, machines, strict=False):
            anomalies = machine.values[[clip.label == ANOMALY for clip in machine.clips]]
            for domain in machine.domains:
                if len(normal := machine.of(domain, NORMAL)):
                    style = {"ls": LINES[domain], "color": "black", "label": domain or "all clips"}
                    axis.plot(*roc_curve(normal, anomalies), **style)
            axis.plot([0, 1], [0, 1], color="#adb5bd", lw=0.8, label="chance")
            axis.axvspan(0, 0.1, color="#e69f00", alpha=0.2, lw=0, label="range of the pAUC")
            axis.set(xlabel="false positive rate", ylabel="true positive rate")
            axis.set_box_aspect(1)
            _title(axis, " ".join(machine.group), fontsize=10)


def roc_curve(normal: np.ndarray, anomalies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates `[m]` at every threshold, from (0, 0) to (1, 1).

    Args:
      normal, anomalies: scores `[n]`, at least one each.
    """
    thresholds = np.unique(np.concatenate([normal, anomalies, [np.inf]]))[::-1]
    return tuple((values[:, None] >= thresholds).mean(0) for values in (normal, anomalies))


def _top_clips(
    path: Path, machines: Sequence[Scored], read, problems: dict[str, list[Path]]
) -> None:
    """Draw the spectrograms of each machine's highest-scored clips, highest first."""
    with _grid(path, len(machines), TOP_CLIPS, 3.6, 2.5) as axes:
        for row, machine in zip(axes, machines, strict=True):
            for axis, i in zip(row, np.argsort(-machine.values, kind="stable"), strict=False):
                clip, (name, color) = machine.clips[i], LABELS[machine.clips[i].label]
                title = f"{' '.join(clip.group)}: score {machine.values[i]:.4g}, {name}\n"
                _title(axis, title + textwrap.fill(clip.name, 60), fontsize=6.5, color=color)
                with _noted(problems, clip.path):
                    _spectrogram(axis, read(clip.path))
                if not axis.has_data():
                    axis.text(0.5, 0.5, "cannot be drawn", ha="center", transform=axis.transAxes)
                if axis is not row[0]:
                    axis.tick_params(labelleft=False)
                    axis.set_ylabel("")


def _spectrogram(axis, wave: np.ndarray) -> None:
    """Draw log-mel energies of a wave `[N]` over seconds and Hz."""
    from asdjax.frontend.fbank import BEATS, HOP_SAMPLES, fbank, mel

    energy = np.asarray(fbank(wave[None], BEATS))[0].T
    if not np.isfinite(energy).all():
        raise InputError("NaN or infinite samples")
    seconds = energy.shape[1] * HOP_SAMPLES / SAMPLE_RATE_HZ
    bottom, top = mel([BEATS.low_hz, BEATS.high_hz])
    half = (top - bottom) / (BEATS.bands + 1) / 2  # bands end half way to the next center
    low, high = np.percentile(energy, [5, 99.5])  # a filter without any bin is far below
    place = {"origin": "lower", "aspect": "auto", "extent": (0, seconds, bottom + half, top - half)}
    axis.imshow(energy, **place, cmap="magma", vmin=low, vmax=high)
    axis.set_yticks(mel(TICKS_HZ), list(map(str, TICKS_HZ)))
    axis.set(xlabel="seconds", ylabel="Hz", ylim=(bottom, top))


def write_clusters(
    path: Path,
    clips: Sequence[Clip],
    rows: np.ndarray,
    labels: np.ndarray,
    note: Callable[[str], object],
) -> None:
    """Draw clips in two dimensions: a row each for UMAP and PCA, by cluster and by domain.

    UMAP keeps neighbors together: count its islands. PCA keeps distances, as far as two directions
    can. A figure that fails is told to `note`, never raised.

    Args:
      path: of the png.
      clips: of one machine and section.
      rows: `[n, E]` float32 of length 1, as they were clustered.
      labels: `[n]` int, 0 up.
      note: gets one line for each reason, as in `write`.
    """
    with _reported(note) as problems, _noted(problems, path):
        _clusters(path, clips, rows, labels)


def _clusters(path: Path, clips: Sequence[Clip], rows: np.ndarray, labels: np.ndarray) -> None:
    points, shares = pca(rows)
    names = [f"component {i} ({share:.0%} of variance)" for i, share in enumerate(shares, 1)]
    views = {"PCA": (points, names)}
    if len(rows) > NEIGHBORS:
        views = {"UMAP (cosine)": (umap(rows), ["UMAP 1", "UMAP 2"]), **views}
    counts = {"clip": len(clips), "cluster": len(np.unique(labels))}
    title = ", ".join(f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items())
    if len(views) == 1:
        title += f" (UMAP needs more than {NEIGHBORS} clips)"
    with _canvas(path, 12, 5.4 * len(views) + 0.4) as figure:
        figure.suptitle(f"{' '.join(clips[0].group)}: {title}", parse_math=False)
        axes = figure.subplots(len(views), 2, squeeze=False)
        for row, (name, (points, names)) in zip(axes, views.items(), strict=True):
            _by_cluster(row[0], points, labels)
            _by_domain(row[1], points, clips)
            for axis, what in zip(row, ("cluster", "domain"), strict=True):
                axis.set(xlabel=names[0], ylabel=names[1])
                axis.set_title(f"{name}, by {what}", fontsize=11)


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
    from sklearn.neighbors import NearestNeighbors

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on parts of the graph that are not connected
        from umap import UMAP

        # UMAP finds the same neighbors, but compiles a function of its own for it, which takes as
        # long as all the rest.
        distances, nearest = NearestNeighbors(metric="cosine").fit(rows).kneighbors(rows, NEIGHBORS)
        distances[:, 0] = 0  # to itself; a rounding error here would be the nearest neighbor
        model = UMAP(
            n_neighbors=NEIGHBORS,
            metric="cosine",
            precomputed_knn=(nearest, distances, None),
            random_state=0,
            n_jobs=1,  # a seed excludes several threads
        )
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
    axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))  # beside the points
