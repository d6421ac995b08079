"""Which clips are asked for follows from seed and step alone; what goes with them."""

from pathlib import Path

import numpy as np
import pytest

from asdjax.train.balance import balance
from asdjax.train.batch import SILENCE
from asdjax.train.config import Train
from asdjax.train.passes import one_after_another, order, training_passes
from asdjax.train.supplement import Supplement
from asdjax.types import Clip


def test_every_clip_comes_once_in_each_pass_over_the_set():
    rows = order(10, 4, seed=0)
    passes = np.concatenate([rows(step) for step in range(15)]).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(each) for each in passes}) == 6  # shuffled anew: 10! orders


def test_the_order_is_a_function_of_seed_and_step_alone():
    once, again = order(10, 4, 5), order(10, 4, 5)
    forward = [once(step) for step in range(20)]
    backward = [again(step) for step in reversed(range(20))][::-1]
    np.testing.assert_array_equal(forward, backward)
    other = order(10, 4, 6)
    assert any((other(step) != rows).any() for step, rows in enumerate(forward))


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_the_size_of_a_batch_only_cuts_the_same_row_of_clips(batch):
    rows = order(10, batch, 0)
    joined = np.concatenate([rows(step) for step in range(30 // batch)])
    np.testing.assert_array_equal(joined, np.concatenate([order(10, 10, 0)(s) for s in (0, 1, 2)]))
    assert rows(0).dtype == np.int32


def test_validation_takes_one_clip_after_the_other_and_fills_its_last_batch():
    ask = one_after_another(5, 4)
    np.testing.assert_array_equal([ask(0).clip, ask(1).clip], [[0, 1, 2, 3], [4, 0, 1, 2]])
    assert ask(0)[1:] == (None,) * 4


# Balance and noise

CLIPS = [Clip(Path(f"{i}.wav"), m, "section_00", "train") for i, m in enumerate("aaaaabbc")]
NOISE = [Clip(Path(f"n{i}.wav"), m, "section_00", "supplemental") for i, m in enumerate("bab")]
LABEL = np.array([[0], [0], [0], [0], [0], [1], [1], [2]], np.int32)


def test_without_balance_and_noise_only_clips_are_asked_for():
    ask, line = training_passes(CLIPS, LABEL, [], Train(batch=4, seed=3))
    assert line == ""
    for step in range(4):
        np.testing.assert_array_equal(ask(step).clip, order(8, 4, 3)(step))
        assert ask(step)[1:] == (None,) * 4


def test_a_pass_over_a_balanced_set_has_every_entry_once():
    how = Train(batch=5, balance=1.0, seed=3)
    ask, line = training_passes(CLIPS, LABEL, [], how)
    assert line.startswith("balance: 7 synthetic training clips of 2 rare classes beside 8 real")
    seen = [ask(step) for step in range(3)]  # 15 entries: 5 of each class
    clip = np.concatenate([asked.clip for asked in seen])
    np.testing.assert_array_equal(np.bincount(LABEL[clip, 0]), [5, 5, 5])
    entries = balance(LABEL, 1.0, 3)
    for name in ("partner", "share", "copied"):
        every = np.concatenate([getattr(asked, name) for asked in seen])
        np.testing.assert_array_equal(np.sort(every), np.sort(getattr(entries, name)))
    assert all(asked.noise is None for asked in seen)


def test_noise_is_of_the_same_machine_of_any_of_its_clips_and_as_often_as_asked():
    how = Train(batch=8, supplement=Supplement(noise=0.25), seed=1)
    ask, _ = training_passes(CLIPS, LABEL, NOISE, how)
    again, _ = training_passes(CLIPS, LABEL, NOISE, how)
    drawn = {machine: [] for machine in "abc"}
    for step in range(400):
        asked = ask(step)
        for clip, noise in zip(asked.clip, asked.noise, strict=True):
            drawn[CLIPS[clip].machine].append(noise)
    np.testing.assert_array_equal(asked.noise, again(399).noise)  # whatever was asked before
    assert set(drawn["a"]) == {9, SILENCE}  # numbered behind the 8 clips
    assert set(drawn["b"]) == {8, 10, SILENCE}
    assert set(drawn["c"]) == {SILENCE}  # has none, is left alone
    # Of 2,000 and 800 draws: 4 standard errors.
    assert np.mean(np.array(drawn["a"]) == 9) == pytest.approx(0.25, abs=0.039)
    assert np.mean(np.array(drawn["b"]) == 8) == pytest.approx(0.125, abs=0.047)


def test_noise_does_not_change_the_order_of_clips():
    with_noise = training_passes(
        CLIPS, LABEL, NOISE, Train(batch=4, supplement=Supplement(noise=1))
    )
    without = training_passes(CLIPS, LABEL, [], Train(batch=4))
    for step in range(5):
        np.testing.assert_array_equal(with_noise[0](step).clip, without[0](step).clip)
