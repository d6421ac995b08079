"""A speech model as the backbone of a system: adapted, and trained as a whole."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from machines import one_encoder
from trainings import small_system, two_machines

from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.models import weights_file
from asdjax.models.backbone import initialize
from asdjax.models.lora import Lora
from asdjax.models.speech import SpeechConfig
from asdjax.models.weights_file import Header
from asdjax.stages import folder, stages
from asdjax.types import InputError

TINY = SpeechConfig(
    kind="wavlm",
    conv_dim=(8,) * 3,
    conv_kernel=(10, 3, 3),
    conv_stride=(5, 4, 4),
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=2,
)


def test_what_is_done_to_time_and_frequency_is_refused_for_a_wave(tmp_path):
    weights = tmp_path / "wavlm.safetensors"
    weights_file.save(weights, initialize(TINY), Header("wavlm", asdict(TINY)))
    data = two_machines(tmp_path / "data")
    for augment, told in (
        (Augment(mask=20), "train.augment.mask: expected 0, got 20"),
        (Augment(mixup=1.0), "mixup_on: expected wave, got input"),
    ):
        encoders = one_encoder(str(weights), ADAPTER, "mean", embedding=8)
        system = small_system(encoders=encoders, augment=augment)
        with pytest.raises(InputError, match=told):
            stages.train(system, data, tmp_path / "run")


ADAPTER = Lora(2, 2.0, targets=("q", "fc1"))


@pytest.mark.parametrize("adapter", [ADAPTER, None], ids=["lora", "full"])
def test_it_trains_and_scores(adapter, tmp_path):
    start = initialize(TINY)
    weights = tmp_path / "wavlm.safetensors"
    weights_file.save(weights, start, Header("wavlm", asdict(TINY)))
    encoders = one_encoder(str(weights), adapter, "statistics", embedding=8)
    system = replace(small_system(encoders=encoders), audio=Audio(seconds=0.45, fit="pad"))
    results = stages.run(system, two_machines(tmp_path / "data"), tmp_path / "run")
    assert "official_score" in {metric.metric for metric in results}
    trained = weights_file.load(tmp_path / "run" / folder.MODEL).arrays
    prefix = "branches.0.backbone."
    own = {n.removeprefix(prefix): x for n, x in trained.items() if n.startswith(prefix)}
    if adapter:
        assert own.keys() == {
            f"layers.0.{name}.lora_{factor}" for name in ("attn.q", "fc1") for factor in "ab"
        }
        assert all(np.any(value) for value in own.values())  # B starts from 0
        return
    assert own.keys() == start.keys()
    still = {name for name, value in own.items() if np.array_equal(value, start[name])}
    assert still <= {"layers.0.attn.k.bias"}  # whose gradient is rounding noise
    made = folder.load(tmp_path / "run")
    values = folder.load_embeddings(tmp_path / "run", made, ("fan", "section_00")).values
    assert values.shape[1] == 8
    assert np.isfinite(values).all()
