"""From a forward pass to collectors."""

import pytest
import torch
from torch import nn

from yolo_os.capture import as_columns, capture


def test_capture_notes_and_removes_its_hooks_even_after_an_error():
    conv = nn.Conv2d(3, 4, 1)
    image = torch.randn(2, 3, 5, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="broken"), capture([conv, conv]) as seen:
        output = conv(image)
        assert torch.equal(seen[conv][0], image)
        assert torch.equal(seen[conv][1], output)
        assert not seen[conv][0].requires_grad
        raise RuntimeError("broken")
    assert not conv._forward_hooks


def test_columns_of_maps_and_queries():
    image = torch.randn(2, 3, 4, 5)
    assert torch.equal(as_columns(image)[1, :, 7], image[1, :, 1, 2])
    queries = torch.randn(2, 9, 3)
    assert torch.equal(as_columns(queries)[1, :, 7], queries[1, 7])
