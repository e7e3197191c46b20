"""PASCAL VOC: annotations, exact and fast mAP, error bars. Needs neither torch nor Ultralytics."""

from yolo_os.voc.evaluation import VOCResult, evaluate_voc

__all__ = ["VOCResult", "evaluate_voc"]
