"""Scores beyond the five reports: other poolings and normalized distances, without training.

asdjax run beyond/logmel --data DIR --out RUN
asdjax run beyond/mn04 --data DIR --out RUN
asdjax run beyond/beats-rdp --data DIR --out RUN --weights beats-iter3
asdjax search RUN
"""

from dataclasses import replace

from asdjax.config import SystemConfig
from asdjax.models.logmel import LogMel
from asdjax.models.pooling import Pool
from asdjax.recipes.frozen import frozen
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.density import Density
from asdjax.scoring.knn import Knn

REPORT = "Beyond the reports: without training"

POOLING = "Wilkinghoff, Yadav and Tan 2026 (arXiv 2603.04605)"
GENREP = "Saengthong and Shinozaki 2025 (GenRep25, DCASE 2025 Task 2, second place)"
LOG_VARMIN = Knn(normalize=Density(1, strength="variance"))
BY_DOMAIN = Knn(references="domain", normalize=Density(16, target_neighbors=9, scale="sum"))
HERE = (
    "Chosen by the labels of test clips, of the quick start's machines and of two real ones: the "
    "score measured here is too good."
)


def pooled(weights: str, pool: Pool, scorer: Knn) -> SystemConfig:
    return SystemConfig((replace(frozen(weights), pools=(pool,)),), scorer)


RECIPES = {
    "beyond/logmel": Recipe(
        summary="log-mel pooled by bands, LDN",
        config=SystemConfig(
            (LogMel(8, (Pool(deviation=8, power=3, bands=True),)),), Knn(normalize=Density())
        ),
        source=f"the pooling of {POOLING}, of log-mel frames, and its score without VarMin",
        chosen="Needs no weights. Eight parts of 16 mel bands, each pooled over time by itself. "
        f"{HERE}",
        measured=74.8,
    ),
    "beyond/mn04": Recipe(
        summary="EfficientAT by bands, LDN",
        config=pooled("mn04", Pool(bands=True), Knn(parts=4, normalize=Density())),
        source="frozen/mn04 with neighbors by bands (arXiv 2603.13749), LDN (arXiv 2509.10951)",
        chosen="The four places in frequency of its last layer, each with neighbors of its own. "
        f"{HERE}",
        measured=80.3,
    ),
    "beyond/beats-rdp": Recipe(
        summary="BEATs, RDP with power mean, log-VarMin",
        config=pooled("beats-iter3", Pool(deviation=16, power=3), LOG_VARMIN),
        source=f"{POOLING}, table III, row RDP + GeM",
        stated="Frozen BEATs iter3. RDP with exponent 16 and power 3. Nearest reference, local "
        "density normalization with K = 1, variance minimization of logarithms.",
        chosen="Last layer, clips whole. Cosine distance, where the paper says Euclidean distance "
        "(of unit vectors its half square is the cosine distance).",
    ),
    "beyond/eat-rdp": Recipe(
        summary="EAT large, RDP, cleaned tokens, log-VarMin",
        config=pooled("eat-large", Pool(deviation=1, clean=True), LOG_VARMIN),
        source=f"{POOLING}, table III, row RDP",
        stated="EAT large of 20 epochs. Values of tokens below 0.1 are 0, those above 0.5 are "
        "squashed by tanh. RDP with exponent 1.",
        chosen="Last layer, patches without the class token.",
        like="beyond/beats-rdp",
    ),
    "beyond/beats-domain": Recipe(
        summary="BEATs, LDN by domain",
        config=pooled("beats-iter3", Pool(), BY_DOMAIN),
        source=f"{GENREP}, domain-wise LDN",
        stated="Banks of source and target clips. The local scale of a reference is the sum of the "
        "distances to its 16 (source) or 9 (target) nearest in its bank; the score is the smaller "
        "one of both banks. The report's numbers are of an ensemble.",
        chosen="One model, last layer, mean of tokens (--layer 10: the report takes layers of its "
        "own for each encoder). No supports for the target bank (MemMixup).",
    ),
    "beyond/eat-domain": Recipe(
        summary="EAT, LDN by domain",
        config=pooled("eat-base", Pool(clean=True), BY_DOMAIN),
        source=f"{GENREP}, domain-wise LDN",
        chosen="EAT base of 30 epochs, its tokens cleaned as in beyond/eat-rdp.",
        like="beyond/beats-domain",
    ),
}
