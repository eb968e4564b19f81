"""`python -m pipeline VERB …`, the same as `smollm2 pipeline VERB …`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        from pipeline.worker_start import warm_up

        warm_up()  # what follows imports half a second of libraries
    from pipeline.cli import main

    sys.exit(main())
