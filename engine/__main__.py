"""`iterselect` and `python -m engine`."""

from __future__ import annotations

import sys


def main() -> None:
    from engine.cli import run_cli

    sys.exit(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
