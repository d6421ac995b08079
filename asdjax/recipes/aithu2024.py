"""AITHU at DCASE 2024 Task 2 (Lv et al. 2024), the winner: BEATs and EAT that classify attributes.

asdjax run aithu2024/beats-lora --data DIR --out RUN --weights beats-iter3
asdjax run aithu2024/dual --data DIR --out RUN --weights beats-iter3 eat-base
asdjax run aithu2024/system4 --data DIR --out RUN --weights beats-iter3 eat-base
python experiments/aithu2024.py --data DIR --out RUNS --weights beats-iter3 eat-base

Published are the harmonic means of AUC source, AUC target and pAUC of each machine of the
development set, in per cent (table 1), and the harmonic mean over all; of the ensembles all of
these numbers (table 4).
"""

import statistics
from dataclasses import replace

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.data.loader import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.margin import Margin
from asdjax.models.lora import Lora
from asdjax.models.system import Branch, Trained
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.balance import Smote
from asdjax.scoring.ensemble import Ensemble
from asdjax.scoring.pseudo import Pseudo
from asdjax.scoring.score import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

MACHINES = ("bearing", "fan", "gearbox", "slider", "ToyCar", "ToyTrain", "valve")
PUBLISHED = {  # table 1: per machine as in MACHINES, then over all
    "aithu2024/beats-full": (60.17, 62.96, 68.92, 75.61, 55.59, 62.18, 65.47, 63.88),
    "aithu2024/beats-lora": (68.75, 61.85, 67.22, 70.87, 55.43, 60.24, 68.51, 64.26),
    "aithu2024/beats-pse": (60.16, 63.44, 66.32, 76.74, 56.79, 56.10, 69.64, 63.47),
    "aithu2024/eat-full": (62.56, 62.35, 66.26, 72.62, 56.91, 60.74, 70.72, 64.18),
    "aithu2024/eat-lora": (65.24, 61.34, 71.99, 76.39, 57.02, 57.37, 72.79, 65.23),
    "aithu2024/eat-pse": (62.87, 64.69, 66.64, 81.87, 56.39, 58.69, 71.68, 65.23),
    "aithu2024/dual": (63.79, 62.01, 61.87, 73.01, 62.77, 66.32, 72.70, 65.77),
}
SINGLES = tuple(PUBLISHED)
COEFFICIENTS = {  # table 3, in the order of SINGLES
    "aithu2024/system1": (0.0, 0.2, 0.0, 0.0, 0.4, 0.0, 0.4),
    "aithu2024/system2": (0.0, 0.5, 0.0, 0.0, 0.1, 0.0, 0.4),
    "aithu2024/system3": (0.0, 0.0, 0.0, 0.1, 0.3, 0.2, 0.4),
    "aithu2024/system4": (0.1, 0.2, 0.0, 0.1, 0.2, 0.1, 0.3),
}
PUBLISHED_ENSEMBLES = {  # table 4: AUC source, AUC target, pAUC per machine as in MACHINES
    "aithu2024/system1": (
        (72.70, 73.40, 57.95),
        (63.14, 65.60, 58.37),
        (77.18, 74.12, 61.79),
        (91.64, 81.60, 61.95),
        (61.94, 65.50, 52.26),
        (78.90, 60.14, 56.84),
        (78.62, 80.86, 66.58),
    ),
    "aithu2024/system2": (
        (70.58, 76.34, 59.05),
        (64.66, 65.36, 57.84),
        (76.54, 71.16, 58.89),
        (90.94, 79.56, 59.21),
        (61.02, 66.26, 49.58),
        (78.66, 62.34, 56.58),
        (78.88, 81.22, 61.74),
    ),
    "aithu2024/system3": (
        (70.26, 74.08, 59.68),
        (64.96, 65.70, 61.16),
        (76.00, 76.42, 60.37),
        (93.90, 85.16, 64.42),
        (64.18, 63.58, 50.68),
        (75.44, 63.70, 56.74),
        (79.20, 85.22, 68.68),
    ),
    "aithu2024/system4": (
        (70.28, 76.50, 62.11),
        (65.26, 65.56, 60.05),
        (78.36, 75.50, 62.63),
        (93.46, 83.54, 61.53),
        (61.92, 64.98, 48.63),
        (78.04, 62.70, 57.68),
        (79.02, 84.84, 64.68),
    ),
}

