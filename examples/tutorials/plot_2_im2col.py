r"""
im2col: convolution as a matrix product
=======================================

Seven nested loops are the definition of a convolution, and slow. Writing every window down as a column of a matrix
turns them into one matrix product, the operation that computers do best. The name for that, *im2col*, is "image to
columns".
"""

import matplotlib.pyplot as plt
import torch
from torch.testing import assert_close

import torchconv
from torchconv import functional as F
from torchconv.inspect.figure import show

# %%
# One picture of four by four
# ---------------------------
# The pixels are numbered, so that one sees where they go. A window of three by three has four positions: four columns
# of nine numbers.

numbered = torch.arange(16.0).reshape(1, 1, 4, 4)
print(numbered[0, 0].int())

# %%

columns = F.im2col(numbered, kernel_size=3)
print(columns[0].int())

# %%
# A column is a window, read row by row. A row is what one weight of the filter meets on its way over the picture: a
# shifted view of the picture. That is how it's computed, one copy for each of the nine weights
# (`torchconv.reference.im2col`), not one for each window.
#
# The shapes of a real case
# -------------------------
# A picture of 3 channels and 7×7 pixels, filters of 5×5: 3 · 5 · 5 = 75 numbers in a window, 3 · 3 = 9 positions.
# torch and torchconv have windows as columns, (75, 9); textbooks often write them as rows, (9, 75). With ten pictures
# that is (90, 75).

for batch in (1, 10):
    pictures = torch.rand(batch, 3, 7, 7)
    columns = F.im2col(pictures, kernel_size=5)
    windows = columns.mT.reshape(-1, 75)  # one window a row, all pictures below each other
    print(f"{tuple(pictures.shape)} -> {tuple(columns.shape)}, as rows {tuple(windows.shape)}")

# %%
# The convolution
# ---------------
# Each filter, laid out flat, is a row of 75. All filters are a matrix, and the convolution is its product with the
# columns:
#
# .. math:: Y = W X + b, \qquad W: (O, 75), \quad X: (75, 9), \quad Y: (O, 9)

layer = torchconv.Conv2d(3, 16, kernel_size=5).double()
pictures = torch.rand(10, 3, 7, 7, dtype=torch.float64)

matrix = layer.weight.reshape(16, 75)
columns = F.im2col(pictures, kernel_size=5)
product = matrix @ columns + layer.bias[:, None]
print(f"{tuple(matrix.shape)} @ {tuple(columns.shape)} -> {tuple(product.shape)}")

output = product.reshape(10, 16, 3, 3)
assert_close(output, layer(pictures))
print(f"differs from Conv2d by at most {(output - layer(pictures)).abs().max():.1g}")

# %%
# The other way: col2im
# ---------------------
# *col2im* adds every number of the matrix to the pixel that it was copied from. It is not the inverse of im2col: a
# pixel that k windows see comes back k times.

ones = torch.ones(1, 1, 7, 7)
seen = F.col2im(F.im2col(ones, kernel_size=5), output_size=7, kernel_size=5)[0, 0]

figure, axis = plt.subplots(figsize=(3.5, 3.5), layout="constrained")
show(axis, seen, "windows that see each pixel", vmin=-25, vmax=25)
for row, counts in enumerate(seen.tolist()):
    for column, count in enumerate(counts):
        axis.text(column, row, f"{count:g}", ha="center", va="center")

# %%
# What it is, is the *adjoint*: the linear map that is the transposed matrix, were im2col written as one. For all x and
# y,
#
# .. math:: \langle \mathrm{im2col}(x),\, y \rangle = \langle x,\, \mathrm{col2im}(y) \rangle

x, y = torch.rand_like(pictures), torch.rand_like(columns)
left = (F.im2col(x, kernel_size=5) * y).sum()
right = (x * F.col2im(y, output_size=7, kernel_size=5)).sum()
print(f"{left:.10f} = {right:.10f}")
assert_close(left, right)

# %%
# The backward pass of a linear map is its adjoint. So the gradients of a convolution are two matrix products as well,
# and the one in the picture ends with a col2im:
#
# .. math:: \frac{\partial L}{\partial W} = \sum_n G_n X_n^{\mathsf T}, \qquad
#           \frac{\partial L}{\partial x} = \mathrm{col2im}(W^{\mathsf T} G)

pictures.requires_grad_()
grad_output = torch.rand(10, 16, 3, 3, dtype=torch.float64)
layer(pictures).backward(grad_output)

flat = grad_output.flatten(2)
assert_close(layer.weight.grad, (flat @ columns.mT).sum(0).reshape(16, 3, 5, 5))
assert_close(pictures.grad, F.col2im(matrix.mT @ flat, output_size=7, kernel_size=5))
print("both gradients are those of autograd")

# %%
# What it costs
# -------------
# Memory: at stride 1 the columns hold the picture as often as the filter has weights. For the second layer of VGG, 64
# channels of 224×224 pixels and 3×3 filters in float32, that is

picture_bytes = 64 * 224 * 224 * 4
print(f"{picture_bytes / 1e6:.1f} MB of picture, {9 * picture_bytes / 1e6:.1f} MB of columns")

# %%
# torchconv's compiled kernels therefore write down a few positions at a time, just as many as the processor's cache
# takes, and multiply them at once; `torchconv.reference.conv` is the plain form, on this page's few lines. Both are the
# same function:

big = torchconv.Conv2d(64, 64, kernel_size=3, padding=1)
photo = torch.rand(1, 64, 56, 56)
with torch.no_grad():
    with torchconv.algorithm("im2col"):
        kernel = big(photo)
    with torchconv.algorithm("reference"):
        reference = big(photo)
print(f"largest relative difference: {((kernel - reference).abs().max() / reference.abs().max()).item():.0e}")
assert_close(kernel, reference)

# %%
# Source: K. Chellapilla, S. Puri and P. Simard, "High performance convolutional neural networks for document
# processing", 2006.
