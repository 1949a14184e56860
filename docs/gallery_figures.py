"""Pictures for the gallery: the matplotlib figure that is a block's result, as torchconv.inspect returns it."""

from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def save_result(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Save it, and give the reStructuredText that shows it."""
    names = variables["example_globals"]
    figure = names.get("___")  # the block's last expression
    if not isinstance(figure, Figure):
        return ""
    names["___"] = None  # it stays there if the next block has none
    path = next(variables["image_path_iterator"])
    figure.savefig(path, dpi=100, bbox_inches="tight")
    return str(figure_rst([path], settings["src_dir"]))
