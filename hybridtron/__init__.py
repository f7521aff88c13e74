"""hybridtron: find, train, scale and study hybrid language models."""

__version__ = "0.1.0"
