"""`python -m checkpoint VERB …`, the same as `smollm2 checkpoint VERB …`."""

import sys

from checkpoint.cli import main

if __name__ == "__main__":
    sys.exit(main())
