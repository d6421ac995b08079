"""Encoders, frozen or trained. An encoder is a configuration with the method `network`."""

from asdjax.models.logmel import LogMel
from asdjax.models.pretrained import Pretrained
from asdjax.models.spectral import Bands, ConvNet1d, ResNet

# Every encoder. A new one is a file here and a word in this line.
Encoder = LogMel | Pretrained | ConvNet1d | ResNet | Bands
