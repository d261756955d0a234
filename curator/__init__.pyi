from curator.loader import ManifestLoader as ManifestLoader
from curator.store import Store as Store
from curator.timm_reader import ManifestReader as ManifestReader

__version__: str
__all__ = ["ManifestLoader", "ManifestReader", "Store"]
