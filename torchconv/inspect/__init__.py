"""What a model costs and what it sees: memory, summary, receptive fields, filters, feature maps and Grad-CAM."""

from torchconv.inspect.draw_field import draw_receptive_field
from torchconv.inspect.feature_maps import feature_maps, plot_feature_maps
from torchconv.inspect.field import ReceptiveField
from torchconv.inspect.figure import save_figure
from torchconv.inspect.filters import plot_filters
from torchconv.inspect.grad_cam import activation_map, grad_cam, last_maps, plot_overlay
from torchconv.inspect.hand_made import HAND_MADE_FILTERS, apply_filter, plot_hand_made, response_picture
from torchconv.inspect.layers import find_layer
from torchconv.inspect.memory import Memory, memory
from torchconv.inspect.output_size import output_size, same_padding
from torchconv.inspect.receptive_field import receptive_field, receptive_fields
from torchconv.inspect.summary import Row, Summary, summary

__all__ = [
    "HAND_MADE_FILTERS",
    "Memory",
    "ReceptiveField",
    "Row",
    "Summary",
    "activation_map",
    "apply_filter",
    "draw_receptive_field",
    "feature_maps",
    "find_layer",
    "grad_cam",
    "last_maps",
    "memory",
    "output_size",
    "plot_feature_maps",
    "plot_filters",
    "plot_hand_made",
    "plot_overlay",
    "receptive_field",
    "receptive_fields",
    "response_picture",
    "same_padding",
    "save_figure",
    "summary",
]
