"""`python -m model` is `smollm2 model`."""

import sys

from model.cli import main

sys.exit(main())
