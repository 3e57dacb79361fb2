"""``python -m napari_fmseg`` is ``fmseg``."""

import sys

from napari_fmseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
