"""IOA-CAS at DCASE 2024 Task 2 (Wu et al. 2024): three subnetworks trained from scratch.

asdjax run ioa2024/three-subnetworks-kmeans --data DIR --out RUN
asdjax run ioa2024/ensemble1 --data DIR --out RUN
python experiments/ioa2024.py --data DIR --out RUNS
"""

from dataclasses import replace

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.models.spectral import ConvNet1d, ResNet
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.centers import Centers
from asdjax.scoring.mixture import Mixture
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

REPORT = "IOA-CAS, DCASE 2024 Task 2 (Wu et al. 2024)"

KMEANS = SystemConfig(
    (ConvNet1d("wave"), ConvNet1d("spectrum"), ResNet(embedding=256, blocks=1)),
    Centers(count=16),
    Audio(seconds=12.0, fit="tile"),
    Train(
        steps=2_500,
        batch=64,
        heads=(HeadConfig(AdaCos(subclusters=16), "attributes"),),
        optimizer=Optimizer("adam", Schedule("constant", peak=1e-3)),
        augment=Augment(mixup=1.0, mixup_on="wave"),
    ),
)
GMM = replace(KMEANS, scorer=Mixture(components=16))

RECIPES = {
    "ioa2024/three-subnetworks-kmeans": Recipe(
        summary="wave, spectrum, spectrogram; k-means centers",
        config=KMEANS,
        source=f"{REPORT}, section 2 and table 2, Proposed KMeans",
        stated="Clips of 12 s. Wave and amplitude spectrum, each by three one-dimensional "
        "convolutions and four dense layers with batch norm to 128 dimensions. STFT (1024, hop "
        "512) by a residual network of four basic blocks to 256. Sub-cluster AdaCos with a "
        "dynamic scale. Mixup. Adam at 1e-3, 64 clips. Anomaly score by k-means.",
        chosen="The networks are those of Wilkinghoff 2023 and 2024, which the report redesigns, "
        "with one block in each of four stages; a fifth dense layer without norm makes the "
        "embedding. Shorter clips are repeated. Spectrogram of 200 to 8000 Hz minus its mean over "
        "time, as there. No penalty on weights. Classes are machines with attributes, 16 trained "
        "sub-clusters each. Every wave is mixed, by a uniform share. 2,500 steps (10 passes over "
        "the 16 machines of 2024). Cosine distance to 16 centers of the source clips and to every "
        "target clip (Wilkinghoff 2023).",
    ),
    "ioa2024/three-subnetworks-gmm": Recipe(
        summary="the same networks; Gaussian mixture",
        config=GMM,
        source=f"{REPORT}, section 2 and table 2, Proposed GMM",
        stated="Anomaly score by a Gaussian mixture model.",
        chosen="The score has 16 full covariances of embeddings of length 1; 1e-3 is added to the "
        "variances.",
        like="ioa2024/three-subnetworks-kmeans",
    ),
    "ioa2024/ensemble1": Recipe(
        summary="mean of the z-scores of both",
        config=EnsembleConfig(
            ("ioa2024/three-subnetworks-kmeans", "ioa2024/three-subnetworks-gmm")
        ),
        source=f"{REPORT}, section 4 and table 3, Ensemble-1",
        stated="Combines the three subnetworks: scores are normalized, then a mean by proportions.",
        chosen="The report does not say which scores are combined: we take both scorers, equally, "
        "normalized by the training clips of each machine. Ensemble-2 to 4 have members that are "
        "pre-trained speech models, or drop members by a rule that is not given: give their runs "
        "to `asdjax ensemble`.",
    ),
}
