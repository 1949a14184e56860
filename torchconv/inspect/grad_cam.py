"""Where a network looks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchconv.inspect.evaluation import evaluating
from torchconv.inspect.feature_maps import check_maps, feature_maps
from torchconv.inspect.figure import new_figure, show
from torchconv.inspect.layers import find_layer
from torchconv.inspect.picture import as_batch, as_input, normalized

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grad_cam(model: nn.Module, layer: nn.Module | str, picture: Tensor, target: int | None = None) -> Tensor:
    """Grad-CAM: which parts of a picture speak for a class.

    R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017,
    https://arxiv.org/abs/1610.02391: the sum of a layer's maps, each weighted by the mean gradient of the class's score
    in it; what is negative counts as nothing. Nothing of the model changes, its gradients included.

    Args:
        model: gives scores of (1, classes).
        layer: whose maps to weight, usually the last that has any; as for `feature_maps`.
        picture: as for `feature_maps`.
        target: the class; by default the one with the largest score.

    Returns:
        (H, W), as large as the picture, from 0 to 1, which is the largest value; all 0 where nothing speaks for it.

    Raises:
        ValueError: as `feature_maps`; also if the model gives no scores, or has no such class.
    """
    maps, gradient = _maps_and_gradient(model, layer, picture, target)
    weights = gradient.mean((2, 3), keepdim=True)
    looked = _resized((weights * maps).sum(1, keepdim=True).relu(), picture)
    return looked / looked.max().clamp(min=torch.finfo(looked.dtype).tiny)


def activation_map(model: nn.Module, layer: nn.Module | str, picture: Tensor) -> Tensor:
    """The plain sum of a layer's maps: where it is active, whatever for.

    Args:
        model, layer, picture: see `feature_maps`.

    Returns:
        (H, W), as large as the picture, scaled to run from 0 to 1.

    Raises:
        ValueError: as `feature_maps`.
    """
    return normalized(_resized(feature_maps(model, layer, picture).sum(0)[None, None], picture))


def last_maps(model: nn.Module, picture: Tensor) -> str:
    """The name of the last layer that gives maps and is no pooling and the like: where Grad-CAM usually looks.

    Raises:
        ValueError: no layer gives maps of more than one pixel.
    """
    found: list[str] = []
    handles = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _input: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
                found.append(name)

        return hook

    for name, module in model.named_modules():
        kind = type(module).__name__
        if not any(module.children()) and not any(word in kind for word in ("Pool", "Dropout", "Identity")):
            handles.append(module.register_forward_hook(note(name)))
    try:
        with torch.no_grad(), evaluating(model):
            model(as_input(model, picture))
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("model: expected a layer that gives maps (1, C, H, W), there is none")
    return found[-1]


def plot_overlay(picture: Tensor, map: Tensor) -> "Figure":
    """A picture, and beside it the same with a map (H, W) from 0 to 1 on it, in colours from blue to red.

    Raises:
        ValueError: the map has another size than the picture.
        ModuleNotFoundError: matplotlib is not installed.
    """
    batch = as_batch(picture)
    if map.shape != batch.shape[2:]:
        raise ValueError(f"map: expected the size of the picture, {tuple(batch.shape[2:])}, got {tuple(map.shape)}")
    height, width = map.shape
    figure = new_figure(9, 4.5 * height / width + 0.1)
    plain, overlaid = figure.subplots(1, 2)
    show(plain, batch[0])
    show(overlaid, batch.mean(1)[0])  # grey, so that all colour is the map's
    overlaid.imshow(map.detach().float().cpu().numpy(), cmap="jet", vmin=0, vmax=1, alpha=0.5)
    return figure


def _maps_and_gradient(
    model: nn.Module, layer: nn.Module | str, picture: Tensor, target: int | None
) -> tuple[Tensor, Tensor]:
    name, module = find_layer(model, layer)
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _input: Any, output: Any) -> Tensor:
        seen.append(check_maps(name, module, output).detach().requires_grad_())
        return seen[-1].clone()  # which what follows may change in place

    handle = module.register_forward_hook(hook)
    try:
        with torch.enable_grad(), evaluating(model):
            scores = model(as_input(model, picture))
            if not isinstance(scores, Tensor) or scores.dim() != 2:
                got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(f"model: expected one that gives scores (1, classes), got {got}")
            if not seen:
                raise ValueError(f"layer={name!r}: expected a layer that runs, this one doesn't")
            classes = scores.shape[1]
            if target is not None and not 0 <= target < classes:
                raise ValueError(f"target={target}: expected a class from 0 to {classes - 1}")
            score = scores[0, scores.argmax() if target is None else target]
            (gradient,) = torch.autograd.grad(score, seen[-1], allow_unused=True, materialize_grads=True)
    finally:
        handle.remove()
    return seen[-1].detach(), gradient


def _resized(map: Tensor, picture: Tensor) -> Tensor:
    size = list(as_batch(picture).shape[2:])
    return F.interpolate(map, size, mode="bilinear", align_corners=False)[0, 0]
