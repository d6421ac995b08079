"""EfficientAT as the backbone of a system whose weights all train."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from machines import one_encoder
from trainings import small_system, two_machines

from asdjax.models import efficientat as efficient
from asdjax.models import weights_file
from asdjax.models.backbone import initialize
from asdjax.models.efficientat import EfficientATConfig
from asdjax.models.weights_file import Header
from asdjax.stages import folder, stages

TINY = EfficientATConfig(0.1, num_classes=3)
FIXED = ".mean", ".var"
HEAD = "hidden.", "head."


@pytest.fixture
def few_blocks(monkeypatch):
    """Four blocks, of 15, between which time and frequency are halved as often."""
    some = (efficient.SETTINGS[i] for i in (1, 3, 6, 12))
    monkeypatch.setattr(efficient, "SETTINGS", tuple(some))


@pytest.mark.usefixtures("few_blocks")
def test_all_but_the_statistics_and_the_class_head_trains_and_it_scores(tmp_path):
    start = initialize(TINY)
    weights = tmp_path / "mn01.safetensors"
    weights_file.save(weights, start, Header("efficientat", asdict(TINY)))
    encoders = one_encoder(str(weights), None, "mean", embedding=8)
    encoders = (replace(encoders[0], remat="layers"),)
    system = small_system(encoders=encoders, steps=2)
    results = stages.run(system, two_machines(tmp_path / "data"), tmp_path / "run")
    assert "official_score" in {metric.metric for metric in results}
    trained = weights_file.load(tmp_path / "run" / folder.MODEL).arrays
    prefix = "branches.0.backbone."
    own = {n.removeprefix(prefix): x for n, x in trained.items() if n.startswith(prefix)}
    assert own.keys() == {n for n in start if not n.endswith(FIXED) and not n.startswith(HEAD)}
    assert not [name for name, value in own.items() if np.array_equal(value, start[name])]
