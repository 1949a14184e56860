"""Receptive fields: held to what the gradient of one output reaches."""

from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchconv
from torchconv import models
from torchconv.inspect import ReceptiveField, draw_receptive_field, receptive_field, receptive_fields

with torch.device("meta"):
    VGG11 = models.vgg11()
both_libraries = pytest.mark.parametrize("library", [torchconv, nn], ids=["torchconv", "torch.nn"])


def reached(model: nn.Module, size: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The position in the middle of the output, and the first and last pixel that its gradient reaches."""
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    # Positive, and large at the side that a window of max pooling begins or ends with: both ends are tried.
    found: list[list[int]] = [[] for _ in size]
    for ramp in (1, -1):
        input = torch.ones(1, 1, *size, dtype=torch.float64)
        for axis, length in enumerate(size, 2):
            step = torch.arange(1, length + 1, dtype=torch.float64) * ramp
            input = input + (step - step.min()).view(-1, *[1] * (len(size) + 1 - axis))
        input.requires_grad_()
        output = model.double()(input)
        position = tuple(length // 2 for length in output.shape[2:])
        output[(0, 0, *position)].backward()
        assert input.grad is not None
        for axis, where in enumerate(input.grad[0, 0].nonzero().unbind(1)):
            found[axis] += [int(where.min()), int(where.max())]
    return position, [(min(each), max(each)) for each in found]


def expected(field: ReceptiveField, position: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
    """The first and last pixel of a field inside the picture."""
    fields = zip(field.pixels(position), size, strict=True)
    return [(max(seen.start, 0), min(seen.stop, length) - 1) for seen, length in fields]


@st.composite
def layers(draw: Any, library: Any) -> nn.Module:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    # No gaps, as a stride above the kernel leaves them: at the border one may be where the picture begins.
    stride = tuple(map(min, stride, kernel))
    kind = draw(st.sampled_from(["conv", "same", "max", "avg", "relu", "pad", "fused"]))
    if kind == "same":
        return library.Conv2d(1, 1, kernel, padding="same")
    if kind == "max":
        padding = draw(st.sampled_from([0, tuple(k // 2 for k in kernel)]))
        return library.MaxPool2d(kernel, stride, padding, ceil_mode=padding != 0 and draw(st.booleans()))
    if kind == "avg":
        return library.AvgPool2d(kernel, stride, draw(st.sampled_from([0, tuple(k // 2 for k in kernel)])))
    if kind == "relu":
        return nn.ReLU()
    if kind == "pad":
        return nn.ZeroPad2d(draw(st.tuples(*[st.integers(0, 2)] * 4)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    if kind == "fused":
        return torchconv.ConvReLUPool2d(1, 1, kernel, stride, padding, pool_kernel_size=3, pool_stride=2)
    return library.Conv2d(1, 1, kernel, stride, padding)


@both_libraries
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_the_gradient_of_one_output_reaches_the_field_and_no_more(library: Any, data: Any) -> None:
    model = nn.Sequential(*data.draw(st.lists(layers(library), min_size=1, max_size=4)))
    size = (60, 53)
    try:
        field = receptive_field(model, str(len(model) - 1), (1, 1, *size))
        position, seen = reached(model, size)
    except RuntimeError:
        assume(False)  # nothing is left of the picture
    # A max pooling's gradient reaches one pixel of a window, at one end or the other by the ramp, of what it sees. At a
    # border, where a stride leaves pixels out and padding takes their place, a field has pixels that nothing reaches.
    poolings = sum(isinstance(layer, nn.MaxPool2d | torchconv.ConvReLUPool2d) for layer in model)
    padded = any(isinstance(layer, nn.ZeroPad2d) or getattr(layer, "padding", 0) not in (0, (0, 0)) for layer in model)
    if poolings <= 1 and not padded:
        assert seen == expected(field, position, size)
    else:
        for (first, last), (start, stop) in zip(seen, expected(field, position, size), strict=True):
            assert start <= first
            assert last <= stop


@both_libraries
def test_dilation_spreads_a_field(library: Any) -> None:
    # F. Yu and V. Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", 2016, figure 1: 3, 7, 15.
    model = nn.Sequential(*(library.Conv2d(1, 1, 3, dilation=2**step) for step in range(3)))
    fields = receptive_fields(model, (1, 1, 40, 40))
    assert [field.size[0] for field in fields.values()] == [3, 7, 15]
    position, seen = reached(model, (40, 40))
    assert seen == expected(fields["2"], position, (40, 40))


class Branches(nn.Module):
    """Two paths that meet by an op, beside a residual connection."""

    def __init__(self, library: Any, join: str) -> None:
        super().__init__()
        self.wide = nn.Sequential(library.Conv2d(1, 1, 5, padding=(0, 3)), library.Conv2d(1, 1, 3, padding=(2, 0)))
        self.narrow = library.Conv2d(1, 1, (9, 1), padding=(3, 0))
        self.last = library.Conv2d(1 if join == "add" else 2, 1, 2, stride=2)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        wide, narrow = self.wide(x), self.narrow(x)
        joined = wide + narrow if self.join == "add" else torch.cat([wide, narrow], 1)
        return self.last(joined + joined.mean(1, keepdim=True))


@both_libraries
@pytest.mark.parametrize("join", ["add", "cat"])
def test_where_branches_meet_all_of_them_see(library: Any, join: str) -> None:
    model, size = Branches(library, join), (31, 30)
    field = receptive_field(model, "last", (1, 1, *size))
    position, seen = reached(model, size)
    assert seen == expected(field, position, size)
    assert field.size == (10, 8)


class Cropped(nn.Module):
    """Positions picked out and put together again, as by a layer that turns space into depth."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, ::2, 1:-1], x[:, :, 1::2, 2:]], 1)


def test_slices_shift_and_thin_out() -> None:
    field = receptive_field(nn.Sequential(Cropped(), nn.Conv2d(2, 1, 3)), "1", (1, 1, 12, 12))
    assert field == ReceptiveField(size=(6, 4), stride=(2, 1), padding=(0, -1))


# The field's textbooks


def test_what_vgg19_sees() -> None:
    with torch.device("meta"):
        network = models.vgg19()
    assert receptive_field(network, "relu4_2").size == receptive_field(network, "features.22").size == (84, 84)
    relu5_1 = receptive_field(network, network.features[29])
    assert relu5_1 == ReceptiveField(size=(156, 156), stride=(16, 16), padding=(70, 70))
    assert relu5_1.centre == (7.5, 7.5)


def test_features_fused_for_style_transfer_see_the_same() -> None:
    features = models.vgg_features("vgg19", layers=["relu2_1", "relu5_1"], weights=None)
    assert receptive_field(features, "relu4_2").size == (84, 84)
    assert receptive_field(features, "relu5_1").size == (156, 156)
    assert receptive_field(features, "conv1_2").size == (5, 5)  # without the pooling that it computes
    assert receptive_field(features, "pool1").size == (6, 6)


@both_libraries
def test_stacked_small_filters_see_as_much_as_a_large_one(library: Any) -> None:
    model = nn.Sequential(*(library.Conv2d(1, 1, 3) for _ in range(3)))
    assert [field.size for field in receptive_fields(model).values()] == [(3, 3), (5, 5), (7, 7)]


def test_published_fields(torchvision_models: ModuleType) -> None:
    # Araujo et al., table 1: size, stride and padding.
    with torch.device("meta"):
        vgg16, inception = models.vgg16(), torchvision_models.inception_v3(init_weights=False)
    assert receptive_field(vgg16, "pool5") == ReceptiveField((212, 212), (32, 32), (90, 90))
    deepest = receptive_field(inception.eval(), "Mixed_7c", (1, 3, 299, 299))
    assert deepest == ReceptiveField((1311, 1311), (32, 32), (618, 618))


# The forms of models and inputs


@pytest.mark.parametrize(("rank", "size"), [(1, (20,)), (3, (8, 9, 10))])
@both_libraries
def test_one_and_three_dimensions(library: Any, rank: int, size: tuple[int, ...]) -> None:
    conv, pool = getattr(library, f"Conv{rank}d"), getattr(library, f"MaxPool{rank}d")
    model = nn.Sequential(conv(1, 1, 3, padding=1), nn.Sigmoid(), pool(2), conv(1, 1, 2))
    fields = receptive_fields(model, (1, 1, *size))
    assert fields["3"] == ReceptiveField((6,) * rank, (2,) * rank, (1,) * rank)


def test_functions_count_as_layers_do() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)
            self.last = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.max_pool2d(nn.functional.pad(self.conv(x), (1, 2, 3, 0)), (3, 2))
            x = nn.functional.conv2d(nn.functional.dropout(x.clone()), torch.ones(1, 1, 3, 3), dilation=2)
            return self.last(nn.functional.avg_pool2d(nn.functional.hardswish(x), 2, stride=1))

    model = Functional()
    layers = nn.Sequential(
        *(nn.Conv2d(1, 1, 3), nn.ZeroPad2d((1, 2, 3, 0)), nn.MaxPool2d((3, 2)), nn.Conv2d(1, 1, 3, dilation=2)),
        nn.AvgPool2d(2, stride=1),
    )
    assert receptive_field(model, "last", (1, 1, 40, 40)) == receptive_field(layers, "4", (1, 1, 40, 40))


