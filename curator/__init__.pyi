from curator.loading.loader import ManifestLoader as ManifestLoader
from curator.loading.timm_reader import ManifestReader as ManifestReader
from curator.storage.store import Store as Store

__version__: str
__all__ = ["ManifestLoader", "ManifestReader", "Store"]
