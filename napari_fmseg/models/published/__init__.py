"""Open weights that others publish, fetched on request: a registry with hashes, the download, and the conversion."""

from napari_fmseg.models.published.fetch import fetch_published
from napari_fmseg.models.published.registry import PublishedModel, find_published, list_published, not_downloaded

__all__ = ["PublishedModel", "fetch_published", "find_published", "list_published", "not_downloaded"]
