"""Judges detections of any data: annotations, average precision, error bars. Knows neither torch nor Ultralytics."""
