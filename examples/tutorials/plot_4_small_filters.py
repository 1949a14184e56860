r"""
Why small filters, stacked
==========================

AlexNet (2012) began with filters of 11×11. Two years later VGG had nothing but 3×3, in more than twice as many layers,
and made half the errors. Three reasons: fewer weights, the same view, more bends. Then: what first layers learn, what
deep layers answer to, and where a network looks.
"""

import copy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss

import torchconv
from torchconv import functional as F
from torchconv import inspect
from torchconv.inspect.figure import show
from torchconv.models import ModernLeNet5, vgg19, vgg_features
from torchconv.style import load_picture
from torchconv.style.pictures import to_tensor

# sphinx_gallery_thumbnail_number = 4
PICTURES = Path(sys.argv[0]).parent.parent / "pictures"
EDGE_STEPS = 300
DIGIT_STEPS = 300
PICTURE_STEPS = 400
VIEWS = 24
torch.manual_seed(0)


def read(name):
    """A picture, (1, 3, H, W)."""
    image = load_picture(PICTURES / name)
    return to_tensor(image, (image.height, image.width))


def stack(*sizes, channels=1, width=1):
    """Convolutions of these sizes with nothing between."""
    widths = [channels] + [width] * (len(sizes) - 1) + [channels]
    return nn.Sequential(
        *(torchconv.Conv2d(i, o, size, bias=False) for i, o, size in zip(widths, widths[1:], sizes, strict=False))
    )


# %%
# The same view for fewer weights
# -------------------------------
# An output of two 3×3 layers sees 5×5 pixels, of three 7×7. Between layers of C channels each weight is C² weights.

for sizes in [(5,), (3, 3), (7,), (3, 3, 3)]:
    layers = stack(*sizes)
    weights = sum(weight.numel() for weight in layers.parameters())
    seen = inspect.receptive_field(layers, f"{len(sizes) - 1}", input_size=(1, 1, 28, 28)).size
    print(f"{' + '.join(f'{size}×{size}' for size in sizes):15} {weights} C² weights, sees {seen[0]}×{seen[1]}")

# %%
# That this is what an output sees can be measured: it is where the output's gradient in the picture is not zero.

pixels = torch.zeros(1, 1, 11, 11, requires_grad=True)
output = stack(3, 3, 3)(pixels)
output[0, 0, 2, 2].backward()
rows, columns = pixels.grad[0, 0].nonzero().T
print(f"rows {rows.min()} to {rows.max()}, columns {columns.min()} to {columns.max()}")

# %%
# A stride or a pooling doubles the step of all layers behind it, and their fields grow twice as fast. In VGG-19 an
# output of relu4_2 sees 84 pixels in a row, of relu5_1 156:

china = read("china.jpg")
with torch.device("meta"):  # shapes will do here
    network = vgg19()
layers = ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu4_2", "relu5_1"]
for name in layers:
    print(name, inspect.receptive_field(network, name, input_size=(1, 3, 224, 224)).size)

# %%

inspect.draw_receptive_field(network, layers, picture=china)

# %%
# What it sees is not all equally clear to it: there are many paths from the middle of the field to the output, and few
# from its rim. W. Luo et al., "Understanding the effective receptive field", 2016, arXiv:1701.04128, find a bell:

total = torch.zeros(41, 41)
for _ in range(50):
    deep = stack(*[3] * 10, width=4)
    pixels = torch.randn(1, 1, 41, 41, requires_grad=True)
    deep(pixels)[0, 0, 10, 10].backward()
    total += pixels.grad[0, 0].abs()
ten = total[10:31, 10:31]

figure, axis = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
show(axis, ten, "ten 3×3 layers: 21×21 pixels", cmap="magma", vmax=None)
inner = ten[5:16, 5:16].sum() / ten.sum()
print(f"the inner 11×11, {11**2 / 21**2:.0%} of the field, has {inner:.0%} of the gradient")

# %%
# More bends
# ----------
# Without anything between them, two 3×3 convolutions are one 5×5 convolution, whose filter is the one convolved with
# the other. The stack can do less than a 5×5, not more.

pair = stack(3, 3)
first, second = (layer.weight for layer in pair)
joined = F.conv2d(first, second.flip(2, 3), padding=2)
picture = torch.rand(1, 1, 20, 20)
torch.testing.assert_close(F.conv2d(picture, joined), pair(picture))
print(tuple(joined.shape))

# %%
# With ReLU between them they can do what no single filter can. The strength of an edge, whichever way it runs, isn't
# linear: of a picture and its negative it is the same. Let both forms learn it from pieces of the photo, 5×5 pixels to
# one number.

