r"""
Edges by hand
=============

A convolution layer meets every window of a picture with the same few weights:

.. math:: y_{i,j} = \sum_{a,b} w_{a,b} \, x_{i+a,\,j+b}

Networks learn the weights. Here they are chosen by hand, to see what they do: first on six by six numbers, then on two
photos.

(Mathematics calls this a cross-correlation, and convolution the same with the filter turned by 180°. For weights that
are learned that makes no difference, and networks have kept the name.)
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from torchconv import functional as F
from torchconv import inspect
from torchconv.inspect.figure import show
from torchconv.style import load_picture
from torchconv.style.pictures import to_tensor

# sphinx_gallery_thumbnail_number = 2
PICTURES = Path(sys.argv[0]).parent.parent / "pictures"

# %%
# A step
# ------
# The left half is bright, the right half dark. The filter adds up the column on its left and takes away that on its
# right.

step = torch.tensor([[10.0, 10, 10, 0, 0, 0]] * 6)
vertical_edge = torch.tensor([[1.0, 0, -1]] * 3)

response = F.conv2d(step[None, None], vertical_edge[None, None])[0, 0]
print(response)

# %%
# Four by four windows of three by three fit into six by six pixels. Where a window sees one brightness only, the sums
# cancel. Where it straddles the edge, 3 · 10 is left.


def panels(pictures):
    """Small pictures beside each other, with their numbers."""
    _, axes = plt.subplots(1, len(pictures), figsize=(9, 3.2), layout="constrained")
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        show(axis, picture, title, vmin=None, vmax=None)
        axis.set(xticks=[], yticks=[])
        axis.set_axis_on()
        for row, values in enumerate(picture.tolist()):
            for column, value in enumerate(values):
                axis.text(column, row, f"{value:g}", ha="center", va="center", color="tab:red")


panels({"picture": step, "filter": vertical_edge, "response": response})

# %%
# The sign says which way the edge goes: from dark to bright, the response is negative. Turned by 90° the filter looks
# for horizontal edges, and finds none here.

mirrored = F.conv2d(step.flip(1)[None, None], vertical_edge[None, None])[0, 0]
horizontal = F.conv2d(step[None, None], vertical_edge.T[None, None])[0, 0]
print("dark to bright:", mirrored[0].tolist())
print("horizontal edges:", horizontal[0].tolist())

# %%
# The derivative of a picture
# ---------------------------
# `[1, 0, -1]` is a difference of neighbours, the discrete derivative along a row. The three rows of the filter average
# it, against noise. Sobel's filter gives the middle row twice the weight; it is the product of a blur down and a
# difference across.

blur, difference = torch.tensor([1.0, 2, 1]), torch.tensor([-1.0, 0, 1])
print(torch.outer(blur, difference))

# %%
# With the derivatives in both directions, Pythagoras gives the strength of an edge whichever way it runs.

china = load_picture(PICTURES / "china.jpg")
china = to_tensor(china, (china.height, china.width))
grey = china.mean(1, keepdim=True)
sobel = torch.stack([torch.outer(blur, difference), torch.outer(difference, blur)])[:, None]
across, down = F.conv2d(grey, sobel, padding=1)[0]
strength = torch.hypot(across, down)

figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
for axis, title, values in zip(axes, ["across", "down", "strength"], [across, down, strength], strict=True):
    show(axis, values, title, vmin=None, vmax=None)

# %%
# Lines
# -----
# A filter responds most to what looks like itself. These two, seven by seven, are a line: each keeps the lines of its
# own direction and smears the others.

lines = ["long vertical lines", "long horizontal lines"]
print((7 * inspect.HAND_MADE_FILTERS[lines[0]]).int())

# %%

inspect.plot_hand_made(china[:, :, 100:220, 100:280], lines)

# %%

flower = load_picture(PICTURES / "flower.jpg")
flower = to_tensor(flower, (flower.height, flower.width))
inspect.plot_hand_made(flower[:, :, 120:280, 220:460], lines)

# %%
# Of the Summer Palace the posts and lattices stay under the vertical line, the eaves under the horizontal one; of the
# dahlia each keeps the rims of petals that lie its way. (Photos: danielbuechele and vultilion, CC BY 2.0.)
#
# A box of filters
# ----------------
# `torchconv.inspect.HAND_MADE_FILTERS` has the usual ones. Those whose weights sum to zero are shown by the strength of
# their response, black for none.

inspect.plot_hand_made(china)

# %%
# None of this was learned, and each filter finds one thing only. A network's first layer has dozens, and picks them
# itself: :doc:`plot_4_small_filters` shows what it picks.
#
# Sources: I. Sobel and G. Feldman, "A 3×3 isotropic gradient operator for image processing", 1968; R. Gonzalez and
# R. Woods, "Digital Image Processing", chapters 3 and 10.
