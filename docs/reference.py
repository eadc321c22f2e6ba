"""Writes docs/keys.md and docs/api.md from the code: `make docs-reference`.

Keys come from the dataclasses of the configuration, with their defaults and docstrings; the Python
interface from the names that `import data_prep` and `import pipeline` give, with theirs. With
--check nothing is written, and the exit code is 1 where a page is not as the code has it.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

import data_prep
import pipeline
from pipeline.config import Config
from pipeline.models.config import Level

DOCS = Path(__file__).parent
WRITTEN = "*Written by `make docs-reference` from the code: change it there.*"
SOURCES = {
    ("hcp",): "`hcp`",
    ("hcp", "celeba", "cifar10"): "all but `template_cohort`",
    ("hcp", "template_cohort"): "volumes",
    ("template_cohort",): "`template_cohort`",
    ("celeba", "cifar10"): "photographs",
    ("celeba",): "`celeba`",
    ("cifar10",): "`cifar10`",
    ("hcp", "template_cohort", "celeba", "cifar10"): "all",
}

# --- keys ---------------------------------------------------------------------------------------

KEYS = f"""# All keys

Back to the [README](../README.md). {WRITTEN}

Every key of the [configuration](configuration.md), as `section.key` on the command line
(`--training.epochs 50`) and nested in a YAML file. A key marked ° says how the work is done or
where files lie; it may be another when a run is continued. The "usual places" of weights:
[Weights](weights.md).
"""


def keys_page() -> str:
    """docs/keys.md."""
    return KEYS + "".join(_section(field.name, _default(field)) for field in fields(Config))


def _section(name: str, section: Any) -> str:
    """The heading, what the section is, its table, and its sections."""
    kind = type(section)
    of_source = name == "prepare"
    head = ["key", "default", "what it does"] + (["sources that read it"] if of_source else [])
    rows = [head, ["---"] * len(head)]
    inner: list[tuple[str, Any]] = []
    told = described(kind)
    for field in fields(kind):
        value = _default(field)
        if is_dataclass(value):
            inner.append((f"{name}.{field.name}", value))
            continue
        row = [f"`{field.name}`{_mark(field)}", f"`{_yaml(value)}`", told[field.name]]
        row[2] += _choices(get_type_hints(kind)[field.name])
        rows.append(row + ([SOURCES[field.metadata["sources"]]] if of_source else []))
    summary = inspect.getdoc(kind).partition("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr]
    text = f"\n## {name}\n\n{_plain(summary)}\n\n" + "".join(_row(row) for row in rows)
    if name == "model":
        text += _levels()
    return text + "".join(_section(*item) for item in inner)


def _levels() -> str:
    """The keys of an item of model.levels."""
    told = described(Level)
    rows = [["key of a level", "default", "what it does"], ["---"] * 3]
    for field in fields(Level):
        value = "–" if field.default is MISSING else f"`{_yaml(field.default)}`"
        rows.append([f"`{field.name}`", value, told[field.name]])
    return (
        "\nAn item of `model.levels`, explained in [the model](method.md#the-model):\n\n"
        + "".join(_row(row) for row in rows)
    )


def described(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass say of its fields, each as one line; "" for nothing."""
    found = {
        item.arg_name: " ".join((item.description or "").split())
        for item in parse_from_object(kind).params
    }
    return {field.name: _plain(found.get(field.name, "")) for field in fields(kind)}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _mark(field: Field) -> str:
    free = field.metadata.get("decides") == "nothing" or field.metadata.get("where")
    return " °" if free else ""


def _default(field: Field) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _yaml(value: Any) -> str:
    """A value as a YAML file would have it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, Level):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        shown = {
            field.name: own[field.name]
            for field in fields(value)
            if own[field.name] != field.default
        }
        return f"{{{', '.join(f'{key}: {_yaml(part)}' for key, part in shown.items())}}}"
    return str(value)


def _choices(hint: Any) -> str:
    """The values that a Literal allows."""
    if get_origin(hint) is not Literal:
        return ""
    return f" One of {', '.join(f'`{value}`' for value in get_args(hint))}."


# --- the Python interface -----------------------------------------------------------------------

API = f"""# Python interface

Back to the [README](../README.md). {WRITTEN}

