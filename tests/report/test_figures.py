"""Figures show the right values, and what cannot be drawn never stops the rest."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, silhouette_score

from asdjax.data import audio
from asdjax.frontend.fbank import BEATS, mel_bank
from asdjax.report import figures
from asdjax.types import Clip, Scores

GROUP = "$fan$", "section_00"  # dollars: a machine's name is no formula


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """Return the figures that are saved from now on, by the name of their file."""
    figures_of = {}

    def keep(canvas, path, **_):
        figures_of[path.name.split(".")[1]] = canvas.figure
        path.touch()

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    return figures_of


@pytest.fixture
def scored():
    clips = [
        Clip(Path(f"fan/test/{i}.wav"), *GROUP, "test", domain, i % 2)
        for i, domain in enumerate(["source", "source", "target", "target"])
    ]
    names = tuple(clip.name for clip in clips)
    return [Scores(*GROUP, names, np.array([0.1, 0.4, 0.2, 0.3]))], clips


def noise(path: Path) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(4000).astype(np.float32)


def write(folder, scores, clips, read=noise, thresholds=None) -> tuple[list[str], list[str]]:
    """Return the names of the files, and the notes."""
    notes = []
    figures.write(folder, scores, clips, read, thresholds or {}, notes.append)
    return sorted(path.name for path in folder.iterdir()), notes


def test_the_area_under_the_curve_is_the_auc_ties_included():
    rng = np.random.default_rng(0)
    normal, anomalies = rng.integers(0, 6, 40), rng.integers(2, 8, 30)
    x, y = figures.roc_curve(normal, anomalies)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    label = np.repeat([0, 1], [40, 30])
    area = np.trapezoid(y, x)
    assert area == pytest.approx(roc_auc_score(label, np.concatenate([normal, anomalies])))


def test_the_highest_scored_clips_are_shown_in_order(scored, tmp_path):
    shown = []

    def read(path):
        shown.append(path.name)
        return noise(path)

    files, notes = write(tmp_path / "figures", *scored, read)
    assert shown == ["1.wav", "3.wav", "2.wav", "0.wav"]
    assert files == ["histograms.png", "roc.png", "top_clips.png"]
    assert notes == []


def test_without_labels_there_is_no_roc(scored, tmp_path):
    scores, clips = scored
    clips = [replace(clip, label=None, domain=None) for clip in clips]
    files, notes = write(tmp_path / "figures", scores, clips, lambda path: np.ones(800))
    assert files == ["histograms.png", "top_clips.png"]
    assert notes == []


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1.0, 1e4])
def test_numbers_on_the_axes_do_not_overlap(scored, tmp_path, drawn, unit):
    (scores,), clips = scored
    write(tmp_path, [replace(scores, values=unit * scores.values)], clips)
    figure = drawn["histograms"]
    figure.canvas.draw()
    for axis in figure.axes:
        low, high = axis.get_xlim()
        shown = [
            label for label in axis.get_xticklabels() if low <= label.get_position()[0] <= high
        ]
        boxes = [label.get_window_extent() for label in shown]
        assert len(boxes) > 1
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("threshold", [0.25, 0.0, 7.0, np.inf, None])
def test_histograms_show_the_threshold(scored, tmp_path, drawn, threshold):
    _, notes = write(tmp_path, *scored, thresholds={GROUP: threshold})
    assert notes == []
    lines = [] if threshold in (None, np.inf) else [threshold]
    for axis in drawn["histograms"].axes:  # both domains
        assert [list(line.get_xdata()) for line in axis.lines] == [[x, x] for x in lines]
        assert [text.get_text() for text in axis.texts] == [f"{x:.4g}" for x in lines]
        low, high = axis.get_xlim()
        assert all(low < x < high for x in lines)
    (legend,) = drawn["histograms"].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["normal", "anomaly", *["decision threshold" for _ in lines]]


def test_spectrograms_lie_at_their_seconds_and_hertz(scored, tmp_path, drawn):
    def tone(path):
        seconds = np.arange(16_000) / 16_000
        return np.sin(2 * np.pi * 2000 * seconds).astype(np.float32)

    assert write(tmp_path, *scored, tone)[1] == []
    for axis in drawn["top_clips"].axes:
        (image,) = axis.images
        left, right, bottom, top = image.get_extent()
        assert (left, right) == pytest.approx((0, 0.98))  # 98 frames of 10 ms
        edges = 700 * np.expm1(np.linspace(bottom, top, 129) / 1127)  # the inverse of Kaldi's scale
        loudest = image.get_array().mean(1).argmax()
        assert edges[loudest] < 2000 < edges[loudest + 1]
        # The largest weight of a filter is at most a bin of 31.25 Hz from its center; the lowest
        # 40 filters hold one bin or none.
        peaks = mel_bank(BEATS).argmax(0)[40:] * 31.25
        np.testing.assert_allclose((edges[40:-1] + edges[41:]) / 2, peaks, rtol=0, atol=31.25)
    first = drawn["top_clips"].axes[0]  # of its row: the others have no names of frequencies
    names = [float(label.get_text()) for label in first.get_yticklabels()]
    np.testing.assert_allclose(700 * np.expm1(first.get_yticks() / 1127), names, rtol=1e-12)


def test_recordings_that_moved_cost_their_spectrograms_alone(scored, tmp_path):
    """One note names the first files and the reason, however many there are."""
    files, (note,) = write(tmp_path, *scored, lambda path: audio.read(path, 0))
    assert files == ["histograms.png", "roc.png"]
    assert note.startswith("not in the figures: fan/test/1.wav, fan/test/3.wav, fan/test/2.wav and")
    assert "1 more: expected a wav or FLAC recording, got" in note
    assert "No such file" in note
    assert "\n" not in note


def test_a_clip_that_cannot_be_drawn_leaves_the_others(scored, tmp_path, drawn):
    def read(path):
        return {"3": np.ones(10), "2": np.full(800, np.nan)}.get(path.stem, noise(path))

    files, notes = write(tmp_path, *scored, read)
    assert "top_clips.png" in files
    axes = drawn["top_clips"].axes
    assert [len(axis.images) for axis in axes] == [1, 0, 0, 1]
    texts = [[text.get_text() for text in axis.texts] for axis in axes]
    assert texts == [[], ["cannot be drawn"], ["cannot be drawn"], []]
    short, broken = notes
    assert short.startswith("not in the figures: fan/test/3.wav: ValueError(")
    assert broken.startswith("not in the figures: fan/test/2.wav: ")


def test_a_figure_that_fails_leaves_the_others(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "roc_curve", lambda *_: 1 / 0)
    files, notes = write(tmp_path, *scored)
    assert files == ["histograms.png", "top_clips.png"]  # and nothing temporary
    roc = tmp_path / "roc.png"
    assert notes == [f"not in the figures: {roc}: ZeroDivisionError('division by zero')"]


def test_an_interruption_is_no_problem_of_a_figure(scored, tmp_path):
    def interrupted(path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, *scored, interrupted)


# Clusters


def members(count, targets=2):
    domains = ["source"] * (count - targets) + ["target"] * targets
    return [Clip(Path(f"{i}.wav"), *GROUP, "train", domain) for i, domain in enumerate(domains)]


def blobs(count, of=3):
    rng = np.random.default_rng(0)
    rows = np.eye(of, 8)[np.arange(count) % of] + 0.05 * rng.standard_normal((count, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_umap_keeps_neighbors_together_and_repeats_itself(tmp_path):
    rows, label = blobs(48), np.arange(48) % 3
    points = figures.umap(rows)
    assert points.shape == (48, 2)
    assert silhouette_score(points, label) > 0.8  # 1: islands far apart
    np.testing.assert_array_equal(points, figures.umap(rows))
    np.testing.assert_array_equal(figures.umap(blobs(16)).shape, (16, 2))  # the fewest
    picture = tmp_path / "new" / "fan.png"
    figures.write_clusters(picture, members(16), rows[:16], label[:16], pytest.fail)
    height, width, _ = imread(picture).shape
    assert height > 0.9 * width  # two rows


def test_pca_equals_scikit_learn():
    rows = blobs(40)
    points, shares = figures.pca(rows)
    want = PCA(2).fit(rows.astype(np.float64))
    # The sign of a component is free; float64 of float32 rows.
    expected = np.abs(want.transform(rows.astype(np.float64)))
    np.testing.assert_allclose(np.abs(points), expected, atol=1e-10)
    np.testing.assert_allclose(shares, want.explained_variance_ratio_, atol=1e-10)


@pytest.mark.parametrize("rows", [blobs(1), np.zeros((9, 8)), np.ones((2, 8)), blobs(15, 8)])
def test_few_clips_and_equal_ones_get_a_figure_without_umap(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "umap", lambda rows: pytest.fail("too few clips"))
    points, shares = figures.pca(rows)
    assert points.shape == (len(rows), 2)
    assert np.isfinite(points).all()
    assert ((shares >= 0) & (shares <= 1)).all()
    path = tmp_path / "fan.png"
    figures.write_clusters(path, members(len(rows), 0), rows, np.arange(len(rows)), pytest.fail)
    height, width, _ = imread(path).shape
    assert height < 0.6 * width  # one row


def test_every_clip_is_drawn_once_by_cluster_and_once_by_domain(drawn, tmp_path):
    figures.write_clusters(
        tmp_path / "fan.png", members(15), blobs(15), np.arange(15) // 4, pytest.fail
    )
    by_cluster, by_domain = drawn["fan"].axes
    assert [len(group.get_offsets()) for group in by_cluster.collections] == [4, 4, 4, 3]
    assert [text.get_text() for text in by_cluster.texts] == ["0", "1", "2", "3"]
    legend = [text.get_text() for text in by_domain.get_legend().get_texts()]
    assert legend == ["source (13)", "target (2)"]
    title = drawn["fan"].get_suptitle()
    assert title == "$fan$ section_00: 15 clips, 4 clusters (UMAP needs more than 15 clips)"


def test_styles_of_32_clusters_differ():
    assert len(set(figures.COLORS)) * len(set(figures.SHAPES)) == 32
    assert len({shape for _, shape, _ in figures.DOMAINS.values()}) == 3  # not by colour alone
