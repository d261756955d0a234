"""curator: the data of Noisy Student self-training - stored, selected, balanced, audited and loaded."""

__version__ = "0.1.0"
