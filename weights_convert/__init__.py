"""Converters from PyTorch checkpoints to the weight files of asdjax. PyTorch is not needed."""
