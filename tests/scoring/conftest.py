from collections.abc import Iterator

import pytest
from trainings import quick_compiles


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Iterator[None]:
    """Compile quickly: for tests of meaning. Kernels are compared with others as users run them."""
    with quick_compiles(tmp_path_factory.mktemp("compiled")):
        yield
