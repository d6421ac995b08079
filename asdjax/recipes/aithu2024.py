"""AITHU at DCASE 2024 Task 2 (Lv et al. 2024), the winner: BEATs and EAT that classify attributes.

asdjax run aithu2024/beats-lora --data DIR --out RUN --weights beats-iter3
asdjax run aithu2024/dual --data DIR --out RUN --weights beats-iter3 eat-base
asdjax run aithu2024/system4 --data DIR --out RUN --weights beats-iter3 eat-base
python experiments/aithu2024.py --data DIR --out RUNS --weights beats-iter3 eat-base
"""

from dataclasses import replace

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.margin import Margin
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.clusters import Pseudo
from asdjax.scoring.combine import Ensemble
from asdjax.scoring.knn import Knn
from asdjax.scoring.oversampling import Smote
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

REPORT = "AITHU, DCASE 2024 Task 2 (Lv et al. 2024), first place"

BEATS, EAT = Pretrained("beats-iter3"), Pretrained("eat-base")
ADAPTER = Lora(rank=64, alpha=64.0, targets=("q", "v", "out"))
BEATS_LORA, EAT_LORA = replace(BEATS, adapter=ADAPTER), replace(EAT, adapter=ADAPTER)

ATTRIBUTES = HeadConfig(Margin("arcface", margin=0.2, scale=30.0), labels="attributes")
BY_BRANCH = replace(ATTRIBUTES, branch_weights=(0.5, 0.5))
# Warm-ups are 120 and 10 updates of 8 micro-batches, which `steps` and `warmup` count.
CONSTANT = Schedule("constant", peak=1e-4, warmup=960)
COSINE = Schedule("cosine", peak=5e-3, warmup=80, start=1e-4, end=1e-5)
FULL = Train(
    steps=10_000,
    batch=32,
    accumulate=8,
    heads=(ATTRIBUTES,),
    optimizer=Optimizer("adamw", CONSTANT),
    augment=Augment(mask=80, mask_probability=0.5),
)
ADAPT = replace(FULL, steps=50_000, optimizer=Optimizer("adamw", COSINE))


def system(train: Train, *branches: Pretrained, pseudo: Pseudo | None = None) -> SystemConfig:
    scorer = Knn(k=1, oversample=Smote(ratio=1.0, neighbors=2))
    return SystemConfig(branches, scorer, Audio(seconds=10.0, fit="pad"), train, pseudo)


def weighted(weights: dict[str, float]) -> EnsembleConfig:
    members = tuple(f"aithu2024/{name}" for name in weights)
    return EnsembleConfig(members, Ensemble(tuple(weights.values())))


BEATS_FULL_SYSTEM = system(FULL, BEATS)
EAT_FULL_SYSTEM = system(
    replace(FULL, optimizer=Optimizer("adam", replace(CONSTANT, peak=5e-5))), EAT
)
BEATS_CLUSTERS = (  # table 2: machines of both sets without attributes
    ("gearbox", 20),
    ("slider", 20),
    ("ToyTrain", 25),
    ("AirCompressor", 7),
    ("BrushlessMotor", 9),
    ("HoveringDrone", 3),
    ("ToothBrush", 10),
)
EAT_CLUSTERS = (
    ("gearbox", 20),
    ("slider", 20),
    ("ToyTrain", 25),
    ("AirCompressor", 5),
    ("BrushlessMotor", 8),
    ("HoveringDrone", 2),
    ("ToothBrush", 6),
)

