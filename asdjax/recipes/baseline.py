"""The official baselines of 2023 to 2026: an autoencoder for each machine, with two scores.

asdjax run baseline/mse --data DIR --out RUN
asdjax run baseline/mahala --data DIR --out OTHER --reuse RUN
python experiments/baseline.py --data DIR --out RUNS --part "dev 2025"
"""

from asdjax.baseline import Autoencoder, FitAutoencoders, Reconstruction
from asdjax.config import SystemConfig
from asdjax.recipes.recipe import Recipe

REPORT = "Official baselines, DCASE 2023 to 2026 Task 2 (Harada et al. 2023)"

RECIPES = {
    "baseline/mse": Recipe(
        summary="autoencoder per machine; mean squared error",
        config=SystemConfig((Autoencoder(),), Reconstruction("mse"), train=FitAutoencoders()),
        source="nttcslab/dcase2023_task2_baseline_ae, simple autoencoder mode (Harada et al. 2023)",
        stated="Log-mel of 128 bands (1,024 samples every 512); 5 frames are one vector of 640. "
        "Autoencoder 640 - 4 x 128 - 8 - 4 x 128 - 640 with batch norm and ReLU. Mean squared "
        "error. Adam 0.001, batches of 256 vectors, 100 epochs, a tenth of the vectors held out. "
        "Channel 0.",
        chosen="The PyTorch version of 2023 to 2026 also for earlier years (these used Keras, "
        "batch 512, one model for all sections of a machine). One model per section. All machines "
        "train at once, each from the official seed, whose random draws are not those of PyTorch. "
        "The threshold is from mini-batches from 2023 on; before, and for recordings of no "
        "edition, from training clips.",
        parameters="0.27M / 0.27M of each machine",
    ),
    "baseline/mahala": Recipe(
        summary="autoencoder per machine; Mahalanobis distance",
        config=SystemConfig(
            (Autoencoder(),), Reconstruction("mahalanobis"), train=FitAutoencoders()
        ),
        source="nttcslab/dcase2023_task2_baseline_ae, selective Mahalanobis mode (Harada et al. "
        "2023)",
        stated="The same autoencoder. Residual covariances of source and target; the smaller "
        "Mahalanobis distance of a clip.",
        chosen="The distance is that of the clip's mean residual, as in the official code. "
        "Covariances are inverted in float64, singular ones with the smallest ridge that float32 "
        "can invert.",
        parameters="0.27M / 0.27M of each machine",
        like="baseline/mse",
    ),
}
