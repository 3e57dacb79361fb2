"""``python -m napari_fmseg`` is ``fmseg``."""

import os
import sys

from napari_fmseg.cli.main import main

if __name__ == "__main__":
    code = main()
    if code == 130:  # stopped: all is written, and taking torch down may last seconds that nobody wants to wait
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
