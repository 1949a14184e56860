"""Fixtures that several test files share."""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The kernels for AMX are those for AVX-512, but for bfloat16: what they do to other dtypes is tested once."""

    def is_once_more(item: Any) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return parameters.get("isa") == "amx" and parameters.get("dtype", torch.bfloat16) != torch.bfloat16

    config.hook.pytest_deselected(items=[item for item in items if is_once_more(item)])
    items[:] = [item for item in items if not is_once_more(item)]


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
