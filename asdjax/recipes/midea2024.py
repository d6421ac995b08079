"""Midea at DCASE 2024 Task 2 (Yin et al. 2024): a dual-branch network trained from scratch.

asdjax run midea2024/submission1 --data DIR --out RUN
python experiments/midea2024.py --data DIR --out RUNS
"""

from dataclasses import replace

from asdjax.config import SystemConfig
from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.models.spectral import ConvNet1d, ResNet
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.clusters import Pseudo
from asdjax.scoring.knn import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

REPORT = "Midea, DCASE 2024 Task 2 (Yin et al. 2024)"

TRAIN = Train(
    steps=2_500,
    batch=64,
    heads=(
        HeadConfig(AdaCos(subclusters=16), "attributes"),
        HeadConfig(AdaCos(subclusters=16), "machine"),
    ),
    optimizer=Optimizer("adam", Schedule("constant", peak=1e-3)),
)
MIXUP = replace(TRAIN, augment=Augment(mixup=1.0, mixup_on="wave"))
SUBMISSION1 = SystemConfig(
    (ConvNet1d(cbam=True), ResNet(cbam=True)),
    Knn(k=1),
    Audio(seconds=10.0, fit="tile"),
    TRAIN,
)
SUBMISSION2 = replace(SUBMISSION1, pseudo=Pseudo("kmeans"))
SUBMISSION3 = replace(SUBMISSION2, train=MIXUP)
SUBMISSION4 = replace(SUBMISSION2, train=replace(MIXUP, balance=1.0))

RECIPES = {
    "midea2024/submission1": Recipe(
        summary="networks on spectrum and spectrogram, CBAM",
        config=SUBMISSION1,
        source=f"{REPORT}, sections 2 and 3 and table 1, submission1",
        stated="Clips repeated and cut to one length. Magnitude spectrum, and STFT magnitudes "
        "(1024, hop 512, 200-8000 Hz) minus their mean over time. Convolutions on the spectrum, a "
        "ResNet on the spectrogram, both with CBAM; embedding of 256 dimensions. Sub-cluster "
        "AdaCos; the loss is the cross-entropy of machine and attributes plus that of machines. "
        "Adam. Cosine similarity. The backbone is that of Wilkinghoff 2023.",
        chosen="Clips of 10 s, without their mean before the spectrum is taken. Both branches are "
        "without that paper's penalty on weights (L2 of 1e-5); 128 dimensions of each. CBAM behind "
        "each convolution of the spectrum, and on what each residual block adds. 16 trained "
        "sub-clusters per class, with a dynamic scale, in both losses. Adam at 1e-3, 64 clips, "
        "2,500 steps (10 passes over the 16 machines of 2024). Cosine distance to the nearest "
        "training clip.",
        machines=16,
    ),
    "midea2024/submission2": Recipe(
        summary="submission1 with k-means pseudo labels",
        config=SUBMISSION2,
        source=f"{REPORT}, sections 2 and 3 and table 1, submission2",
        stated="Clips without attributes are first put into classes by k-means.",
        chosen="The clusters are of embeddings of the same system without them, trained first. "
        "Their number is that with the largest mean silhouette.",
        machines=16,
        like="midea2024/submission1",
    ),
    "midea2024/submission3": Recipe(
        summary="submission2 with mixup",
        config=SUBMISSION3,
        source=f"{REPORT}, sections 2 and 3 and table 1, submission3",
        stated="Mixup.",
        chosen="Pseudo labels by k-means as in submission2, which the report does not say of it. "
        "Every wave is mixed, by a uniform share (Wilkinghoff 2023).",
        machines=16,
        like="midea2024/submission1",
    ),
    "midea2024/submission4": Recipe(
        summary="submission3 with SMOTE and time warping",
        config=SUBMISSION4,
        source=f"{REPORT}, sections 2 and 3 and table 1, submission4",
        stated="Time warping, SMOTE and mixup. Classes of a single clip are first made larger by "
        "time warping.",
        chosen="Every class of machine and attributes is brought to the size of the largest by "
        "clips between two of its waves, drawn at random, or by warped copies of a single one, "
        "newly warped in each pass. So more clips train: 1,050 of ToyCar in 2023 become 2,160. A "
        "machine without attributes is a class of 1,000 until it is clustered: beside one, every "
        "class of the first training grows to 1,000, and 2,500 steps are few passes where the "
        "others make 10 (--train.steps). SMOTE is between classes: source and target clips of a "
        "machine without attributes stay as unequal as they are. Warped copies are not "
        "interpolated.",
        machines=16,
        like="midea2024/submission3",
    ),
}
