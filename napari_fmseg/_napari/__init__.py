"""What napari shows of fmseg: the only folder that may import napari and Qt."""
