"""`sentei report`: one HTML page of a run, or of a folder of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sentei.atomic import write_atomic
from sentei.cli.networks import runs_near
from sentei.cli.options import Output
from sentei.cli.running import print_json
from sentei.cli.saved import resume_hint
from sentei.console import say
from sentei.errors import ConfigError
from sentei.report.page import report
from sentei.runfiles import REPORT, is_finished, is_started


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page: of a finished run, or of all finished runs below a folder.

    The page needs no network and no script. The same run gives the same page.
    """

    place: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN|DIR")]
    """A finished run of `sentei prune` or `sentei train`, or a folder that holds such runs."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write the page; report.html in RUN or DIR unless given."""
    output: Output = field(default_factory=Output)

    def execute(self) -> None:
        if not self.place.is_dir():
            raise ConfigError(f"there is no folder {self.place}{runs_near(self.place)}")
        if is_started(self.place) and not is_finished(self.place):
            raise ConfigError(f"the run in {self.place} is not finished. Go on with:  {resume_hint(self.place)}")
        file = self.place / REPORT if self.out is None else self.out
        if file.is_dir():
            raise ConfigError(f"--out {file} is a folder; give a file, for instance {file / REPORT}")
        page = report(self.place).encode()
        write_atomic(file, page)
        if self.output.as_json:
            print_json({"report": str(file), "bytes": len(page)})
        else:
            say(f"Report: {file} ({len(page) / 1000:,.0f} kB)")