AUDIO = Audio(seconds=10.0, fit="pad")
ATTRIBUTES = HeadConfig(Margin("arcface", margin=0.2, scale=30.0), labels="attributes")
ADAPTER = Lora(rank=64, alpha=64.0, targets=("q", "v", "out"))
SCORER = Knn(k=1, smote=Smote(ratio=0.2, neighbors=2))
FULL = Train(
    steps=10_000,
    batch=32,
    accumulate=8,
    heads=(ATTRIBUTES,),
    optimizer=Optimizer("adamw", Schedule("constant", peak=1e-4, warmup=120)),
    augment=Augment(mask=80, mask_probability=0.5),
)
LORA = replace(
    FULL,
    steps=50_000,
    optimizer=Optimizer("adamw", Schedule("cosine", peak=5e-3, warmup=10, start=1e-4, end=1e-5)),
)
EAT_FULL = replace(FULL, optimizer=Optimizer("adam", Schedule("constant", peak=5e-5, warmup=120)))
EAT_LORA = replace(
    LORA,
    optimizer=Optimizer("adam", Schedule("cosine", peak=1e-4, warmup=10, start=1e-4, end=1e-5)),
)
DUAL = replace(
    LORA,
    heads=(replace(ATTRIBUTES, branch_weights=(0.5, 0.5)),),
    optimizer=Optimizer("adamw", Schedule("cosine", peak=1e-4, warmup=10, start=1e-4, end=1e-5)),
)
CLUSTERS = {  # table 2: machines of both sets without attributes
    "beats": (
        *(("gearbox", 20), ("slider", 20), ("ToyTrain", 25)),
        *(("AirCompressor", 7), ("BrushlessMotor", 9), ("HoveringDrone", 3), ("ToothBrush", 10)),
    ),
    "eat": (
        *(("gearbox", 20), ("slider", 20), ("ToyTrain", 25)),
        *(("AirCompressor", 5), ("BrushlessMotor", 8), ("HoveringDrone", 2), ("ToothBrush", 6)),
    ),
}


def system(train: Train, *branches: Branch, pseudo: Pseudo | None = None) -> SystemConfig:
    return SystemConfig(Trained(branches), SCORER, AUDIO, train, pseudo)


BEATS, EAT = Branch("beats-iter3"), Branch("eat-base")
ADAPTED = tuple(replace(branch, adapter=ADAPTER) for branch in (BEATS, EAT))

SOURCE = "AITHU, DCASE 2024 Task 2"
STATED = (
    "10 s, SpecAugment 80, pooling (attentive statistics, of BEATs), two dense layers, ArcFace, "
    "cosine 1-NN, SMOTE on target embeddings; "
)
STATED_FULL = "batch 32, accumulation 8, warm-up 120, 10,000 steps; "
STATED_LORA = (
    "LoRA of rank 64 on q, v and out, 50,000 steps, cosine with smallest rate 1e-5, 10 warm-up "
    "restart steps; "
)
CHOSEN = (
    "steps count passes, not updates; attentive statistics pooling also of EAT, over its patches; "
    "ArcFace margin 0.2 and scale 30 (the group's 2025 report); embedding of 128, the second dense "
    "layer being the class centers; SpecAugment masks of up to 80 frames and 80 bands, each with "
    "probability 0.5; the checkpoint's rates of dropout, layer drop, drop path (0 of EAT); SMOTE "
    "to 0.2 of the source clips with 2 neighbors; padding is masked (of EAT what lies beyond the "
    "clip's own multiple of 32 frames)"
)
CHOSEN_FULL = f"constant rate after the warm-up; weight decay 0.01 of AdamW; {CHOSEN}"
CHOSEN_LORA = (
    "batch and accumulation of the full models; one cosine cycle, whose warm-up of 10 passes (the "
    f"first update) starts from 1e-4; LoRA alpha 64, no dropout of adapters; {CHOSEN}"
)
CHOSEN_PSE = (
    "Ward linkage on embeddings of length 1; a machine that table 2 does not list gets the number "
    f"with the largest mean silhouette; {CHOSEN_FULL}"
)
CHOSEN_SYSTEM = (
    "mean and deviation of each member's leave-one-out scores of normal training clips, per "
    "machine; the report's are those of the scores themselves: --ensemble.transductive"
)


def single(
    name: str, summary: str, config: SystemConfig, where: str, **words: str
) -> tuple[str, Recipe]:
    published = f"dev 2024: {PUBLISHED[name][-1]:.2f}"
    return name, Recipe(summary, config, f"{SOURCE}, {where}", published, **words)


def ensemble(name: str, stated: str) -> tuple[str, Recipe]:
    used = {m: w for m, w in zip(SINGLES, COEFFICIENTS[name], strict=True) if w}
    config = EnsembleConfig(tuple(used), Ensemble(tuple(used.values())))
    members = ", ".join(f"{w:g} {m.removeprefix('aithu2024/')}" for m, w in used.items())
    numbers = [x for machine in PUBLISHED_ENSEMBLES[name] for x in machine]
    published = f"dev 2024: {statistics.harmonic_mean(numbers):.2f}"
    if name == "aithu2024/system4":
        published += ", eval 2024: 66.24 (first place)"
    where = f"{SOURCE}, section 3 and tables 3 and 4, {name.removeprefix('aithu2024/')}"
    summary = f"weighted sum of z-scores: {members}"
    return name, Recipe(summary, config, where, published, CHOSEN_SYSTEM, stated)


