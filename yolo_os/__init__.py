"""Optimum shifting for YOLO detectors (arXiv 2405.14111)."""

__version__ = "0.1.0"
