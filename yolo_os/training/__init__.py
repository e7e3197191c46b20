"""Shifts during a training: when, in which step, and the log of them. Knows no Ultralytics."""
