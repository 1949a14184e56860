r"""
What a Gram matrix knows
========================

A layer of a network gives C maps of H × W activations. Its Gram matrix says how strongly each two channels are active
together, summed over all positions:

.. math:: G_{c,d} = \frac{1}{HW} \sum_{i,j} F_{c,i,j} \, F_{d,i,j}

Where something was, is summed away. What is left is which features occur, and which of them together: that is what
Gatys, Ecker and Bethge call texture (2015, arXiv:1505.07376) and style (2016, arXiv:1508.06576).
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from torchconv.inspect.figure import show
from torchconv.models import vgg_features
from torchconv.style import LAYERS, STYLE_LAYERS, StyleTransfer, gram_matrix, load_picture
from torchconv.style.pictures import to_tensor

# sphinx_gallery_thumbnail_number = 4
PICTURES = Path(sys.argv[0]).parent.parent / "pictures"
EVALUATIONS = 100
torch.manual_seed(0)

# %%
# Pieces of pictures
# ------------------
# Two pieces of van Gogh's cobblestones, one of the petals of a dahlia, one of a photo that is no texture, and the first
# piece with its pixels shuffled.

painting = load_picture(PICTURES / "vangogh_cafe_terrace_at_night_1888.webp")
painting = to_tensor(painting, (painting.height, painting.width))
flower = load_picture(PICTURES / "flower.jpg")
flower = to_tensor(flower, (flower.height, flower.width))
china = load_picture(PICTURES / "china.jpg")
china = to_tensor(china, (china.height, china.width))


def piece(picture, top, left, size=80):
    """A square of a picture."""
    return picture[:, :, top : top + size, left : left + size]


cobbles = piece(painting, 420, 200)
shuffled = cobbles.flatten(2)[:, :, torch.randperm(80 * 80)].view_as(cobbles)
pieces = {
    "cobbles": cobbles,
    "other cobbles": piece(painting, 420, 285),
    "shuffled cobbles": shuffled,
    "petals": piece(flower, 165, 275),
    "photo": piece(china, 70, 140),
}

figure, axes = plt.subplots(1, 5, figsize=(11, 2.5), layout="constrained")
for axis, (name, values) in zip(axes, pieces.items(), strict=True):
    show(axis, values[0], name)

# %%
# Positions are forgotten
# -----------------------
# Shuffle the *activations* of a layer, all channels alike, and its Gram matrix stays the same: a sum has no order.

network = vgg_features("vgg19", layers=STYLE_LAYERS, weights="original")
with torch.no_grad():
    features = {name: network(values) for name, values in pieces.items()}

maps = features["cobbles"]["relu3_1"]
anywhere = maps.flatten(2)[:, :, torch.randperm(maps.shape[2] * maps.shape[3])].view_as(maps)
torch.testing.assert_close(gram_matrix(anywhere), gram_matrix(maps))
print(f"{tuple(maps.shape)} activations, {tuple(gram_matrix(maps).shape)} Gram matrix")

# %%
# Shuffle the *pixels*, and only the Gram matrix of the pixels themselves, three by three for the colours, stays. The
# first layer already sees neighbours, and notices.


def distance(a, b):
    """How far apart, as a part of the first one's length."""
    return ((a - b).norm() / a.norm()).item()


print(f"colours: {distance(gram_matrix(cobbles), gram_matrix(shuffled)):.0e}")
for layer in STYLE_LAYERS:
    grams = [gram_matrix(features[name][layer]) for name in ("cobbles", "shuffled cobbles")]
    print(f"{layer}: {distance(*grams):.2f}")

# %%
# Two ways to compare
# -------------------
# How far is each piece from the first? By its activations, position for position, and by its Gram matrices:

others = list(pieces)[1:]
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharex=True)
distances = {}
for axis, title, of in zip(axes, ["activations", "Gram matrices"], [lambda f: f, gram_matrix], strict=True):
    for name in others:
        distances[title, name] = [distance(of(features["cobbles"][k]), of(features[name][k])) for k in STYLE_LAYERS]
        axis.plot(STYLE_LAYERS, distances[title, name], marker="o", label=name)
    axis.set(title=f"distance of {title}", ylim=(0, None))
axes[0].legend()

# %%

print(f"{'relu4_1':18}{'activations':>14}{'Gram':>8}")
for name in others:
    values = [distances[title, name][STYLE_LAYERS.index("relu4_1")] for title in ("activations", "Gram matrices")]
    print(f"{name:18}{values[0]:14.2f}{values[1]:8.2f}")

# %%
# By its activations the other piece of the pavement is half as far away as the petals, since no stone lies where a
# stone lay; by its Gram matrices, a fifth.
#
# The matrix itself
# -----------------
# Of the 128 channels of relu2_1 the 40 that are strongest in the first piece, in that order. Bright off the diagonal:
# two features in one place.

with torch.no_grad():
    grams = {name: gram_matrix(features[name]["relu2_1"])[0] for name in ("cobbles", "other cobbles", "petals")}
order = grams["cobbles"].diagonal().argsort(descending=True)[:40]
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for axis, (name, gram) in zip(axes, grams.items(), strict=True):
    show(axis, gram[order][:, order].sqrt(), name, cmap="magma", vmax=None)

# %%
# A texture from noise
# --------------------
# If the matrices hold the texture, a picture with the same matrices has it too. Start from noise and descend: this is
# style transfer without content.

whole = vgg_features("vgg19", layers=LAYERS, weights="original")
synthesis = StyleTransfer(whole, cobbles, [cobbles], content_weight=0, init="noise")
painted = synthesis.run(EVALUATIONS)
print(f"{painted.evaluations} evaluations: loss {painted.first.loss:.3g} -> {painted.last.loss:.3g}")

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
shown = {"noise": synthesis.start, "from its Gram matrices": painted.picture, "cobbles": cobbles}
for axis, (name, values) in zip(axes, shown.items(), strict=True):
    show(axis, values[0], name)

# %%
# Stones again, and none where it was: the matrices know the pavement, not the street. The grain is what so few steps
# leave of the noise. Add a photo's activations of relu4_2, which know the street, and it is a painting:
# ``examples/neural_style.py``.