TABLE = [
    single(
        "aithu2024/beats-full",
        "BEATs, all weights trained by classifying attributes; SMOTE, nearest neighbor",
        system(FULL, BEATS),
        "section 2.1 and table 1, row BEATs-full",
        chosen=CHOSEN_FULL,
        stated=STATED + STATED_FULL + "AdamW, largest rate 1e-4",
        parameters="90M / 90M",
    ),
    single(
        "aithu2024/beats-lora",
        "BEATs with LoRA, trained by classifying attributes; SMOTE, nearest neighbor",
        system(LORA, ADAPTED[0]),
        "section 2.1 and table 1, row BEATs-LoRA",
        chosen=CHOSEN_LORA,
        stated=STATED + STATED_LORA + "AdamW from 1e-4, largest rate 5e-3",
        parameters="90M / 3.73M",
    ),
    single(
        "aithu2024/beats-pse",
        "beats-full trained again with pseudo labels of machines without attributes",
        system(FULL, BEATS, pseudo=Pseudo("agglomerative", CLUSTERS["beats"])),
        "section 2.4 and tables 1 and 2, BEATs-pse",
        chosen=CHOSEN_PSE,
        stated="first stage as beats-full; agglomerative clustering of its embeddings of clips "
        "without attributes into the classes of table 2; trained again from the checkpoint",
        parameters="90M / 90M",
    ),
    single(
        "aithu2024/eat-full",
        "EAT, all weights trained by classifying attributes; SMOTE, nearest neighbor",
        system(EAT_FULL, EAT),
        "section 2.2 and table 1, row EAT-full",
        chosen=CHOSEN_FULL,
        stated=STATED + STATED_FULL + "Adam, largest rate 5e-5",
        parameters="88M / 88M",
    ),
    single(
        "aithu2024/eat-lora",
        "EAT with LoRA, trained by classifying attributes; SMOTE, nearest neighbor",
        system(EAT_LORA, ADAPTED[1]),
        "section 2.2 and table 1, row EAT-LoRA",
        chosen="LoRA on q, v and out as for BEATs: 11.25M trained weights do not follow from that, "
        f"nor from all linear layers; {CHOSEN_LORA}",
        stated=STATED + STATED_LORA + "Adam, largest rate 1e-4",
        parameters="88M / 11.25M",
    ),
    single(
        "aithu2024/eat-pse",
        "eat-full trained again with pseudo labels of machines without attributes",
        system(EAT_FULL, EAT, pseudo=Pseudo("agglomerative", CLUSTERS["eat"])),
        "section 2.4 and tables 1 and 2, EAT-pse",
        chosen=CHOSEN_PSE,
        stated="as beats-pse, first stage as eat-full",
        parameters="88M / 88M",
    ),
    single(
        "aithu2024/dual",
        "BEATs and EAT with LoRA side by side, losses on each and on both; SMOTE, nearest neighbor",
        system(DUAL, *ADAPTED),
        "section 2.3 and table 1, row Dual Pre-trained",
        chosen="LoRA in both, because 14.98M is the sum of the two LoRA models; two embeddings of "
        "128, one behind the other; losses weighted 0.5 on each branch and 1 on both, in one "
        "backward pass, which gives the same gradient as one after the other; AdamW, rate as "
        f"eat-lora; {CHOSEN_LORA}",
        stated=STATED + "loss back-propagated through each branch, weighted, then through the "
        "whole model; the rest as BEATs and EAT",
        parameters="180M / 14.98M",
    ),
    ensemble(
        "aithu2024/system1", "z-scores, grid search on the development set over the LoRA models"
    ),
    ensemble("aithu2024/system2", "as system1, the weight of BEATs-LoRA raised by hand"),
    ensemble("aithu2024/system3", "z-scores, grid search on the development set over all seven"),
    ensemble("aithu2024/system4", "as system3, the weights of BEATs models raised by hand"),
]

FLAT = Recipe(
    summary="beats-lora at a constant learning rate of 1e-4: the safe choice",
    config=system(replace(LORA, optimizer=FULL.optimizer), ADAPTED[0]),
    source=f"{SOURCE}, as beats-lora",
    published="",
    chosen="a constant rate of 1e-4, the report's first; else as beats-lora",
    parameters="90M / 3.73M",
)
RECIPES = dict(TABLE) | {"aithu2024/beats-lora-flat": FLAT}