RECIPES = {
    "aithu2024/beats-full": Recipe(
        summary="BEATs, all weights; classifies attributes",
        config=BEATS_FULL_SYSTEM,
        source=f"{REPORT}, section 2.1 and table 1, row BEATs-full",
        stated="Data of all machine types; one without attributes is one class. Clips of 10 s, "
        "padded or cut; log-mel of 128 bins, 25 ms every 10 ms. SpecAugment 80. Attentive "
        "statistics pooling (of BEATs), then two dense layers. ArcFace on attributes. Cosine "
        "distance to the nearest neighbor, with SMOTE on target embeddings. 10,000 steps, batch "
        "32, accumulation 8. AdamW, largest rate 1e-4, warm-up 120.",
        chosen="Steps count micro-batches; the warm-up counts updates, 960 micro-batches: that is "
        "the warm-up of XJU 2025, which accumulates 8 as well (--train.optimizer.schedule.warmup "
        "120: micro-batches). SpecAugment masks of up to 80 frames and 80 bands, each with "
        "probability 0.5. ArcFace margin 0.2 and scale 30 (those of the report of SJTU and AITHU "
        "of 2025). The embedding has 128 dimensions; the second dense layer is the class centers. "
        "The learning rate is constant after the warm-up. Weight decay 0.01 of AdamW on matrices "
        "(kernels, LoRA, centers), not on biases, norms and gains. Dropout, layer drop and drop "
        "path are the checkpoint's (0 of EAT). The pooling's hidden layer has a sixteenth of the "
        "model's width, as in ASDKit (128 in ECAPA-TDNN). SMOTE to as many target as source clips, "
        "because it is to balance their numbers (--scorer.oversample.ratio 0.2: that of ASDKit), "
        "with 2 neighbors. Padding is masked.",
        parameters="90M / 90M",
        machines=16,
    ),
    "aithu2024/beats-lora": Recipe(
        summary="BEATs with LoRA; classifies attributes",
        config=system(ADAPT, BEATS_LORA),
        source=f"{REPORT}, section 2.1 and table 1, row BEATs-LoRA",
        stated="LoRA of rank 64 on q, v and out; pooling and dense layers train. 50,000 steps. "
        "AdamW, initial rate 1e-4; cosine, largest rate 5e-3, smallest rate 1e-5, 10 warm-up "
        "restart steps.",
        chosen="One cosine cycle with a warm-up of 10 updates (80 micro-batches), of which the "
        "first is made at 1e-4 and the last at 5e-3. Batch and accumulation as in the full models. "
        "LoRA alpha 64 without dropout. 3.89M weights train; 3.73M are those of LoRA and the dense "
        "layer without the pooling's.",
        parameters="90M / 3.73M",
        machines=16,
        like="aithu2024/beats-full",
    ),
    "aithu2024/beats-pse": Recipe(
        summary="beats-full, then again with pseudo labels",
        config=replace(BEATS_FULL_SYSTEM, pseudo=Pseudo("agglomerative", BEATS_CLUSTERS)),
        source=f"{REPORT}, section 2.4 and tables 1 and 2, BEATs-pse",
        stated="First stage as beats-full. Agglomerative clustering of its embeddings of clips "
        "without attributes, into the classes of table 2, whose numbers were chosen by UMAP. "
        "Trained again from the checkpoint.",
        chosen="Ward linkage on embeddings of length 1. A machine that table 2 does not list gets "
        "the number of clusters with the largest mean silhouette.",
        parameters="90M / 90M",
        machines=16,
        like="aithu2024/beats-full",
    ),
    "aithu2024/eat-full": Recipe(
        summary="EAT, all weights; classifies attributes",
        config=EAT_FULL_SYSTEM,
        source=f"{REPORT}, section 2.2 and table 1, row EAT-full",
        stated="EAT base, pre-trained on AudioSet-2M. Pooling and dense layers are added. Adam, "
        "largest rate 5e-5; the rest as BEATs-full.",
        chosen="Attentive statistics pooling also of EAT, over its patches. Masked is what lies "
        "beyond the clip's own multiple of 32 frames. Adam has no weight decay.",
        parameters="88M / 88M",
        machines=16,
        like="aithu2024/beats-full",
    ),
    "aithu2024/eat-lora": Recipe(
        summary="EAT with LoRA; classifies attributes",
        config=system(
            replace(ADAPT, optimizer=Optimizer("adam", replace(COSINE, peak=1e-4))), EAT_LORA
        ),
        source=f"{REPORT}, section 2.2 and table 1, row EAT-LoRA",
        stated="EAT base, pre-trained on AudioSet-2M. Pooling and dense layers are added. Adam, "
        "largest rate 1e-4; the rest as BEATs-LoRA.",
        chosen="The largest rate is the initial one, so the warm-up changes nothing; Adam has no "
        "weight decay. 11.25M trained weights do not follow from LoRA on q, v and out, nor on all "
        "linear layers; the public file has 85M weights, not 88M. Attentive statistics pooling "
        "also of EAT, over its patches. Masked is what lies beyond the clip's own multiple of 32 "
        "frames.",
        parameters="88M / 11.25M",
        machines=16,
        like="aithu2024/beats-lora",
    ),
    "aithu2024/eat-pse": Recipe(
        summary="eat-full, then again with pseudo labels",
        config=replace(EAT_FULL_SYSTEM, pseudo=Pseudo("agglomerative", EAT_CLUSTERS)),
        source=f"{REPORT}, section 2.4 and tables 1 and 2, EAT-pse",
        stated="First stage as eat-full. Agglomerative clustering as in beats-pse, into the "
        "classes of table 2 for EAT-pse. Trained again from the checkpoint, as eat-full.",
        chosen="Ward linkage, and the number of clusters of other machines, as in beats-pse.",
        parameters="88M / 88M",
        machines=16,
        like="aithu2024/eat-full",
    ),
    "aithu2024/dual": Recipe(
        summary="BEATs and EAT with LoRA, a loss on each too",
        config=system(
            replace(
                ADAPT,
                heads=(BY_BRANCH,),
                optimizer=Optimizer(
                    "adamw", replace(COSINE, peak=1e-4), branch_peaks=(COSINE.peak, 1e-4)
                ),
            ),
            BEATS_LORA,
            EAT_LORA,
        ),
        source=f"{REPORT}, section 2.3 and table 1, row Dual Pre-trained",
        stated="The loss is back-propagated through each branch, weighted, then through the whole "
        "model. Training and detection as of BEATs and EAT.",
        chosen="Pooling, masks and adapter of EAT as in eat-lora. LoRA in both, because 14.98M is "
        "the sum of the two LoRA models. Two embeddings of 128 dimensions, concatenated. Losses "
        "weighted 0.5 on each branch and 1 on both, in one backward pass, which gives the same "
        "gradient as one after the other. AdamW; the weights of a branch have the rates of its own "
        "model, up to 5e-3 and 1e-4, the heads up to 1e-4.",
        parameters="180M / 14.98M",
        machines=16,
        like="aithu2024/beats-lora",
    ),
    "aithu2024/system1": Recipe(
        summary="weighted sum of the three LoRA models",
        config=weighted({"beats-lora": 0.2, "eat-lora": 0.4, "dual": 0.4}),
        source=f"{REPORT}, section 3 and tables 3 and 4, system1",
        stated="z-scores; weights by grid search on the development set over the LoRA models.",
        chosen="Mean and deviation are of each member's leave-one-out scores of normal training "
        "clips, per machine, which are made without SMOTE. The report does not say of which "
        "scores; of the test scores themselves: --ensemble.transductive.",
    ),
    "aithu2024/system2": Recipe(
        summary="system1 with more weight on beats-lora",
        config=weighted({"beats-lora": 0.5, "eat-lora": 0.1, "dual": 0.4}),
        source=f"{REPORT}, section 3 and tables 3 and 4, system2",
        stated="The weight of BEATs-LoRA is raised by hand.",
        like="aithu2024/system1",
    ),
    "aithu2024/system3": Recipe(
        summary="weighted sum of four of the seven models",
        config=weighted({"eat-full": 0.1, "eat-lora": 0.3, "eat-pse": 0.2, "dual": 0.4}),
        source=f"{REPORT}, section 3 and tables 3 and 4, system3",
        stated="Weights by grid search on the development set over all seven models.",
        like="aithu2024/system1",
    ),
    "aithu2024/system4": Recipe(
        summary="system3 with more weight on BEATs models",
        config=weighted(
            {
                "beats-full": 0.1,
                "beats-lora": 0.2,
                "eat-full": 0.1,
                "eat-lora": 0.2,
                "eat-pse": 0.1,
                "dual": 0.3,
            }
        ),
        source=f"{REPORT}, section 3 and tables 3 and 4, system4; evaluation set: results of the "
        "challenge",
        stated="The weights of BEATs models are slightly raised by hand.",
        like="aithu2024/system3",
    ),
    "aithu2024/beats-lora-flat": Recipe(
        summary="beats-lora at the constant rate of beats-full",
        config=system(replace(ADAPT, optimizer=FULL.optimizer), BEATS_LORA),
        source=f"{REPORT}, as beats-lora; no system of the report",
        chosen="A warm-up of 960 micro-batches from 0 to 1e-4, the report's initial rate, which "
        "then stays: 1/50 of beats-lora's largest rate.",
        parameters="90M / 3.73M",
        machines=16,
        like="aithu2024/beats-lora",
    ),
}
