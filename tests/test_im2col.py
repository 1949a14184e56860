"""The column matrix of an image and its adjoint, against torch's unfold and fold."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grid import BACKENDS, LAYOUTS, compiled_only, filled, gradients, leaf, rounds_every_sum
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from torchconv import ops, reference
from torchconv.functional import col2im, im2col

# torch's own, at the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")

# The image's shape, and the window.
PROBLEMS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 3, 8, 9), {"kernel_size": 3}),
    "padded": ((2, 3, 8, 9), {"kernel_size": 3, "padding": 1}),
    "1x1": ((2, 3, 8, 9), {"kernel_size": 1}),
    "strided": ((2, 3, 9, 8), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "stride_beyond_the_kernel": ((2, 3, 11, 12), {"kernel_size": 2, "stride": (3, 5)}),
    "dilated": ((2, 3, 9, 10), {"kernel_size": (2, 3), "dilation": (3, 2), "padding": (1, 2)}),
    "everything_uneven": (
        (2, 3, 13, 14),
        {"kernel_size": (4, 3), "dilation": (2, 3), "padding": (3, 1), "stride": (3, 2)},
    ),
    "kernel_as_large_as_the_image": ((2, 3, 5, 4), {"kernel_size": (5, 4)}),
    "padding_beyond_the_kernel": ((2, 3, 4, 4), {"kernel_size": 2, "padding": 5}),
    "one_pixel": ((1, 1, 1, 1), {"kernel_size": 1}),
    "batch_of_none": ((0, 3, 8, 9), {"kernel_size": 3}),
    "no_batch": ((3, 8, 9), {"kernel_size": 3, "padding": 1}),
    "many_planes": ((3, 40, 21, 33), {"kernel_size": 3, "padding": 1}),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_im2col_equals_unfold(name: str, dtype: torch.dtype) -> None:
    shape, window = PROBLEMS[name]
    image = filled(shape, dtype)
    columns = im2col(image, **window)
    assert torch.equal(columns, F.unfold(image, **window))
    assert columns.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_col2im_equals_fold(name: str, dtype: torch.dtype, algorithm: str) -> None:
    shape, window = PROBLEMS[name]
    columns = filled(F.unfold(torch.zeros(shape), **window).shape, dtype)
    expected = F.fold(columns.double(), shape[-2:], **window)
    image = col2im(columns, shape[-2:], **window)
    assert image.dtype == dtype
    if rounds_every_sum(dtype, algorithm):
        # Up to 12 values of size 1 are added, and their sum is rounded each time.
        assert_close(image, expected.to(dtype), rtol=0, atol=12 * 2 * torch.finfo(dtype).eps)
    else:
        assert_close(image, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["strided", "everything_uneven", "many_planes"])
def test_im2col_for_any_strides(name: str, layout: str, dtype: torch.dtype) -> None:
    shape, window = PROBLEMS[name]
    image = LAYOUTS[layout](filled(shape, dtype))
    assert torch.equal(im2col(image, **window), F.unfold(image.contiguous(), **window))


COLUMN_LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "batch_swapped": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every_second": lambda t: t.repeat_interleave(2, 2)[..., ::2],
    "expanded": lambda t: t[:1, :, :1].expand(t.shape),
    "one_value": lambda t: t[:1, :1, :1].expand(t.shape),
    "offset": lambda t: torch.cat([t[:1], t])[1:],
}


@pytest.mark.parametrize("layout", COLUMN_LAYOUTS)
@pytest.mark.parametrize("name", ["strided", "everything_uneven", "many_planes"])
def test_col2im_for_any_strides(name: str, layout: str) -> None:
    shape, window = PROBLEMS[name]
    columns = COLUMN_LAYOUTS[layout](filled(F.unfold(torch.zeros(shape), **window).shape))
    assert_close(col2im(columns, shape[-2:], **window), F.fold(columns.contiguous(), shape[-2:], **window))


@pytest.mark.parametrize("name", PROBLEMS)
def test_adjoint(name: str) -> None:
    shape, window = PROBLEMS[name]
    image = filled(shape)
    columns = im2col(image, **window)
    other = filled(columns.shape, seed=1)
    assert_close((columns * other).sum(), (image * col2im(other, shape[-2:], **window)).sum())


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients(name: str) -> None:
    shape, window = PROBLEMS[name]
    image, theirs = leaf(filled(shape)), leaf(filled(shape))
    columns, expected = im2col(image, **window), F.unfold(theirs, **window)
    grad = filled(columns.shape, seed=1)
    assert_close(gradients(columns, [image], grad), gradients(expected, [theirs], grad))
    columns, theirs = leaf(columns), leaf(columns)
    back, expected = col2im(columns, shape[-2:], **window), F.fold(theirs, shape[-2:], **window)
    grad = filled(back.shape, seed=2).expand(back.shape)
    assert_close(gradients(back, [columns], grad), gradients(expected, [theirs], grad))


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128], ids=str)
def test_gradcheck(kind: torch.dtype) -> None:
    window: dict[str, Any] = {"kernel_size": (3, 2), "padding": (1, 2), "dilation": (1, 2), "stride": (2, 1)}

    def forward(image: Tensor) -> Tensor:
        return im2col(image, **window)

    def back(columns: Tensor) -> Tensor:
        return col2im(columns, (4, 3), **window)

    image = leaf(filled((1, 2, 4, 3)).to(kind))
    columns = leaf(im2col(image, **window))
    for function, argument in ((forward, image), (back, columns)):
        assert gradcheck(function, [argument], check_forward_ad=True, fast_mode=kind.is_complex)
        assert gradgradcheck(function, [argument], check_fwd_over_rev=True, fast_mode=kind.is_complex)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_other_dtypes_are_moved_as_they_are(dtype: torch.dtype) -> None:
    image = filled((2, 3, 5, 6)).abs().mul(2).to(dtype)
    expected = F.unfold(image.double(), 3, padding=1).to(dtype)
    assert torch.equal(im2col(image, 3, padding=1), expected)


GEOMETRIES: dict[str, tuple[tuple[int, ...], ...]] = {
    "1d": ((2, 3, 17), (3,), (2,), (1,), (3,)),
    "3d": ((2, 3, 5, 6, 7), (3, 2, 3), (2, 1, 2), (1, 0, 2), (1, 2, 1)),
}


@compiled_only
@pytest.mark.parametrize("name", GEOMETRIES)
def test_ops_in_one_and_three_dimensions(name: str) -> None:
    shape, *window = GEOMETRIES[name]
    image = filled(shape)
    columns = torch.ops.torchconv.im2col(image, *window)
    assert torch.equal(columns, reference.im2col(image, *window))
    back = torch.ops.torchconv.col2im(columns, shape[2:], *window)
    assert_close(back, reference.col2im(columns, shape[2:], *window))