grey = china.mean(1, keepdim=True)
down = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]])
across_and_down = F.conv2d(grey, torch.stack([down.T, down])[:, None])
strength = across_and_down.norm(dim=1, keepdim=True)[:, :, 1:-1, 1:-1]  # the middles of 5×5 windows

forms = {
    "one 5×5": nn.Sequential(torchconv.Conv2d(1, 1, 5)),
    "two 3×3, no ReLU": nn.Sequential(torchconv.Conv2d(1, 8, 3), torchconv.Conv2d(8, 1, 3)),
    "two 3×3, ReLU": nn.Sequential(torchconv.Conv2d(1, 8, 3), nn.ReLU(), torchconv.Conv2d(8, 1, 3)),
}
for name, form in forms.items():
    optimizer = torch.optim.Adam(form.parameters(), lr=0.01)
    for _ in range(EDGE_STEPS):
        top, left = (int(torch.randint(size - 64, ())) for size in strength.shape[2:])
        piece, wanted = grey[:, :, top : top + 64, left : left + 64], strength[:, :, top : top + 60, left : left + 60]
        optimizer.zero_grad()
        mse_loss(form(piece), wanted).backward()
        optimizer.step()
    with torch.no_grad():
        left_over = mse_loss(form(grey), strength) / strength.var()
    print(f"{name:17} leaves {left_over:.0%} of the variance unexplained")

# %%
# What a first layer learns
# -------------------------
# scikit-learn's 1797 handwritten digits, 8×8 pixels enlarged to 28×28, for a LeNet-5 of today's parts. Its first
# layer's initial weights are small here, so that what is learned stands out. The six filters before and after:

digits = load_digits()
order = torch.randperm(len(digits.target))
images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
images = interpolate(images, size=(28, 28), mode="bilinear")
labels = torch.tensor(digits.target)[order]

lenet = ModernLeNet5()
nn.init.normal_(lenet.features[0].weight, std=0.01)
nn.init.zeros_(lenet.features[0].bias)
untrained = copy.deepcopy(lenet)
optimizer = torch.optim.AdamW(lenet.parameters(), lr=3e-3)
for _ in range(DIGIT_STEPS):
    batch = torch.randint(1500, (64,))
    optimizer.zero_grad()
    cross_entropy(lenet(images[batch]), labels[batch]).backward()
    optimizer.step()
with torch.no_grad():
    right = (lenet(images[1500:]).argmax(1) == labels[1500:]).float().mean()
print(f"{right:.1%} of 297 unseen digits are right")

# %%

inspect.plot_filters(lenet.features[0], before=untrained.features[0])

# %%
# Edges of strokes, in several directions, and soft blobs. A filter that answers nowhere, behind its ReLU, gets no
# gradient and keeps its noise.
#
# AlexNet's first layer has filters of 11×11 on colours, at every fourth pixel. A million photos taught it edges in all
# directions and blobs of colour. Here are three pictures, and the question of which one a piece of 51×51 pixels is
# from; half of the pieces are grey, so that colour alone doesn't do.

names = ["china.jpg", "flower.jpg", "vangogh_cafe_terrace_at_night_1888.webp"]
pictures = [read(name)[0] for name in names]
windows = [  # a view: (3, rows, columns, 51, 51)
    ((p - p.mean((1, 2), keepdim=True)) / p.std((1, 2), keepdim=True)).unfold(1, 51, 1).unfold(2, 51, 1)
    for p in pictures
]


def pieces(count):
    """Random pieces of the pictures, and which picture each is from."""
    labels = torch.randint(3, (count,))
    places = [(windows[label], torch.rand(2)) for label in labels.tolist()]
    batch = torch.stack([w[:, int(y * w.shape[1]), int(x * w.shape[2])] for w, (y, x) in places])
    grey, mirrored = torch.rand(2, count, 1, 1, 1) < 0.5
    batch = torch.where(grey, batch.mean(1, keepdim=True), batch)
    return torch.where(mirrored, batch.flip(3), batch), labels


