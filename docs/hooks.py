"""What mkdocs does besides: pages that lie elsewhere in the repository, tutorials, links, and formulas as MathML."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "experiments/README.md": "experiments.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/first_network.ipynb": "first_network.md",
    "examples/own_network.ipynb": "own_network.md",
    "examples/any_network.ipynb": "any_network.md",
    "examples/decide.ipynb": "decide.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere in the repository; notebooks as pages, with what they printed and drew."""
    for source, page in ELSEWHERE.items():
        if source.endswith(".ipynb"):
            text, pictures = as_page(json.loads((ROOT / source).read_text(encoding="utf-8")), Path(page).stem)
            files.append(File.generated(config, page, content=text))
            for name, content in pictures.items():
                files.append(File.generated(config, name, content=content))
        else:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def as_page(notebook: Any, stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their places."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"``` {{ .python }}\n{source}\n```")
        outputs = cell.get("outputs", [])
        if printed := "".join("".join(output.get("text", "")) for output in outputs):
            parts.append(f"``` {{ .text .output }}\n{printed.rstrip()}\n```")
        for output in outputs:
            if "image/png" in output.get("data", {}):
                name = f"images/{stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![What this cell draws]({name})")
    return "\n\n".join(parts), pictures


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Give links between pages the places that the pages have here; what is no page stays as text."""
    here = (ROOT / "docs" / page.file.src_uri).parent
    for source, name in ELSEWHERE.items():
        if page.file.src_uri == name:
            here = (ROOT / source).parent

    def link(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        path = (here / target).resolve()
        if not path.exists():
            return match[0]  # mkdocs reports it
        inside = path.relative_to(ROOT).as_posix()
        place = ELSEWHERE.get(inside) or ELSEWHERE.get(f"{inside}/README.md") or inside.removeprefix("docs/")
        known = inside.startswith("docs/") or place in ELSEWHERE.values()
        return f"{image}[{text}]({place}{anchor or ''})" if known else text

    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)", link, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Turn each formula into MathML, which a browser draws without a script."""

    def formula(match: re.Match[str]) -> str:
        latex = match[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return str(convert(latex, display="block" if match[1] == "[" else "inline"))

    return re.sub(r'<(?:span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</(?:span|div)>', formula, html, flags=re.S)
