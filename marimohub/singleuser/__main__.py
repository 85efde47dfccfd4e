"""`python -m marimohub.singleuser`"""

from __future__ import annotations

import sys

# marimo starts kernels with multiprocessing's "spawn", which imports this module again in the child.
if __name__ == "__main__":
    from marimohub.singleuser.launcher import main

    sys.exit(main())
