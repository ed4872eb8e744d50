"""``python -m offgrid_llama.cli`` is ``offgrid-llama``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
