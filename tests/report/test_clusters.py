"""The figure of clusters: the right points, whatever their number; the same in every call."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from asdjax.report import clusters
from asdjax.types import Clip


def clips(count, targets=2, machine="$fan$"):  # dollars: a machine's name is no formula
    domains = ["source"] * (count - targets) + ["target"] * targets
    return [
        Clip(Path(f"{i}.wav"), machine, "section_00", "train", domain)
        for i, domain in enumerate(domains)
    ]


def blobs(count, of=3):
    rng = np.random.default_rng(0)
    rows = np.eye(of, 8)[np.arange(count) % of] + 0.05 * rng.standard_normal((count, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_umap_keeps_neighbors_together_and_repeats_itself(tmp_path):
    rows, label = blobs(60), np.arange(60) % 3
    points = clusters.umap(rows)
    assert points.shape == (60, 2)
    assert silhouette_score(points, label) > 0.8  # 1: islands far apart
    np.testing.assert_array_equal(points, clusters.umap(rows))
    np.testing.assert_array_equal(clusters.umap(blobs(16)).shape, (16, 2))  # the fewest
    clusters.write(tmp_path / "new" / "fan.png", clips(60), rows, label)
    height, width, _ = imread(tmp_path / "new" / "fan.png").shape
    assert height > 0.9 * width  # two rows


def test_pca_equals_scikit_learn():
    rows = blobs(40)
    points, shares = clusters.pca(rows)
    want = PCA(2).fit(rows.astype(np.float64))
    # The sign of a component is free; float64 of float32 rows.
    expected = np.abs(want.transform(rows.astype(np.float64)))
    np.testing.assert_allclose(np.abs(points), expected, atol=1e-10)
    np.testing.assert_allclose(shares, want.explained_variance_ratio_, atol=1e-10)


@pytest.mark.parametrize("rows", [blobs(1), np.zeros((9, 8)), np.ones((2, 8)), blobs(15, 8)])
def test_few_clips_and_equal_ones_get_a_figure_without_umap(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "umap", lambda rows: pytest.fail("too few clips"))
    points, shares = clusters.pca(rows)
    assert points.shape == (len(rows), 2)
    assert np.isfinite(points).all()
    assert ((shares >= 0) & (shares <= 1)).all()
    clusters.write(tmp_path / "fan.png", clips(len(rows), 0), rows, np.arange(len(rows)))
    height, width, _ = imread(tmp_path / "fan.png").shape
    assert height < 0.6 * width  # one row


def test_every_clip_is_drawn_once_by_cluster_and_once_by_domain(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: keep(figure, path))

    def keep(figure, path):
        shown.append(figure)
        path.touch()

    labels = np.arange(15) // 4
    clusters.write(tmp_path / "fan.png", clips(15), blobs(15), labels)
    by_cluster, by_domain = shown[0].axes
    assert [len(group.get_offsets()) for group in by_cluster.collections] == [4, 4, 4, 3]
    assert [text.get_text() for text in by_cluster.texts] == ["0", "1", "2", "3"]
    legend = [text.get_text() for text in by_domain.get_legend().get_texts()]
    assert legend == ["source (13)", "target (2)"]
    title = shown[0].get_suptitle()
    assert title == "$fan$ section_00: 15 clips, 4 clusters (UMAP needs more than 15 clips)"


def test_styles_of_32_clusters_differ():
    assert len(set(clusters.COLORS)) * len(set(clusters.SHAPES)) == 32
    assert len({shape for _, shape, _ in clusters.DOMAINS.values()}) == 3  # not by colour alone
