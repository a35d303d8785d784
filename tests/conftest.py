"""Rules that every test runs under: no silent rank promotion, no warnings, float64 by marker."""

import contextlib
import os
import pathlib

from tests import compilation

# Most of a test's time is compilation, and most of that is machine code made fast that runs once. Processes that tests
# start inherit this; JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if compilation.HAS_FUSION_EMITTERS and os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{compilation.FUSION_EMITTERS}=false".strip()

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# The second run on a machine is several times faster.
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# Compilation makes the first example arbitrarily slow; a deadline would only measure that.
hypothesis.settings.register_profile("jaxhybrid", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("jaxhybrid")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "allow_rank_promotion: the test runs third-party code that relies on rank promotion"
    )
    config.addinivalue_line("filterwarnings", "error")
    # Raised while brax is imported, about a dependency of brax that none of its environments needs.
    config.addinivalue_line("filterwarnings", "ignore:JAXopt is no longer maintained:DeprecationWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out ``slow`` tests unless ``-m`` or a test's own name asks for them."""
    if config.option.markexpr or any("::" in arg for arg in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(autouse=True)
def _numerics(request: pytest.FixtureRequest):
    """Applies the markers ``float64`` and ``allow_rank_promotion`` to the test, and only to it."""
    with contextlib.ExitStack() as stack:
        if request.node.get_closest_marker("float64"):
            stack.enter_context(jax.enable_x64(True))
        if request.node.get_closest_marker("allow_rank_promotion"):
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield
