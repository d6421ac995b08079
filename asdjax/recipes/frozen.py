"""Systems without training: a frozen embedding and the nearest normal clip.

asdjax run frozen/logmel --data DIR --out RUN
asdjax run frozen/beats --data DIR --out RUN --weights beats-iter3
asdjax run frozen/eat --data DIR --out RUN --weights eat-base
asdjax run frozen/mn04 --data DIR --out RUN
asdjax run frozen/hubert --data DIR --out RUN --layer 6
asdjax run frozen/wavlm --data DIR --out RUN --layer mean
"""

from asdjax.config import SystemConfig
from asdjax.models.logmel import LogMel
from asdjax.models.pretrained import Pretrained
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.knn import Knn

REPORT = "Without training; as raw_spec, raw_beats, raw_eat of ASDKit (Fujimura et al. 2025)"


def frozen(weights: str) -> Pretrained:
    return Pretrained(weights, pooling="mean", embedding=None)


def speech(kind: str, paper: str) -> Recipe:
    return Recipe(
        summary=f"mean token of {kind}, nearest neighbor",
        config=SystemConfig((frozen(f"{kind}-base"),), Knn(k=1)),
        source=f"the base model of {paper}, as frozen/beats takes BEATs",
        chosen="Last layer, mean over all tokens, cosine distance. In speech other layers often "
        "serve better: --layer 6, or --layer mean for the mean of all layers. No SMOTE.",
    )


RECIPES = {
    "frozen/logmel": Recipe(
        summary="log-mel mean and deviation, nearest neighbor",
        config=SystemConfig((LogMel(),), Knn(k=1)),
        source="the usual lower bound; compare raw_spec of ASDKit (Fujimura et al. 2025)",
        chosen="Mean and deviation over time of the Kaldi log-mel (raw_spec: spectrogram, SMOTE).",
        measured=71.0,
    ),
    "frozen/beats": Recipe(
        summary="mean BEATs token, nearest neighbor",
        config=SystemConfig((frozen("beats-iter3"),), Knn(k=1)),
        source="raw_beats of ASDKit (Fujimura et al. 2025)",
        chosen="BEATs iter3, last layer, mean over all tokens, cosine distance. No SMOTE.",
    ),
    "frozen/eat": Recipe(
        summary="mean EAT patch token, nearest neighbor",
        config=SystemConfig((frozen("eat-base"),), Knn(k=1)),
        source="raw_eat of ASDKit (Fujimura et al. 2025)",
        chosen="EAT base (30 epochs), last block, cosine distance. Mean over the patches without "
        "the class token (--encoders.0.pooling cls takes that token). No SMOTE.",
    ),
    "frozen/mn04": Recipe(
        summary="mean EfficientAT token, nearest neighbor",
        config=SystemConfig((frozen("mn04"),), Knn(k=1)),
        source="the model of Schmid et al. 2023 (arXiv 2211.04772), as frozen/beats takes BEATs",
        chosen="Width 0.4, of 1 million parameters: for processors and small devices (--weights "
        "mn10: another width). What its classes are read from, the mean over time and bands of the "
        "last layer; cosine distance. Waves of 16 kHz are given to it at 32 kHz, so its uppermost "
        "fifth of the bands is empty. No SMOTE.",
        measured=70.3,
    ),
    "frozen/hubert": speech("hubert", "Hsu et al. 2021 (arXiv 2106.07447)"),
    "frozen/wav2vec2": speech("wav2vec2", "Baevski et al. 2020 (arXiv 2006.11477)"),
    "frozen/wavlm": speech("wavlm", "Chen et al. 2022 (arXiv 2110.13900)"),
    "frozen/unispeech-sat": speech("unispeech-sat", "Chen et al. 2022 (arXiv 2110.05752)"),
}