small_alexnet = nn.Sequential(
    torchconv.Conv2d(3, 32, kernel_size=11, stride=4),
    nn.ReLU(),
    torchconv.LocalResponseNorm(5),
    torchconv.MaxPool2d(3, stride=2),
    torchconv.Conv2d(32, 64, kernel_size=5, padding=2),
    nn.ReLU(),
    torchconv.MaxPool2d(3, stride=2),
    nn.Flatten(),
    nn.Linear(64 * 2 * 2, 3),
)
nn.init.normal_(small_alexnet[0].weight, std=0.01)
untrained = copy.deepcopy(small_alexnet)
optimizer = torch.optim.SGD(small_alexnet.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.03, total_steps=PICTURE_STEPS)
for _ in range(PICTURE_STEPS):
    batch, label = pieces(64)
    scores = small_alexnet(batch)
    optimizer.zero_grad()
    cross_entropy(scores, label).backward()
    optimizer.step()
    schedule.step()
print(f"{(scores.argmax(1) == label).float().mean():.0%} of the last pieces are right")

# %%

inspect.plot_filters(small_alexnet[0], before=untrained[0])

# %%
# Out of noise: dark bars and edges at some angles, and blobs of colour, as in AlexNet, if blurrier and of fewer kinds.
# Three pictures and half a minute can't teach more.
#
# From edges to objects
# ---------------------
# VGG-19 with its authors' weights, trained on those million photos: the strongest maps of a layer from each block, on
# the Summer Palace.

layers = ["relu1_2", "relu2_2", "relu3_4", "relu4_4", "relu5_4"]
vgg = vgg_features("vgg19", layers=layers)
photo = china[:, :, 20:308, 90:378]
inspect.plot_feature_maps(vgg, "relu1_2", photo, most=9)

# %%

inspect.plot_feature_maps(vgg, "relu2_2", photo, most=9)

# %%

inspect.plot_feature_maps(vgg, "relu3_4", photo, most=9)

# %%

inspect.plot_feature_maps(vgg, "relu4_4", photo, most=9)

# %%

inspect.plot_feature_maps(vgg, "relu5_4", photo, most=9)

# %%
# Block 1 answers to brightness, colour and edges everywhere, blocks 2 and 3 to lines and their patterns. From block 4
# on a map is dark but for a few places: the eaves, the outline of the tower, one corner. With every pooling the maps
# halve, and each of their pixels sees more.
#
# Where a network looks
# ---------------------
# Grad-CAM weights the last maps by how much the score of a class grows with each, and adds them up (R. Selvaraju et
# al., 2017, arXiv:1610.02391). On a digit, the network from above:

digit = images[1500]
print(f"a {labels[1500]}, taken for a {lenet(digit[None]).argmax()}")
inspect.plot_overlay(digit, inspect.grad_cam(lenet, "features.4", digit))

# %%
# The authors' weights of VGG-19 come without its classifier. So this classifier is our own, and small: the mean of each
# of the last 512 maps, and a linear layer that learns from pieces of the three pictures which one they are from.


class Maps(nn.Module):
    """The last maps of VGG-19, (N, 512, H/16, W/16)."""

    def forward(self, picture):
        return vgg(picture)["relu5_4"]


probe = nn.Sequential(Maps(), torchconv.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 3))
with torch.no_grad():
    views, label = [], torch.arange(VIEWS) % 3
    for which in label.tolist():
        picture = pictures[which]
        top, left = (int(torch.randint(size - 128, ())) for size in picture.shape[1:])
        views.append(picture[:, top : top + 128, left : left + 128])
    features = probe[:3](torch.stack(views))
optimizer = torch.optim.Adam(probe[3].parameters(), lr=0.01)
for _ in range(200):
    optimizer.zero_grad()
    cross_entropy(probe[3](features), label).backward()
    optimizer.step()

# %%
# Two of the pictures side by side, then, and the question where each of them is:

collage = torch.cat([pictures[0][:, 40:264, 120:344], pictures[1][:, 100:324, 200:424]], 2)
maps = {name: inspect.grad_cam(probe, probe[0], collage, target) for target, name in enumerate(names[:2])}
for name, seen in maps.items():
    print(f"{name}: {seen[:, :224].sum() / seen.sum():.0%} of the map on the left half")
inspect.plot_overlay(collage, maps["china.jpg"])

# %%

inspect.plot_overlay(collage, maps["flower.jpg"])

# %%
# (With a mean and a linear layer on top, as here, Grad-CAM is the class activation map of B. Zhou et al., 2016,
# arXiv:1512.04150: each map times its weight for the class.)
#
# Sources: K. Simonyan and A. Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015,
# arXiv:1409.1556, section 2.3; A. Krizhevsky, I. Sutskever and G. Hinton, "ImageNet classification with deep
# convolutional neural networks", 2012; M. Zeiler and R. Fergus, "Visualizing and understanding convolutional networks",
# 2014, arXiv:1311.2901.
