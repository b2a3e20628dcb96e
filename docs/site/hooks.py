"""What the site adds to the pages of this folder: the README as its start, and a page for each example."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "index.md", content=_from_docs((ROOT / "README.md").read_text())))
    examples = sorted((ROOT / "examples").glob("*.py"))
    for file in examples:
        page = f"# {file.name}\n\n```python\n{file.read_text()}```\n"
        files.append(File.generated(config, f"examples/{file.stem}.md", content=page))
    listed = "\n".join(f"- [{f.name}]({f.stem}.md): {_first_line(f)}" for f in examples)
    files.append(File.generated(config, "examples/index.md", content=f"# Examples\n\n{listed}\n"))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files of the repository lead to their pages."""
    return re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", markdown)


def _from_docs(readme: str) -> str:
    text = readme.replace("](docs/", "](").replace("](examples/)", "](examples/index.md)")
    return text.replace("[LICENSE](LICENSE)", "LICENSE")


def _first_line(file: Path) -> str:
    return file.read_text().split('"""')[1].strip().splitlines()[0]
