"""Neural style transfer on Gram matrices: `StyleTransfer` does the job, the rest is usable alone."""

from torchconv.style.estimate import Estimate, estimate
from torchconv.style.gram import gram_matrix
from torchconv.style.losses import ContentLoss, StyleLoss
from torchconv.style.objective import CONTENT_LAYERS, LAYERS, STYLE_LAYERS, Losses, StyleObjective
from torchconv.style.pictures import load_picture, save_picture
from torchconv.style.transfer import Evaluation, Painting, StyleTransfer

__all__ = [
    "CONTENT_LAYERS",
    "LAYERS",
    "STYLE_LAYERS",
    "ContentLoss",
    "Estimate",
    "Evaluation",
    "Losses",
    "Painting",
    "StyleLoss",
    "StyleObjective",
    "StyleTransfer",
    "estimate",
    "gram_matrix",
    "load_picture",
    "save_picture",
]
