"""`iterselect` and `python -m engine`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    # A job that is stopped, or a container that is evicted, ends as from the keyboard: the state is saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from engine.cli import run_cli

    sys.exit(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
