"""The version, for metadata and for files."""

__version__ = "0.1.0.dev0"
