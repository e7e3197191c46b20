"""An exported model of a shifted checkpoint gives what the shifted checkpoint gives."""

import numpy as np
import pytest
import torch
from ultralytics import YOLO

from yolo_os.cli import main

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def outputs_of_onnx(file, images):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def outputs_of_checkpoint(file, images):
    with torch.no_grad():
        return YOLO(file).model.eval()(images)[0].numpy()


def test_onnx_of_a_shifted_checkpoint_gives_the_shifted_outputs(detector, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shifted = tmp_path / "shifted.pt"
    words = f"shift model={detector} data={digits} out={shifted} method=sos samples=8 images=4 held_out=4 imgsz=64"
    assert main([*words.split(), "plots=False"]) == 0
    exported = YOLO(shifted).export(format="onnx", imgsz=64, simplify=False, device="cpu", verbose=False)
    images = torch.from_numpy(np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32))
    found, expected = outputs_of_onnx(exported, images), outputs_of_checkpoint(shifted, images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)
    assert np.abs(found - outputs_of_checkpoint(detector, images)).max() > 1  # pixels: far from what it was before
