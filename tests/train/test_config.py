"""What a training may be told: supplemental clips."""

import pytest

from asdjax.train.config import Supplement
from asdjax.types import InputError


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, ()),
        ({"clean": True}, ("clean",)),
        ({"clean": True, "noise": 0.5}, ("clean", "noise")),
        ({"noise": 1}, ("noise",)),
    ],
)
def test_kinds_are_those_that_are_used(fields, kinds):
    assert Supplement(**fields).kinds == kinds


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noise": 1.5}, r"noise: expected a probability in \[0, 1\], got 1.5"),
        ({"noise": float("nan")}, "got nan"),
        ({"snr_db": (20.0, 0.0)}, "the smaller first, got .20.0, 0.0."),
        ({"snr_db": (0.0, float("inf"))}, r"\[-100, 100\] dB"),
        ({"snr_db": (1.0,)}, "two numbers"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Supplement(**wrong)
