r"""
Pooling, padding, stride
========================

Three numbers beside the size of the window decide how large a layer's output is: how far the window moves (stride), how
much is put around the picture (padding), and how far the taps are apart (dilation). Pooling is a window without
weights.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import torchconv
from torchconv import functional as F
from torchconv import inspect
from torchconv.inspect.figure import show
from torchconv.style import load_picture
from torchconv.style.pictures import to_tensor

PICTURES = Path(sys.argv[0]).parent.parent / "pictures"

# %%
# How many positions
# ------------------
# A window of k pixels on n, with p pixels of padding on each side, stride s and dilation d, has
#
# .. math:: \left\lfloor \frac{n + 2p - d\,(k - 1) - 1}{s} \right\rfloor + 1
#
# positions. Two paddings have names. *valid* is none: the window stays inside, and what is left over behind the last
# position is never seen. *same* is as much as it takes for ⌈n / s⌉ positions: with stride 1 as many as pixels.

for padding in ("valid", "same"):
    print(f"13 wide, window 6, stride 5, {padding}: {inspect.output_size(13, 6, stride=5, padding=padding)} positions")

# %%
# Drawn, with an odd pixel of padding on the right, as TensorFlow has it; torch's own layers take `padding="same"` for
# stride 1 only.

before, after = inspect.same_padding(13, 6, stride=5)
figure, axes = plt.subplots(2, 1, figsize=(8, 3.4), layout="constrained", sharex=True)
for axis, title, first in zip(axes, ["valid", "same"], [0, -before], strict=True):
    for pixel in range(-before, 13 + after):
        inside = 0 <= pixel < 13
        colour = "lightsteelblue" if inside else "none"
        axis.add_patch(plt.Rectangle((pixel, 0), 1, 1, facecolor=colour, edgecolor="grey"))
        axis.text(pixel + 0.5, 0.5, pixel + 1 if inside else 0, ha="center", va="center")
    for position in range(inspect.output_size(13, 6, stride=5, padding=title)):
        start = first + 5 * position
        axis.plot([start + 0.1, start + 5.9], [1.3 + 0.25 * (position % 2)] * 2, linewidth=4, solid_capstyle="butt")
    axis.set(title=title, xlim=(-before - 0.3, 13 + after + 0.3), ylim=(-0.1, 1.9))
    axis.axis("off")

# %%
# *valid* drops the columns 12 and 13. That the layers agree:

row = torch.rand(1, 1, 13)
padded = torch.nn.functional.pad(row, (before, after))
layer = torchconv.Conv1d(1, 1, kernel_size=6, stride=5)
print(tuple(layer(row).shape), tuple(layer(padded).shape))

# %%
# The border
# ----------
# Zeros around the picture are an edge that isn't there. A blur with zeros darkens the border; reflected pixels don't.

china = load_picture(PICTURES / "china.jpg")
china = to_tensor(china, (china.height, china.width))
crop = china[:, :, 60:188, 120:248].mean(1, keepdim=True)

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
show(axes[0], crop[0], "picture")
for axis, mode in zip(axes[1:], ["zeros", "reflect"], strict=True):
    blur = torchconv.Conv2d(1, 1, 15, padding="same", padding_mode=mode, bias=False)
    torch.nn.init.constant_(blur.weight, 1 / 15**2)
    show(axis, blur(crop)[0], f'blur, padding_mode="{mode}"')

# %%
# What pooling keeps
# ------------------
# Max pooling keeps the largest value of each window, average pooling the mean. Of an edge map at an eighth of its size,
# the maximum still shows every strong edge, the mean fades the thin ones.

down = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]])
sobel = torch.stack([down, down.T])[:, None]


def edges(picture):
    """The strength of edges in a grey picture."""
    return torch.hypot(*F.conv2d(picture, sobel)[0])[None, None]


whole = edges(china.mean(1, keepdim=True))
pooled = {"edges": whole, "max_pool2d(8)": F.max_pool2d(whole, 8), "avg_pool2d(8)": F.avg_pool2d(whole, 8)}
figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
for axis, (name, values) in zip(axes, pooled.items(), strict=True):
    show(axis, values[0], f"{name}: {values.shape[2]}×{values.shape[3]}", vmax=None)

# %%
# The maximum forgets where in its window it was. Asked to remember, it can be put back: `max_unpool2d` is what
# deconvolution networks use to go up again.

values, places = F.max_pool2d(whole, 2, return_indices=True)
back = F.max_unpool2d(values, places, kernel_size=2, output_size=whole.shape[2:])
kept = (back != 0).float().mean()
print(f"{kept:.0%} of the pixels hold {back.sum() / whole.sum():.0%} of the edges' sum")

# %%
# Small shifts
# ------------
# Is the output the same when the picture moves a little? Shift the window over the photo by some pixels, and compare
# the maps at the same positions:
#
# .. math:: \frac{\lVert f(x_{\text{shifted}}) - f(x) \rVert}{\lVert f(x) \rVert}


def view(shift):
    """A window on the photo, moved to the right."""
    return edges(china[:, :, 60:318, 100 + shift : 358 + shift].mean(1, keepdim=True))


maps = {"edges": lambda x: x} | {
    f"max_pool2d({size})": lambda x, size=size: F.max_pool2d(x, size) for size in (2, 4, 8)
}
maps["avg_pool2d(8)"] = lambda x: F.avg_pool2d(x, 8)
shifts = range(9)

figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
change = {}
for name, f in maps.items():
    still = f(view(0))
    change[name] = [((f(view(shift)) - still).norm() / still.norm()).item() for shift in shifts]
    axis.plot(shifts, change[name], marker="o", label=name)
    print(f"{name:14} moved by one pixel: {change[name][1]:.2f}, by four: {change[name][4]:.2f}")
axis.set(xlabel="pixels moved", ylabel="change of the map")
axis.legend()

# %%
# The larger the window, the less a small shift matters, and to a mean still less than to a maximum: this is the
# invariance that pooling is for. It is not a whole one. The windows stand on a grid of their stride, so only a shift by
# a multiple of it moves the map as a whole, to the bit; anything between is neither kept nor merely moved. R. Zhang,
# "Making convolutional networks shift-invariant again", 2019, blurs before sampling for that reason.

moved = F.max_pool2d(view(8), 8)
print(
    "moved by 8, pooled by 8, equal to the pooled map moved by one:",
    torch.equal(moved[..., :-1], F.max_pool2d(view(0), 8)[..., 1:]),
)

# %%
# Stride instead of pooling
# -------------------------
# A convolution with stride 2 gives what the same convolution with stride 1 gives at every second position. It computes
# a quarter, and drops the rest unseen; pooling computes everything, then chooses.

layer = torchconv.Conv2d(1, 8, kernel_size=3, padding=1)
strided = torchconv.Conv2d(1, 8, kernel_size=3, padding=1, stride=2)
strided.load_state_dict(layer.state_dict())
torch.testing.assert_close(strided(crop), layer(crop)[:, :, ::2, ::2])
print(f"{tuple(layer(crop).shape)} and {tuple(strided(crop).shape)}")

# %%
# Source: V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285.
