"""Figures: the curves are right, and files appear only where there is something to draw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from asdjax.report import figures
from asdjax.types import Clip, Scores


def test_the_area_under_the_curve_is_the_auc_ties_included():
    rng = np.random.default_rng(0)
    normal, anomalies = rng.integers(0, 6, 40), rng.integers(2, 8, 30)
    x, y = figures.roc_curve(normal, anomalies)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    label = np.repeat([0, 1], [40, 30])
    area = np.trapezoid(y, x)
    assert area == pytest.approx(roc_auc_score(label, np.concatenate([normal, anomalies])))


@pytest.fixture
def scored():
    clips = [
        Clip(Path(f"fan/test/{i}.wav"), "fan", "section_00", "test", domain, i % 2)
        for i, domain in enumerate(["source", "source", "target", "target"])
    ]
    names = tuple(clip.name for clip in clips)
    return [Scores("fan", "section_00", names, np.array([0.1, 0.4, 0.2, 0.3]))], clips


def test_the_highest_scored_clips_are_shown_in_order(scored, tmp_path):
    shown = []

    def read(path):
        shown.append(path.name)
        return np.random.default_rng(0).standard_normal(4000).astype(np.float32)

    folder = figures.write(tmp_path / "figures", *scored, read)
    assert shown == ["1.wav", "3.wav", "2.wav", "0.wav"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "histograms.png",
        "roc.png",
        "top_clips.png",
    ]


def test_without_labels_there_is_no_roc(scored, tmp_path):
    scores, clips = scored
    clips = [replace(clip, label=None, domain=None) for clip in clips]
    folder = figures.write(tmp_path / "figures", scores, clips, lambda path: np.ones(800))
    assert sorted(path.name for path in folder.iterdir()) == ["histograms.png", "top_clips.png"]
