"""`python -m launch VERB …`."""

import sys

from launch.cli import main

sys.exit(main())
