"""Named systems: `RECIPES["frozen/beats"]`. One module per report; a new system is one value."""

from asdjax.recipes import aithu2024, frozen, korea2025
from asdjax.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    **frozen.RECIPES,
    **aithu2024.RECIPES,
    **korea2025.RECIPES,
}
