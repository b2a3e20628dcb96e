"""Examples in docstrings, which begin with >>>, become blocks of code on the site."""

import re
from typing import Any

from griffe import Extension, Object

BLOCK = re.compile(r"(?:^>>> .*\n?)(?:^(?!\s*$).*\n?)*", re.M)


class ExamplesInDocstrings(Extension):
    """Fences each example, from its first line to the next empty one."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = BLOCK.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    code = re.sub(r"\s*# doctest: \+\w+", "", found.group()).rstrip()
    return f"```pycon\n{code}\n```\n"
