"""Fixtures that several test files share."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from torchconv import ops


@pytest.fixture(params=ops.available_isas() or ["none"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn."""
    before = ops.isa()
    ops.set_isa(request.param)
    assert ops.isa() == request.param
    yield request.param
    ops.set_isa(str(before))


@pytest.fixture(scope="session")
def torchvision_models() -> Iterator[ModuleType]:
    """torchvision.models, also beside a build of torch that torchvision's compiled part doesn't fit.

    Without that part torchvision registers fake kernels for two ops that nobody defined, and fails to import.
    """
    try:
        yield importlib.import_module("torchvision.models")
    except RuntimeError:
        # The definitions live as long as this object.
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield importlib.import_module("torchvision.models")
