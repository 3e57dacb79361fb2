"""The plugin: everything that knows napari and Qt.

Native parsers run in a process of their own from here on: a damaged file must not take the window along.
"""

from napari_fmseg.io.itk import native_reader

native_reader.isolate()
