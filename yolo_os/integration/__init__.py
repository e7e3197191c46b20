"""Where yolo_os meets Ultralytics: its checkpoints, data sets, validator. Nothing else of the package imports it."""
