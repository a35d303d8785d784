"""``python -m experiments [<study> [options]]``."""

import sys
from functools import partial

from jaxhybrid.runtime.cli import front_door, run_main

if __name__ == "__main__":
    run_main(partial(front_door, "experiments"), sys.argv[1:])
