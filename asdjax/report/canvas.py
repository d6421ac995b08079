"""An empty figure that becomes a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from asdjax.files import atomic


@contextlib.contextmanager
def canvas(path: Path, width: float, height: float) -> Iterator:
    """Yield an empty matplotlib figure of `width` x `height` inches; save it to `path` as png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
