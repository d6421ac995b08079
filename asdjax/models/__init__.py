"""Encoders, frozen or trained.

An encoder is a configuration with
    network(samples)    what it computes, for waves of `samples` at 16 kHz: a `system.Network`
    weights             name or file of pretrained weights; "" without
    needs_training      whether it has weights that only a training gives
    one_length          whether it is built for clips of one length
    shortest_samples    of a clip
    clip_bytes(samples) of memory that a clip needs, if it is not built for one length
    of_training         fields that only a training uses, of an encoder that can be frozen
"""

from asdjax.models.logmel import LogMel
from asdjax.models.pretrained import Pretrained
from asdjax.models.spectral import Bands, ConvNet1d, ResNet

# Every encoder. A new one is a file here and a word in this line.
Encoder = LogMel | Pretrained | ConvNet1d | ResNet | Bands
