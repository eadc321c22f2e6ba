"""What the HTML pages of both packages share: one base template, its style, sortable tables.

    base.html     head, colours of the light and the dark scheme, print; blocks for the rest
    base.css      included by it
    sorting.js    `sortable(table)`: a click or Enter on a heading sorts; aria-sort says how

A page is one file that asks nothing of the network: its Content-Security-Policy forbids it, and
pictures are data URIs. Whatever is put into a template is escaped.
"""

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def page_templates(package: str) -> "Environment":
    """Templates that lie beside a package's modules, and those of this folder.

    Args:
        package: dotted name, `data_prep.report`.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader(
            [PackageLoader(package, ""), PackageLoader("data_prep.common.pages", "")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A file as an address that holds the file itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
