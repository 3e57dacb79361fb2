"""Fast 3-D medical image segmentation: a library, a command line and a napari plugin."""
