"""XJU at DCASE 2025 Task 2 (Huang and He 2025): BEATs, EAT and a spectrum network, by OS-SCL.

asdjax run xju2025/beats-fft --data DIR --out RUN --weights beats-iter3
asdjax run xju2025/eat-beats-fft --data DIR --out RUN --weights eat-base beats-iter3
python experiments/xju2025.py --data DIR --out RUNS --weights beats-iter3 eat-base
"""

from asdjax.config import SystemConfig
from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.contrastive import Contrastive
from asdjax.losses.margin import Margin
from asdjax.models.pretrained import Pretrained
from asdjax.models.spectral import ConvNet1d
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.knn import Knn
from asdjax.scoring.oversampling import Smote
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

REPORT = "XJU, DCASE 2025 Task 2 (Huang and He 2025)"

BEATS, EAT = Pretrained("beats-iter3"), Pretrained("eat-base")
TRAIN = Train(
    steps=10_000,
    batch=16,
    accumulate=8,
    heads=(
        HeadConfig(
            Margin("arcface", margin=0.2, scale=30.0, subcenters_without_attributes=16),
            "attributes",
        ),
        HeadConfig(Contrastive(temperature=0.04), "attributes"),
    ),
    optimizer=Optimizer("adamw", Schedule("inverse-sqrt", peak=1e-4, warmup=960)),
    augment=Augment(mask=80, mixup=1.0, mixup_alpha=0.5, mixup_on="wave"),
    perturbation=64,
    ema=0.9995,
    ema_ramp=True,
)


def system(*branches: Pretrained | ConvNet1d) -> SystemConfig:
    return SystemConfig(
        branches,
        Knn(k=1, oversample=Smote(ratio=0.2, neighbors=3)),
        Audio(seconds=10.0, fit="tile"),
        TRAIN,
    )


RECIPES = {
    "xju2025/beats-fft": Recipe(
        summary="BEATs and a spectrum network, by OS-SCL",
        config=system(BEATS, ConvNet1d()),
        source=f"{REPORT}, section 3 and tables 1 and 2, system 1",
        stated="OS-SCL with sub-center ArcFace, margin 0.2, temperature 0.04, moving average "
        "0.9995. 172 classes, 114 sub-centers. 10,000 steps, batch 16, accumulation 8. AdamW, "
        "learning rate 1e-4, 960 warm-up steps, then inverse square root. SpecAugment 80. 128 "
        "dimensions of each branch. Nearest neighbors; KNN settings R 0.2, N 3. Data of 2025 "
        "alone. Sub-center ArcFace is for machines with limited attribute information, SMOTE acts "
        "in detection.",
        chosen="The clips of all 15 machine types train, and no supplemental ones: a reading of "
        "the abstract, which says of these that they were not utilized, and then that training was "
        "only on the current development set and additional supplementary sets. All weights train. "
        "Steps and warm-up count micro-batches. SpecAugment: one mask of each kind, each with "
        "probability 0.5. Weight decay 0.01 on matrices, not on biases, norms and gains. Attentive "
        "statistics pooling of the tokens. Clips of 10 s; shorter ones are repeated. The network "
        "on the spectrum is that of Wilkinghoff 2023, which the report cites. OS-SCL as in its "
        "public code for 2020: both losses and the nearest neighbor use the output of a "
        "perturbation head with 64 hidden units; mixup of waves by Beta(0.5, 0.5); contrastive "
        "term of a clip's own class, times temperature / 0.07, within 16 clips. Each clip has a "
        "share of mixup of its own. ArcFace scale 30, the margin on each of two mixed classes. "
        "Dropout and layer drop are the checkpoint's. 1 sub-center, 16 for machines without "
        "attributes (114 for each of 172 classes would be 19,608 centers for 15,000 clips). R is "
        "read as the ratio of SMOTE and N as its neighbors; one neighbor scores (--scorer.k 3 with "
        "--scorer.oversample.ratio 0.2 if N is k). The moving average first forgets the start "
        "(--train.no-ema-ramp: 0.9995 from the first update; after all 1,250 the start then still "
        "weighs 54 %). The public code of OS-SCL differs: MobileFaceNet on log-mel, TFgram and "
        "Tgram of 2020's recordings, ArcFace margin 0.4, temperature 0.02, moving average 0.9999, "
        "AdamW with a cosine from 1e-4 to 1e-5 over 300 epochs of 64 clips, decay of all weights, "
        "and as score the cross-entropy of a clip's own class. There a batch has one share of "
        "mixup, log-mels are mixed apart, the margin is on a clip's own class also in the loss of "
        "its partner's, and the weights of the lowest loss on a twentieth of the clips are kept.",
        classes=172,
        machines=15,
    ),
    "xju2025/eat-fft": Recipe(
        summary="EAT and a spectrum network, by OS-SCL",
        config=system(EAT, ConvNet1d()),
        source=f"{REPORT}, section 3 and tables 1 and 2, system 2",
        classes=172,
        machines=15,
        like="xju2025/beats-fft",
    ),
    "xju2025/eat-beats": Recipe(
        summary="EAT and BEATs, by OS-SCL",
        config=system(EAT, BEATS),
        source=f"{REPORT}, section 3 and tables 1 and 2, system 3",
        classes=172,
        machines=15,
        like="xju2025/beats-fft",
    ),
    "xju2025/eat-beats-fft": Recipe(
        summary="EAT, BEATs, spectrum network, by OS-SCL",
        config=system(EAT, BEATS, ConvNet1d(normalize=True)),
        source=f"{REPORT}, section 3 and tables 1 and 2, system 4",
        stated="The features of the spectrum are explicitly normalized.",
        chosen="The 128 dimensions of the spectrum have length 1, in training and in use.",
        classes=172,
        machines=15,
        like="xju2025/beats-fft",
    ),
}
