"""Korea University at DCASE 2025 Task 2: BEATs with LoRA that classifies machine types.

asdjax run korea2025/system1 --data DIR --out RUN --weights beats-iter3
python experiments/korea2025.py --data DIR --out RUNS --weights beats-iter3
"""

from typing import Literal

from asdjax.config import SystemConfig
from asdjax.data.batches import Audio
from asdjax.losses.margin import Margin
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.knn import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

REPORT = "Korea University, DCASE 2025 Task 2"

TRAIN = Train(
    steps=10_000,
    batch=32,
    heads=(HeadConfig(Margin("arcface", margin=0.2, scale=30.0), labels="machine"),),
    optimizer=Optimizer("adam", Schedule("constant", peak=1e-4, warmup=120)),
)


def system(rank: int, standardize: Literal["machine", "all"]) -> SystemConfig:
    adapter = Lora(rank=rank, alpha=float(rank), targets=("q", "k", "v"))
    return SystemConfig(
        (Pretrained("beats-iter3", adapter, "mean"),),
        Knn(k=1, standardize=standardize),
        Audio(seconds=10.0, fit="pad"),
        TRAIN,
    )


RECIPES = {
    "korea2025/system1": Recipe(
        summary="BEATs with LoRA; classifies machines",
        config=system(64, "machine"),
        source=f"{REPORT}, sections 2.1 and 2.2 and table 1, System1",
        stated="BEATs iter3. Clips of 10 s, padded with zeros or cut; log-mel of 128 bins, 25 ms "
        "every 10 ms. LoRA on q, k and v. Mean pooling, then two dense layers. One class per "
        "machine type; AAM-softmax with margin 0.2 and scale 30. Adam. Cosine distance to the "
        "nearest training clip of the machine, after standardization with mean and deviation of "
        "the training feature vectors.",
        chosen="The report does not say how its four systems differ. We vary what it leaves open: "
        "the rank of LoRA, and whose training vectors standardize, the machine's or all machines'. "
        "Here rank 64 and the machine's. Alpha is the rank, no dropout; learning rate 1e-4, "
        "constant after a warm-up of 120; 10,000 steps of 32 clips. The embedding has 128 "
        "dimensions; the second dense layer is the class centers. Dropout and layer drop are the "
        "checkpoint's. Padding is masked. No supplemental clips.",
        machines=15,
    ),
    "korea2025/system2": Recipe(
        summary="system1, standardized over all machines",
        config=system(64, "all"),
        source=f"{REPORT}, sections 2.1 and 2.2 and table 1, System2",
        chosen="Rank 64; mean and deviation of the training vectors of all machines. The training "
        "is that of system1: --reuse its run.",
        machines=15,
        like="korea2025/system1",
    ),
    "korea2025/system3": Recipe(
        summary="system1 with LoRA of rank 16",
        config=system(16, "machine"),
        source=f"{REPORT}, sections 2.1 and 2.2 and table 1, System3",
        chosen="Rank 16; the machine's own training vectors.",
        machines=15,
        like="korea2025/system1",
    ),
    "korea2025/system4": Recipe(
        summary="system3, standardized over all machines",
        config=system(16, "all"),
        source=f"{REPORT}, sections 2.1 and 2.2 and table 1, System4",
        chosen="Rank 16; mean and deviation of the training vectors of all machines. The training "
        "is that of system3: --reuse its run.",
        machines=15,
        like="korea2025/system1",
    ),
}
