"""Detection metrics: annotations, data sets, exact and fast mAP, error bars. Needs neither torch nor Ultralytics."""

from yolo_os.conversion.dataset import Dataset, dataset_for, make_dataset
from yolo_os.evaluation.annotations import Annotations, Problem
from yolo_os.evaluation.bootstrap import Bootstrap, Difference, Interval, bootstrap
from yolo_os.evaluation.coco import CocoResult, coco_bootstrap, coco_numbers, coco_result, error_types
from yolo_os.evaluation.detection_files import read_detections
from yolo_os.evaluation.detection_files.coco_json import write as write_coco_json
from yolo_os.evaluation.detection_files.comp4 import write as write_comp4
from yolo_os.evaluation.detections import Detections, evaluate_detections
from yolo_os.evaluation.in_memory import as_annotations, as_detections
from yolo_os.evaluation.readers import read_annotations
from yolo_os.evaluation.readers.coco_json import read_coco_json
from yolo_os.evaluation.readers.data_yaml import Source, devkit_of, read_data_yaml
from yolo_os.evaluation.readers.devkit import VOC_CLASSES, read_devkit
from yolo_os.evaluation.readers.devkit import recognises as is_devkit
from yolo_os.evaluation.readers.xml_images import read_xml_images
from yolo_os.evaluation.voc import PRCurve, VOCResult, evaluate_voc
from yolo_os.plots.evaluation import plot_curves

VOCResult.draw = plot_curves

__all__ = [
    "VOC_CLASSES",
    "Annotations",
    "Bootstrap",
    "CocoResult",
    "Dataset",
    "Detections",
    "Difference",
    "Interval",
    "PRCurve",
    "Problem",
    "Source",
    "VOCResult",
    "as_annotations",
    "as_detections",
    "bootstrap",
    "coco_bootstrap",
    "coco_numbers",
    "coco_result",
    "dataset_for",
    "devkit_of",
    "error_types",
    "evaluate_detections",
    "evaluate_voc",
    "is_devkit",
    "make_dataset",
    "read_annotations",
    "read_coco_json",
    "read_data_yaml",
    "read_detections",
    "read_devkit",
    "read_xml_images",
    "write_coco_json",
    "write_comp4",
]
