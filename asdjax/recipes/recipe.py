"""What a recipe is: a configuration and where it comes from."""

from dataclasses import dataclass

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.types import Reported


@dataclass(frozen=True)
class Recipe:
    """A named system. What is published for it is in `published.csv`.

    Args:
      summary: a few words for the list of recipes.
      config: the system itself, or an ensemble of other recipes.
      source: the report, paper or table it follows.
      stated: what the source says, in sentences; "" if no more than the summary.
      chosen: what we chose where the source says nothing, and what we do otherwise.
      parameters: all and trained weights as the source counts them, e.g. "90M / 3.73M".
      classes: that the source trained on; 0: it does not say.
      machines: types in the development and additional training sets of its year, on which it
        trained, as far as it says; 0: none.
      measured: our official score in per cent on the machines of `asdjax quickstart`.
      like: the recipe whose `stated` and `chosen` hold here too, except for what is said here.
    """

    summary: str
    config: SystemConfig | EnsembleConfig
    source: str
    stated: str = ""
    chosen: str = ""
    parameters: str = ""
    classes: int = 0
    machines: int = 0
    measured: float | None = None
    like: str = ""

    @property
    def reported(self) -> Reported:
        return Reported(self.parameters, self.classes, self.machines)
