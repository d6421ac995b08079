"""Figures of a run: score histograms, ROC curves, spectrograms of the highest-scored clips."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asdjax.report.canvas import canvas
from asdjax.types import ANOMALY, NORMAL, SAMPLE_RATE_HZ, Clip, Scores

COLORS = {NORMAL: "#2a6f97", ANOMALY: "#c1121f", None: "#6c757d"}
LABELS = {NORMAL: "normal", ANOMALY: "anomaly", None: "no label"}
DOMAIN_STYLES = {"source": "-", "target": "--", None: ":"}
TOP_CLIPS = 4


@dataclass(frozen=True)
class Scored:
    """The scored clips of one machine and section."""

    title: str
    clips: tuple[Clip, ...]
    values: np.ndarray  # [n]


def write(
    folder: Path,
    scores: Sequence[Scores],
    clips: Sequence[Clip],
    read: Callable[[Path], np.ndarray],
) -> Path:
    """Write `histograms.png`, `roc.png` and `top_clips.png` into `folder`; return it.

    Args:
      scores: every score file of the run.
      clips: the run's clips; matched to scores by machine, section and name.
      read: returns a file's wave at 16 kHz, `[N]`.
    """
    machines = _join(scores, clips)
    _histograms(folder / "histograms.png", machines)
    if any(clip.label is not None for machine in machines for clip in machine.clips):
        _roc(folder / "roc.png", machines)
    _top_clips(folder / "top_clips.png", machines, read)
    return folder


def _join(scores: Sequence[Scores], clips: Sequence[Clip]) -> list[Scored]:
    by_name = {(*clip.group, clip.name): clip for clip in clips if clip.split == "test"}
    values = {
        (s.machine, s.section, n): v for s in scores for n, v in zip(s.names, s.values, strict=True)
    }
    groups = sorted({key[:2] for key in values})
    return [
        Scored(
            f"{group[0]} {group[1]}",
            tuple(by_name[key] for key in values if key[:2] == group),
            np.array([value for key, value in values.items() if key[:2] == group]),
        )
        for group in groups
    ]


@contextlib.contextmanager
def _figure(
    path: Path, rows: int, columns: int, width: float, height: float
) -> Iterator[np.ndarray]:
    """Yield `[rows, columns]` axes of `width` x `height` inches each; save them to `path`."""
    with canvas(path, width * columns, height * rows) as figure:
        yield figure.subplots(rows, columns, squeeze=False)


def _domains(clips: Sequence[Clip]) -> list[str | None]:
    return sorted({clip.domain for clip in clips}, key=str)


def _rows(machine: Scored, domain: str | None, label: int | None) -> np.ndarray:
    chosen = [c.domain == domain and c.label == label for c in machine.clips]
    return machine.values[chosen]


def _histograms(path: Path, machines: Sequence[Scored]) -> None:
    """Draw a row per machine and a column per domain."""
    columns = max(len(_domains(machine.clips)) for machine in machines)
    with _figure(path, len(machines), columns, 4.6, 2.4) as axes:
        for row, machine in zip(axes, machines, strict=True):
            bins = np.histogram_bin_edges(machine.values, 24)
            for axis, domain in zip(row, _domains(machine.clips), strict=False):
                for label, color in COLORS.items():
                    if len(values := _rows(machine, domain, label)):
                        axis.hist(values, bins, color=color, alpha=0.6, label=LABELS[label])
                axis.set(xlabel="anomaly score", ylabel="clips")
                axis.yaxis.get_major_locator().set_params(integer=True)
                axis.set_title(f"{machine.title} {domain or ''}", fontsize=10, parse_math=False)
                axis.legend(fontsize=8)
            for axis in row[len(_domains(machine.clips)) :]:
                axis.set_axis_off()


def _roc(path: Path, machines: Sequence[Scored]) -> None:
    """Draw each domain's normal clips against all anomalies (the rule since 2022)."""
    columns = min(len(machines), 4)
    with _figure(path, -(-len(machines) // columns), columns, 3.4, 3.8) as axes:
        for axis in axes.flat[len(machines) :]:
            axis.set_axis_off()
        for axis, machine in zip(axes.flat, machines, strict=False):
            anomalies = machine.values[[clip.label == ANOMALY for clip in machine.clips]]
            for domain in _domains(machine.clips):
                x, y = roc_curve(_rows(machine, domain, NORMAL), anomalies)
                axis.plot(x, y, DOMAIN_STYLES[domain], color="#1d3557", label=domain or "all clips")
            axis.axvspan(0, 0.1, color="#f4a261", alpha=0.2, lw=0)  # where pAUC looks
            axis.plot([0, 1], [0, 1], color="#adb5bd", lw=0.8)
            axis.set(xlabel="false positive rate", ylabel="true positive rate")
            axis.set_box_aspect(1)
            axis.set_title(machine.title, fontsize=10, parse_math=False)
            axis.legend(fontsize=8, loc="lower right")


def roc_curve(normal: np.ndarray, anomalies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates `[m]` at every threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([normal, anomalies, [np.inf]]))[::-1]
    rates = [
        (values[:, None] >= thresholds).mean(0) if len(values) else thresholds * np.nan
        for values in (normal, anomalies)
    ]
    return rates[0], rates[1]


def _top_clips(path: Path, machines: Sequence[Scored], read) -> None:
    """Draw the log-mel spectrograms of each machine's highest-scored clips, highest first."""
    from asdjax.frontend.fbank import BEATS, fbank

    with _figure(path, len(machines), TOP_CLIPS, 3.6, 2.5) as axes:
        for row, machine in zip(axes, machines, strict=True):
            order = np.argsort(-machine.values, kind="stable")[:TOP_CLIPS]
            for axis, i in zip(row, order, strict=False):
                clip, wave = machine.clips[i], read(machine.clips[i].path)
                mel = np.asarray(fbank(wave[None], BEATS))[0].T
                low, high = np.percentile(mel, [5, 99.5])  # a filter without any bin is far below
                extent = (0, len(wave) / SAMPLE_RATE_HZ, 0, len(mel))
                axis.imshow(
                    mel,
                    cmap="magma",
                    vmin=low,
                    vmax=high,
                    origin="lower",
                    aspect="auto",
                    extent=extent,
                )
                title = f"{machine.title}: score {machine.values[i]:.3g}, {LABELS[clip.label]}\n"
                name = textwrap.fill(clip.name, 48)
                axis.set_title(
                    title + name, fontsize=6.5, color=COLORS[clip.label], parse_math=False
                )
                axis.set(xlabel="s", ylabel="mel band")
            for axis in row[len(order) :]:
                axis.set_axis_off()
