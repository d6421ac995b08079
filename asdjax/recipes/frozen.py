"""Systems without training: a frozen embedding and the nearest normal clip.

asdjax run frozen/logmel --data DIR --out RUN
asdjax run frozen/beats --data DIR --out RUN --weights beats-iter3
asdjax run frozen/eat --data DIR --out RUN --weights eat-base
"""

from asdjax.config import SystemConfig
from asdjax.models.embedder import LogMel, Pretrained
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.score import Knn

RECIPES = {
    "frozen/logmel": Recipe(
        summary="time mean and deviation of the log-mel, nearest normal clip; no weights needed",
        config=SystemConfig(LogMel(), Knn(k=1)),
        source="the usual lower bound; compare `raw_spec` of ASDKit (Fujimura et al. 2025)",
        published="raw_spec, official score dev/eval: 2023 54.75/59.99, 2024 54.16/54.04",
        chosen="Kaldi log-mel, mean and deviation over time (raw_spec: spectrogram, SMOTE)",
    ),
    "frozen/beats": Recipe(
        summary="mean BEATs token, nearest normal clip by cosine distance",
        config=SystemConfig(Pretrained("beats-iter3"), Knn(k=1)),
        source="`raw_beats` of ASDKit (Fujimura et al. 2025)",
        published="raw_beats, official score dev/eval: 2023 60.11/62.40, 2024 56.11/57.62",
        chosen="BEATs iter3, last layer, mean over all tokens, no SMOTE",
    ),
    "frozen/eat": Recipe(
        summary="mean EAT patch token, nearest normal clip by cosine distance",
        config=SystemConfig(Pretrained("eat-base"), Knn(k=1)),
        source="`raw_eat` of ASDKit (Fujimura et al. 2025)",
        published="raw_eat, official score dev/eval: 2023 56.74/59.81, 2024 54.87/56.30",
        chosen="EAT base (30 epochs), last block, mean over the patches without the class token "
        "(--embedder.pooling cls takes that), no SMOTE",
    ),
}
