"""Data sets for Ultralytics, made of annotations that it does not read."""
