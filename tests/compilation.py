"""How the tests compile: in haste, but for programs that are compared with another program to the bit."""

import importlib.metadata
from typing import Any

FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"
HAS_FUSION_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")
"""Whether this stage of the CPU compiler, slow to compile, can be left out; later versions always have it."""

AS_SHIPPED: dict[str, Any] = {FUSION_EMITTERS: True} if HAS_FUSION_EMITTERS else {}
"""``compiler_options`` of `jax.jit` under which two programs of the same arithmetic round alike."""
