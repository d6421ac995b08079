"""The jitted embedding step: compilations, devices, batches."""

import jax
import numpy as np
import pytest
import soundfile

from asdjax.config import SystemConfig
from asdjax.data.audio import probe
from asdjax.data.batches import Audio
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.logmel import LogMel
from asdjax.models.system import Architecture, Embedder
from asdjax.stages.embed import embed_in_memory, make_embed
from asdjax.types import Clip

SECONDS = [1, 1, 0.7, 2, 1.5, 2, 1]  # two lengths after padding to whole seconds


@pytest.fixture
def clips(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for i, seconds in enumerate(SECONDS):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * 16000)), 16000, "PCM_16")
        made.append(Clip(path, "fan", "section_00", "train"))
    return made


def logmel_embedder():
    return Architecture((LogMel().network(),)).embedder({})


def run(embedder, clips, batch):
    config = SystemConfig((LogMel(),), audio=Audio(channel=0), batch=batch)
    embed = make_embed(embedder, config, len(clips))
    return embed_in_memory(embed, clips, [probe(clip.path) for clip in clips])


def test_one_compilation_for_each_clip_length(clips):
    traced = []

    def apply(params, wave, lengths):
        traced.append(wave.shape)
        return logmel_embedder().apply(params, wave, lengths)

    run(Embedder({}, apply), clips, batch=2)
    assert len(jax.devices()) == 2  # so each device sees one clip of a batch of two
    assert sorted(traced) == [(1, 16000), (1, 32000)]


def test_only_lengths_of_which_some_clip_is_padded_have_masks(clips):
    masked = {}

    def apply(params, wave, lengths):
        masked[wave.shape[1]] = lengths is not None
        return logmel_embedder().apply(params, wave, lengths)

    with_masks = run(Embedder({}, apply), clips, batch=2)
    assert masked == {16000: True, 32000: True}
    whole = [0, 1, 3]
    without = run(Embedder({}, apply), [clips[i] for i in whole], batch=2)
    assert masked == {16000: False, 32000: False}
    # 1e-5: the same float32 arithmetic in another program
    np.testing.assert_allclose(without, with_masks[whole], rtol=0, atol=1e-5)


def test_what_was_embedded_before_does_not_change_the_program_of_the_rest(clips):
    masked = []

    def apply(params, wave, lengths):
        masked.append(lengths is not None)
        return logmel_embedder().apply(params, wave, lengths)

    config = SystemConfig((LogMel(),), audio=Audio(channel=0), batch=2)
    infos = [probe(clip.path) for clip in clips]
    embed = make_embed(Embedder({}, apply), config, len(clips))
    embed(clips[:2], infos[:2], lambda *_: None, infos)
    assert masked == [True]  # the third clip, of 0.7 s, is padded


@pytest.mark.parametrize("structure", [BeatsConfig.base(), EatConfig.base()])
def test_a_clip_that_fills_its_row_has_no_token_of_padding(structure):
    for samples in range(16000, 11 * 16000, 16000):
        assert not structure.token_padding(samples, np.array([samples])).any()


def test_the_batch_size_does_not_matter(clips):
    together = run(logmel_embedder(), clips, batch=8)
    apart = run(logmel_embedder(), clips, batch=1)  # rounded up to the two devices
    # 1e-5: the same float32 arithmetic in another batch.
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5)


def test_devices_do_not_exchange_anything(clips):
    """Each device embeds its own rows of the batch, front end included."""
    lowered = []

    def lower(function, **settings):
        jitted = jit(function, **settings)

        def call(*args):
            lowered.append(jitted.lower(*args).compile().as_text())
            return jitted(*args)

        return call

    jit = jax.jit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", lower)
        run(logmel_embedder(), clips[:2], batch=2)
    assert lowered
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert not any(collective in text for text in lowered)
