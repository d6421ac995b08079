"""Named systems: `RECIPES["frozen/beats"]`. One module per report; a new system is one value."""

from asdjax.recipes import frozen
from asdjax.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {**frozen.RECIPES}
