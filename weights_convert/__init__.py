"""Converters from PyTorch checkpoints to the weight files of asdjax. PyTorch is not needed."""

from weights_convert import beats, eat

CONVERTERS = {"beats": beats.convert_file, "eat": eat.convert_file}  # by kind of backbone
