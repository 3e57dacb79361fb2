"""``python -m napari_fmseg.workers.engine_main``: the engine's process, started by `RemoteEngine`, not by hand."""

import sys

from napari_fmseg.workers.engine_child import main

if __name__ == "__main__":
    sys.exit(main(*(float(minutes) for minutes in sys.argv[1:2])))
