"""What a recipe is: a configuration and where it comes from."""

from dataclasses import dataclass

from asdjax.config import EnsembleConfig, SystemConfig


@dataclass(frozen=True)
class Recipe:
    """A named system.

    Args:
      summary: one line.
      config: the system itself, or an ensemble of other recipes.
      source: the report, paper or table it follows.
      published: the numbers published for it, with edition and metric; "" where there are none.
      chosen: what we chose where the source is silent, or do otherwise.
      stated: what the source says of it; "" where it is no more than the summary.
      parameters: all and trained weights as the source counts them, e.g. "90M / 3.73M".
    """

    summary: str
    config: SystemConfig | EnsembleConfig
    source: str
    published: str
    chosen: str
    stated: str = ""
    parameters: str = ""
