"""How Sphinx builds the site (``make docs``). Nothing is fetched: formulas become MathML, which browsers draw."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

from hatam.version import __version__

ROOT = Path(__file__).resolve().parent.parent

project = "HATAM"
author = "The HATAM authors"
project_copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "HATAM"
html_math_renderer = "mathml"
exclude_patterns = ["_build"]
nitpicky = True
# Other projects have sites of their own, and what is internal has none.
nitpick_ignore_regex = [("py:.*", r"(?!hatam\.).*|hatam\.(state|following|bench\.report)\b.*")]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests run the notebooks; the site shows their stored outputs

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
python_display_short_literal_types = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def mathml(text: str, display: str) -> str:
    """A formula as MathML; GitHub's backquotes around inline formulas are no part of it."""
    return convert(text.strip().strip("`").replace(r"\lVert", r"\|").replace(r"\rVert", r"\|"), display=display)


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Write an inline formula."""
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    """Write a displayed formula; one that is wider than the page scrolls."""
    writer.body.append(f'<div class="math" style="overflow-x: auto">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def outside(app: Any, docname: str, source: list[str]) -> None:
    """Links to files of the repository that are no pages become their names, as the site is without them."""

    def resolved(link: re.Match[str]) -> str:
        name, target = link.groups()
        path = (Path(app.srcdir) / target.partition("#")[0]).resolve()
        if path.is_relative_to(app.srcdir):
            return link[0]
        file = f"`{path.relative_to(ROOT)}`"
        return file if path.name in name else f"{name} ({file})"

    if str(app.env.doc2path(docname)).endswith(".md"):  # a notebook is JSON
        source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)", resolved, source[0])


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("source-read", outside)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
