"""`python -m tnkit` and `torchrun -m tnkit` run the command line."""

import sys

from tnkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
