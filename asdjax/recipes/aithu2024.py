"""AITHU at DCASE 2024 Task 2 (Lv et al. 2024), the winner: BEATs that classifies attributes.

asdjax run aithu2024/beats-full --data DIR --out RUN --weights beats-iter3
asdjax run aithu2024/beats-lora --data DIR --out RUN --weights beats-iter3
python experiments/aithu2024.py --data DIR --out RUNS --weights beats-iter3

Published are the harmonic means of AUC source, AUC target and pAUC of each machine of the
development set, in per cent (table 1), and the harmonic mean over all.
"""

from dataclasses import replace

from asdjax.config import SystemConfig
from asdjax.data.loader import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.margin import Margin
from asdjax.models.lora import Lora
from asdjax.models.system import FineTuned
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.balance import Smote
from asdjax.scoring.score import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

MACHINES = ("bearing", "fan", "gearbox", "slider", "ToyCar", "ToyTrain", "valve")
PUBLISHED = {  # table 1: per machine as in MACHINES, then over all
    "aithu2024/beats-full": (60.17, 62.96, 68.92, 75.61, 55.59, 62.18, 65.47, 63.88),
    "aithu2024/beats-lora": (68.75, 61.85, 67.22, 70.87, 55.43, 60.24, 68.51, 64.26),
}

AUDIO = Audio(seconds=10.0, fit="pad")
HEADS = (HeadConfig(Margin("arcface", margin=0.2, scale=30.0), labels="attributes"),)
AUGMENT = Augment(mask=80, mask_probability=0.5)
SCORER = Knn(k=1, smote=Smote(ratio=0.2, neighbors=2))

FULL = SystemConfig(
    FineTuned("beats-iter3", pooling="statistics"),
    SCORER,
    AUDIO,
    Train(
        steps=10_000,
        batch=32,
        accumulate=8,
        heads=HEADS,
        optimizer=Optimizer("adamw", Schedule("constant", peak=1e-4, warmup=120)),
        augment=AUGMENT,
    ),
)
LORA = SystemConfig(
    FineTuned("beats-iter3", Lora(rank=64, alpha=64.0, targets=("q", "v", "out"))),
    SCORER,
    AUDIO,
    Train(
        steps=50_000,
        batch=32,
        accumulate=8,
        heads=HEADS,
        optimizer=Optimizer(
            "adamw", Schedule("cosine", peak=5e-3, warmup=10, start=1e-4, end=1e-5)
        ),
        augment=AUGMENT,
    ),
)
FLAT = Optimizer("adamw", Schedule("constant", peak=1e-4, warmup=120))
CHOSEN = (
    "steps count passes, not updates; ArcFace margin 0.2 and scale 30 (the group's 2025 report); "
    "embedding of 128, the second dense layer being the class centers; SpecAugment masks of up to "
    "80 frames and 80 bands, each with probability 0.5; the checkpoint's dropout and layer drop; "
    "weight decay 0.01; SMOTE to 0.2 of the source clips with 2 neighbors; padding is masked"
)

RECIPES = {
    "aithu2024/beats-full": Recipe(
        summary="BEATs, all weights trained by classifying attributes; SMOTE, nearest neighbor",
        config=FULL,
        source="AITHU, DCASE 2024 Task 2, section 2.1 and table 1, row BEATs-full",
        stated="10 s, SpecAugment 80, attentive statistics pooling, two dense layers, ArcFace, "
        "AdamW, largest rate 1e-4, warm-up 120, batch 32, accumulation 8, 10,000 steps, cosine "
        "1-NN, SMOTE on target embeddings",
        published="dev 2024: 63.88",
        chosen=f"constant rate after the warm-up; {CHOSEN}",
        parameters="90M / 90M",
    ),
    "aithu2024/beats-lora": Recipe(
        summary="BEATs with LoRA, trained by classifying attributes; SMOTE, nearest neighbor",
        config=LORA,
        source="AITHU, DCASE 2024 Task 2, section 2.1 and table 1, row BEATs-LoRA",
        stated="as beats-full but LoRA of rank 64 on q, v and out, 50,000 steps, AdamW from 1e-4, "
        "cosine with largest rate 5e-3 and smallest 1e-5, 10 warm-up restart steps",
        published="dev 2024: 64.26",
        chosen="one cosine cycle, whose warm-up of 10 passes (the first update) starts from 1e-4; "
        "LoRA alpha 64, no dropout of adapters; batch and accumulation of beats-full; " + CHOSEN,
        parameters="90M / 3.73M",
    ),
    "aithu2024/beats-lora-flat": Recipe(
        summary="the same at a constant learning rate of 1e-4: the safe choice",
        config=replace(LORA, train=replace(LORA.train, optimizer=FLAT)),
        source="AITHU, DCASE 2024 Task 2, as beats-lora",
        published="",
        chosen="a constant rate of 1e-4, the report's first; else as beats-lora",
        parameters="90M / 3.73M",
    ),
}
