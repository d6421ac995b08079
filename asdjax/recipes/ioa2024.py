"""IOA-CAS at DCASE 2024 Task 2 (Wu et al. 2024): three subnetworks, five pre-trained models.

asdjax run ioa2024/three-subnetworks-kmeans --data DIR --out RUN
asdjax run ioa2024/hubert --data DIR --out RUN --weights hubert-base
asdjax run ioa2024/ensemble4 --data DIR --out RUN
python experiments/ioa2024.py --data DIR --out RUNS
"""

from dataclasses import replace

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.models.pretrained import Pretrained
from asdjax.models.spectral import ConvNet1d, ResNet
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.centers import Centers
from asdjax.scoring.combine import Ensemble
from asdjax.scoring.mixture import Mixture
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

REPORT = "IOA-CAS, DCASE 2024 Task 2 (Wu et al. 2024)"

KMEANS = SystemConfig(
    (
        ConvNet1d("wave", dense=4),
        ConvNet1d("spectrum", dense=4),
        ResNet(embedding=256, blocks=1),
    ),
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
THREE = "ioa2024/three-subnetworks-kmeans", "ioa2024/three-subnetworks-gmm"
TUNED = ("hubert", "beats", "wav2vec2", "wavlm", "unispeech-sat")
EVERY = *THREE, *(f"ioa2024/{name}" for name in TUNED)
EACH = 0.5, 0.5, *[1.0] * len(TUNED)  # the two scores of one network count as one


def tuned(name: str, weights: str, stated: str = "", **more: str) -> Recipe:
    train = replace(
        KMEANS.train,
        steps=10_000,
        batch=32,
        optimizer=Optimizer("adam", Schedule("constant", peak=1e-4, warmup=120)),
    )
    config = replace(KMEANS, encoders=(Pretrained(weights),), train=train)
    source = f"{REPORT}, abstract, sections 3 and 4 and table 1, {name}"
    return Recipe(f"{name}, all weights", config, source, stated, machines=16, **more)


RECIPES = {
    "ioa2024/three-subnetworks-kmeans": Recipe(
        summary="wave, spectrum, spectrogram; k-means centers",
        config=KMEANS,
        source=f"{REPORT}, section 2 and table 2, Proposed KMeans",
        stated="Clips of 12 s. Wave and amplitude spectrum, each by three one-dimensional "
        "convolutions and four dense layers with batch norm to 128 dimensions. STFT (1024, hop "
        "512) by a residual network of four basic blocks to 256. Sub-cluster AdaCos with a dynamic "
        "scale, on attributes and categories of machines; an embedding of 512 dimensions. Mixup. "
        "Adam at 1e-3, 64 clips. Anomaly score by k-means. Redesigned after Wilkinghoff 2024.",
        chosen="The networks are those of Wilkinghoff 2023, which his work of 2024 uses, with one "
        "block in each of four stages; the last dense layer, without norm, makes the embedding. "
        "Shorter clips are repeated, and all are without their mean. Spectrogram of 200 to 8000 Hz "
        "minus its mean over time, as there. No penalty on weights. 16 trained sub-clusters of "
        "each class. Every wave is mixed, by a uniform share. 2,500 steps (10 passes over the 16 "
        "machines of 2024). Cosine distance to 16 centers of the source clips and to every target "
        "clip (Wilkinghoff 2023).",
        machines=16,
    ),
    "ioa2024/three-subnetworks-gmm": Recipe(
        summary="the same networks; Gaussian mixture",
        config=GMM,
        source=f"{REPORT}, section 2 and table 2, Proposed GMM",
        stated="Anomaly score by a Gaussian mixture model.",
        chosen="The score has 16 full covariances of embeddings of length 1; 1e-3 is added to the "
        "variances.",
        machines=16,
        like="ioa2024/three-subnetworks-kmeans",
    ),
    "ioa2024/ensemble1": Recipe(
        summary="mean of the z-scores of both",
        config=EnsembleConfig(THREE),
        source=f"{REPORT}, section 4 and table 3, Ensemble-1",
        stated="Combines the three subnetworks: scores are normalized, then a mean by proportions.",
        chosen="Which scores are combined is not said (section 1 decides on k-means, section 4 "
        "combines the three subnetworks, and its total lies between both scorers of table 2): we "
        "take both scorers, equally, normalized by the training clips of each machine.",
    ),
    "ioa2024/hubert": tuned(
        "HuBERT",
        "hubert-base",
        "Pre-trained models are fine-tuned with the data of the challenge of 2024.",
        chosen="The report gives no settings. Input, classes, loss, mixup and score are those of "
        "three-subnetworks-kmeans: clips of 12 s, shorter ones repeated; attributes of 16 machine "
        "types; AdaCos with 16 sub-clusters; every wave mixed; 16 centers. The base model (the "
        "report says 'large pre-trained models' and no more), all of whose weights train; "
        "attentive statistics pooling of its last layer and a dense layer to 128 dimensions. Adam "
        "at 1e-4, constant after a warm-up of 120; 10,000 steps of 32 clips. Dropout and layer "
        "drop are the checkpoint's.",
    ),
    "ioa2024/beats": tuned("BEATs", "beats-iter3", like="ioa2024/hubert"),
    "ioa2024/wav2vec2": tuned("wav2vec 2.0", "wav2vec2-base", like="ioa2024/hubert"),
    "ioa2024/wavlm": tuned("WavLM", "wavlm-base", like="ioa2024/hubert"),
    "ioa2024/unispeech-sat": tuned("UniSpeech-SAT", "unispeech-sat-base", like="ioa2024/hubert"),
    "ioa2024/ensemble2": Recipe(
        summary="ensemble1 and the five pre-trained models",
        config=EnsembleConfig(EVERY, Ensemble(EACH)),
        source=f"{REPORT}, section 4 and table 3, Ensemble-2",
        stated="Combines the three subnetworks with the five pre-trained models.",
        chosen="The proportions are not given: each network counts as much as each other one, the "
        "three subnetworks by the mean of their two scores.",
        like="ioa2024/ensemble1",
    ),
    "ioa2024/ensemble3": Recipe(
        summary="ensemble1 and HuBERT",
        config=EnsembleConfig(EVERY[:3], Ensemble(EACH[:3])),
        source=f"{REPORT}, section 4 and table 3, Ensemble-3",
        stated="Combines the three subnetworks with HuBERT, the best of the pre-trained models.",
        like="ioa2024/ensemble2",
    ),
    "ioa2024/ensemble4": Recipe(
        summary="ensemble2 without models of low accuracy",
        config=EnsembleConfig(EVERY, Ensemble(EACH, keep="accuracy")),
        source=f"{REPORT}, section 4 and table 3, Ensemble-4",
        stated="Models with low accuracy are filtered out before the networks are combined.",
        chosen="The rule is not given. Ours needs no test labels: a model stays whose embeddings "
        "tell the classes of the training clips apart, each by its nearest other one, at least as "
        "often as the mean of all models, by their proportions. By the labels of the test clips "
        "instead: --ensemble.keep score, which the results then say.",
        like="ioa2024/ensemble2",
    ),
}
