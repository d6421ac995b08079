"""Converters from PyTorch checkpoints to the weight files of asdjax. PyTorch is not needed."""

from functools import partial

from asdjax.models.speech import KINDS
from weights_convert import beats, eat, efficientat, speech

CONVERTERS = {  # by kind of backbone
    "beats": beats.convert_file,
    "eat": eat.convert_file,
    "efficientat": efficientat.convert_file,
    **{kind: partial(speech.convert_file, kind) for kind in KINDS},
}
