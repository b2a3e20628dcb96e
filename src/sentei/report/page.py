"""One self-contained HTML page of a run, or of a folder of runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sentei.errors import ConfigError, SenteiError
from sentei.extras import required
from sentei.report.blocks import Page
from sentei.report.charts import column_swatch, draw, swatch
from sentei.report.folder_page import folder_page
from sentei.report.reading import RunFiles
from sentei.report.run_page import run_page
from sentei.runfiles import CONFIG, is_finished, is_started, resume_command

SHOWN = ("prune", "train")
DEPTH = 4
"""Folders below one that is reported, in which runs are looked for."""


def report(folder: str | Path) -> str:
    """HTML of a finished run, or of all finished runs below a folder: one file that needs nothing else, nor a script.

    >>> Path("report.html").write_text(report("runs/half"))  # doctest: +SKIP

    The same run gives the same text. Raises ConfigError where there is no finished run, CheckpointError for damaged
    files, ExportError where jinja2 is missing.
    """
    required("jinja2", "report", "a report")
    path = Path(folder)
    return rendered(run_page(_read(path)) if is_started(path) else _of_folder(path))


def _read(folder: Path) -> RunFiles:
    if not is_finished(folder):
        raise ConfigError(f"the run in {folder} is not finished. Go on with:  {resume_command(folder)}")
    run = RunFiles.read(folder)
    if run.summary["verb"] not in SHOWN:
        raise ConfigError(
            f"{folder} is a run of `sentei {run.summary['verb']}`; a report shows those of `sentei prune` and "
            "`sentei train`"
        )
    return run


def _of_folder(folder: Path) -> Page:
    """All finished runs below a folder; what cannot be shown is named with its reason."""
    if not folder.is_dir():
        raise ConfigError(f"there is no run directory {folder}, nor a folder of runs")
    runs: list[RunFiles] = []
    left_out: dict[str, str] = {}
    for place in sorted(_runs_below(folder, DEPTH)):
        try:
            runs.append(_read(place))
        except SenteiError as error:
            left_out[place.relative_to(folder).as_posix()] = str(error)
    if not runs:
        why = "".join(f"\n  {name}: {reason}" for name, reason in left_out.items())
        raise ConfigError(f"{folder} is neither a run directory nor a folder with finished runs in it{why}")
    return folder_page(folder, runs, left_out)


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """Folders of runs, but not what a run keeps in its own folder."""
    for place in folder.iterdir():
        if place.is_dir() and not place.is_symlink() and not place.name.startswith("."):
            if (place / CONFIG).is_file():
                yield place
            elif depth > 1:
                yield from _runs_below(place, depth - 1)


def rendered(page: Page) -> str:
    """The HTML of a page. Whatever it shows is escaped; drawings are ours, and have escaped their texts themselves."""
    jinja2 = required("jinja2", "report", "a report")
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("sentei.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    templates.globals |= {"draw": draw, "swatch": swatch, "column_swatch": column_swatch}
    html: str = templates.get_template("page.html.j2").render(page=page)
    return html