What `import data_prep` and `import pipeline` give. Each name is loaded when it is first used.
Shapes stand in the annotations: `Float[Tensor, "B C H W"]` is a float tensor of four axes. Terms,
sources and transforms of your own: [Extending](extending.md).
"""
KEYED = {type(_default(field)): field.name for field in fields(Config)} | {Level: "model"}
HEADS = ("Args", "Attributes", "Returns", "Raises", "Example")


def api_page() -> str:
    """docs/api.md."""
    parts = [API]
    for face in (pipeline, data_prep):
        first = inspect.getdoc(face).partition("\n")[0]  # type: ignore[union-attr]
        parts.append(f"\n## {face.__name__}\n\n{_plain(first)}\n")
        parts += [_entry(face, name) for name in sorted(face.__all__, key=str.lower)]
    return "".join(parts)


def _entry(face: ModuleType, name: str) -> str:
    """A name of a face: signature, docstring, and for a class its members."""
    value = inspect.unwrap(getattr(face, name))  # a cached function is the function
    title = f"\n### {face.__name__}.{name}\n\n"
    if inspect.ismodule(value):
        return title + f"{_markdown(value)}\n"
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return title + f"The constant `{_yaml(value)}`.\n"
    text = title + f"```python\n{_signature(value)}\n```\n\n{_markdown(value)}\n"
    if inspect.isclass(value):
        if is_dataclass(value) and "Attributes:" not in (inspect.getdoc(value) or ""):
            text += _fields(value)
        text += "".join(f"\n{member}" for member in _members(value))
    return text


def _fields(kind: type) -> str:
    """Fields of a dataclass that its docstring says something of; keys have a page of their own."""
    if kind in KEYED:
        return f"\nFields: [{KEYED[kind]}](keys.md#{KEYED[kind]}).\n"
    told = {name: text for name, text in described(kind).items() if text}
    listed = "".join(f"- `{name}`: {text}\n" for name, text in told.items())
    return f"\n{listed}" if listed and "Args:" not in (inspect.getdoc(kind) or "") else ""


def _members(kind: type) -> Iterator[str]:
    """Methods and properties that a class itself defines and documents."""
    for name, value in vars(kind).items():
        value = getattr(value, "__func__", value)
        if name.startswith("_") or not getattr(value, "__doc__", None):
            continue
        if isinstance(value, property):
            yield f"`{name}` (property)\n\n{_indented(_markdown(value))}\n"
        elif inspect.isfunction(value):
            yield f"`{_signature(value)}`\n\n{_indented(_markdown(value))}\n"


def _indented(text: str) -> str:
    """As a quotation, which sets a member's text apart from its name."""
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _signature(value: Any) -> str:
    """`def`'s or `class`'s line as the source has it, without decorators."""
    if inspect.isclass(value):
        bases = [base.__name__ for base in value.__bases__ if base is not object]
        return f"class {value.__name__}" + (f"({', '.join(bases)})" if bases else "")
    value = inspect.unwrap(value)
    tree = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    result = f" -> {ast.unparse(tree.returns)}" if tree.returns else ""
    arguments = ast.unparse(tree.args).removeprefix("self, ").removeprefix("cls, ")
    return f"{tree.name}({arguments if arguments not in ('self', 'cls') else ''}){result}"


def _markdown(value: Any) -> str:
    """A docstring in Google's style as Markdown."""
    text = inspect.getdoc(value) or ""
    pieces = re.split(rf"^({'|'.join(HEADS)}):$\n?", text, flags=re.M)
    parts = [_prose(pieces[0])]
    for head, body in zip(pieces[1::2], pieces[2::2], strict=True):
        inside, after = _split_section(body)
        if head == "Args" and value in KEYED:
            pass
        elif head == "Example":
            parts.append(f"```python\n{inside}\n```")
        elif head == "Returns":
            parts.append(f"*Returns* {_prose(inside)}")
        else:
            parts.append(f"*{head}*\n\n{_items(inside)}")
        parts.append(_prose(after))
    return "\n\n".join(part for part in parts if part)


def _split_section(body: str) -> tuple[str, str]:
    """The indented lines of a section without their indent, and what follows them."""
    lines = body.splitlines()
    end = next((n for n, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return textwrap.dedent("\n".join(lines[:end])).strip(), "\n".join(lines[end:])


def _items(text: str) -> str:
    """`name: what it is`, with continuation lines, as a list."""
    items: list[str] = []
    for line in text.splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        elif line:
            name, colon, rest = line.partition(": ")
            items.append(f"- `{name}`: {_plain(rest)}" if colon else f"- {_plain(line)}")
    return "\n".join(items)


def _prose(text: str) -> str:
    """Paragraphs; indented ones, formulas for the most part, as code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith(" ") or re.search(r"^\s{2,}", paragraph, re.M):
            parts.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
        elif paragraph:
            parts.append(_plain(" ".join(paragraph.split())))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Text whose stars and brackets Markdown is to leave alone, but for code."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if n % 2 else re.sub(r"([*<\[\]])", r"\\\1", piece) for n, piece in enumerate(pieces)
    )


PAGES = {"keys.md": keys_page, "api.md": api_page}


def main(check: bool) -> int:
    """Write the pages, or name those that are not as the code has them."""
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{'not as the code has it' if check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
