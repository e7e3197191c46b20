from yolo_os.evaluation.names import match_names


def test_names_of_coco_and_voc_meet():
    coco = ("airplane", "motorcycle", "couch", "tv", "dining table", "potted plant", "person", "zebra")
    voc = ("aeroplane", "motorbike", "sofa", "tvmonitor", "diningtable", "pottedplant", "person")
    assert match_names(dict(enumerate(coco)), voc) == {index: index for index in range(7)}
    assert match_names(dict(enumerate(voc)), coco) == {index: index for index in range(7)}
    assert match_names({0: "cat", 1: "CAT"}, ("CAT", "cat")) == {0: 1, 1: 0}  # an exact name goes first
