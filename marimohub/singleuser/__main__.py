"""`python -m marimohub.singleuser`"""

from __future__ import annotations

import sys

# multiprocessing's "spawn", when a notebook uses it, may import this module again in the child.
if __name__ == "__main__":
    from marimohub.singleuser.settings import move_secrets

    move_secrets()  # before everything is loaded: this starts anew

    from marimohub.singleuser import warm

    warm.load()

    from marimohub.singleuser.launcher import main

    sys.exit(main())
