"""Named systems: `RECIPES["frozen/beats"]`. One module per report; a new system is one value."""

from asdjax.recipes import (
    aithu2024,
    baseline,
    beyond,
    beyond2026,
    frozen,
    ioa2024,
    korea2025,
    midea2024,
    small,
    xju2025,
)
from asdjax.recipes.recipe import Recipe

OURS = frozen, small, beyond, beyond2026
MODULES = (*OURS, baseline, aithu2024, korea2025, midea2024, ioa2024, xju2025)
RECIPES: dict[str, Recipe] = {n: r for module in MODULES for n, r in module.RECIPES.items()}
