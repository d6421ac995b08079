"""The official baseline of DCASE Task 2 from 2023 on: an autoencoder for each machine.

Harada et al. 2023, "First-shot anomaly sound detection for machine condition monitoring", and their
code, nttcslab/dcase2023_task2_baseline_ae. `network.py`: from a wave to its scores. `training.py`:
from recordings to the model file.
"""

from asdjax.baseline.network import Autoencoder, Reconstruction
from asdjax.baseline.training import FitAutoencoders

__all__ = ["Autoencoder", "FitAutoencoders", "Reconstruction"]