def test_adaptive_pooling_depends_on_the_size_of_the_picture() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), torchconv.AdaptiveAvgPool2d(4), nn.Flatten())
    assert receptive_field(model, "1", (1, 1, 12, 8)) == ReceptiveField((5, 4), (3, 2), (1, 1))
    with pytest.raises(ValueError, match="windows differ in size"):
        receptive_field(model, "1", (1, 1, 13, 8))
    assert list(receptive_fields(model, (1, 1, 12, 8))) == ["0", "1"]


def test_of_a_layer_that_runs_again_the_last_run_counts() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Conv2d(1, 1, 3), relu)
    assert receptive_field(model, "0").size == (3, 3)


def test_nothing_is_computed_and_nothing_changes() -> None:
    model = nn.Sequential(torchconv.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    model.register_buffer("huge", torch.empty(10**15, device="meta"))
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    receptive_fields(model, (1, 1, 10**6, 10**6))
    assert before == {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    assert model[1].num_batches_tracked == 0
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3)), "1", "layer='1': expected a module of the model or one of the names 0"),
        (nn.Sequential(nn.Conv2d(1, 1, 3)), nn.ReLU(), "layer=ReLU: expected a module of the model"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten()),
            "1",
            "layer='1': has no receptive field, as it comes after view",
        ),
        (nn.Sequential(nn.ConvTranspose2d(1, 1, 3, 2)), "0", "a ConvTranspose2d comes before it"),
        (VGG11, "relu9_1", "layer='relu9_1': expected .* conv1_1, relu1_1, pool1, conv2_1"),
    ],
)
def test_what_has_no_field_is_refused(model: nn.Module, layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        receptive_field(model, layer, (1, 3 if isinstance(model, models.VGG) else 1, 64, 64))


def test_a_model_whose_input_cant_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the shape of an input, as the model has no Conv2d"):
        receptive_fields(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="takes none of"):
        receptive_fields(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Linear(3, 3)))


