"""Named systems: `RECIPES["frozen/beats"]`. One module per report; a new system is one value."""

from asdjax.recipes import (
    aithu2024,
    baseline,
    frozen,
    ioa2024,
    korea2025,
    midea2024,
    small,
    xju2025,
)
from asdjax.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    **frozen.RECIPES,
    **small.RECIPES,
    **baseline.RECIPES,
    **aithu2024.RECIPES,
    **korea2025.RECIPES,
    **midea2024.RECIPES,
    **ioa2024.RECIPES,
    **xju2025.RECIPES,
}
