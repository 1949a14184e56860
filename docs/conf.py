"""The documentation site: this folder's pages, the reference from the docstrings, the tutorials with what they print.

make docs    # docs/_build/html/index.html

Nothing is fetched, neither by the build nor by the pages: formulas are MathML.
"""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxTranslator

import torchconv

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))  # for gallery_figures

project = "torchconv"
author = "torchconv contributors"
copyright = author
version = release = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "py:obj"  # a name in single backticks links to what it names, if that is here
highlight_language = "python"

myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autosummary_imported_members = True
autosummary_ignore_module_all = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape"]
python_maximum_signature_line_length = 88

sphinx_gallery_conf = {
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials",
    "within_subsection_order": "FileNameSortKey",
    "notebook_extensions": set(),  # the scripts find their pictures beside them, which a lone notebook can't
    "image_scrapers": ("matplotlib", "gallery_figures.save_result"),
    "doc_module": ("torchconv",),
    "reference_url": {"torchconv": None},
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,  # that page would load scripts from elsewhere
    "download_all_examples": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"torchconv {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "torchconv"},
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "show_prev_next": True,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
}
html_sidebars = {"index": [], "changelog": [], "contributing": []}

# Where the repository's files are on the site. Others are offered as downloads.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/pictures/README.md": "pictures.md",
    **{f"torchconv/{name}/__init__.py": f"api/generated/torchconv.{name}.rst" for name in ("reference", "style")},
}


def on_site(link: str) -> str:
    """A link from a file at the repository's root, as one from a page of this folder."""
    if re.match(r"\w+:|#", link):
        return link
    file, mark, anchor = link.partition("#")
    moved = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else f"../{file}")
    return moved + mark + anchor


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Put a file of the repository in the place of `<!-- FILE up to "## HEADING" -->`; its links lead to the site."""

    def content(match: re.Match[str]) -> str:
        text = (ROOT / match["file"]).read_text(encoding="utf-8")
        if match["end"]:
            text = text[: text.index(f"\n{match['end']}\n")]
        folder = match["file"].rpartition("/")[0]
        return re.sub(
            r"(\]\()([^)\s]+)",
            lambda m: m[1] + on_site(f"{folder}/{m[2]}" if folder and ":" not in m[2] else m[2]),
            text,
        )

    text = re.sub(r'<!-- (?P<file>[\w./]+\.md)(?: up to "(?P<end>[^"]+)")? -->', content, source[0])
    source[0] = re.sub(r"(\]\()\.\./([^)\s]+)", lambda match: match[1] + on_site(match[2]), text)


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: an indented block is code, and only backticks mean something."""
    text: list[str] = []
    depth, code = 0, None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and code is not None and indent < code:
            code = None
        if line.strip() and code is None:
            if text and not text[-1] and indent > depth:
                text += [" " * depth + "::", ""]
                code = indent
            else:
                depth = indent
        if code is None and not line.lstrip().startswith(("- ", ">>>")):
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"(\*|(?<=\w)_(?!\w)|\|)", r"\\\1", part) for part in parts[::2]]
            line = "".join(parts)
        text.append(line)
    lines[:] = text


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of a NamedTuple, which its docstring describes."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def visit_math(self: SphinxTranslator, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self: SphinxTranslator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_member)


assert torchconv.__file__  # the package that the reference is about has to be there