# The drawing


def frames(figure: Any) -> dict[str, tuple[float, ...]]:
    """Left, top, width and height of each frame, by the layer's name."""
    labelled = [frame for frame in figure.axes[0].patches if ":" in str(frame.get_label())]
    return {
        frame.get_label().split(":")[0]: (*frame.get_xy(), frame.get_width(), frame.get_height()) for frame in labelled
    }


def test_the_drawing_has_a_frame_for_each_layer_that_sees_more() -> None:
    drawn = frames(draw_receptive_field(VGG11, input_size=(1, 3, 64, 64)))
    assert list(drawn)[::-1][:4] == ["conv1_1", "pool1", "conv2_1", "pool2"]
    fields = receptive_fields(VGG11, (1, 3, 64, 64))
    assert drawn["conv2_1"][2:] == fields["features.3"].size
    # Each holds all that is drawn in it: their outputs lie on each other.
    boxes = [(left, top, left + width, top + height) for left, top, width, height in reversed(drawn.values())]
    for inner, outer in pairwise(boxes):
        assert outer[0] <= inner[0]
        assert outer[1] <= inner[1]
        assert outer[2] >= inner[2]
        assert outer[3] >= inner[3]


def test_chosen_layers_are_drawn_on_the_picture() -> None:
    figure = draw_receptive_field(VGG11, ["relu1_1", VGG11.features[3]], picture=torch.rand(3, 40, 50))
    assert {name: box[2:] for name, box in frames(figure).items()} == {"relu1_1": (3, 3), "conv2_1": (8, 8)}
    assert figure.axes[0].images[0].get_array().shape == (40, 50, 3)
    with pytest.raises(ValueError, match="expected one or more that see more than a pixel"):
        draw_receptive_field(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(ValueError, match=r"input_size=\(1, 1, 9\): expected the shape \(1, C, H, W\) of a picture"):
        draw_receptive_field(nn.Conv1d(1, 1, 3), input_size=(1, 1, 9))
