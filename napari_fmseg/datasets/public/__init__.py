"""Public data sets as their owners pack them: found in their own folder layout, arranged as nnU-Net's raw layout."""

from napari_fmseg.datasets.public.layout import PublicDataset, find_public, list_public
from napari_fmseg.datasets.public.prepare import Prepared, prepare_public

__all__ = ["Prepared", "PublicDataset", "find_public", "list_public", "prepare_public"]
