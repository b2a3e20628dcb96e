r"""The picture of a report in docs/report.png: the top of a page, as headless Chromium shows it.

    sentei prune sentei:resnet20-cifar10 --data cifar10 --method abc --macs 0.7 --evaluations 40 --run runs/abc \
        --calibration-images 256 --validation-images 500 --limit 6000 --epochs 4
    python benchmarks/report_picture.py runs/abc docs/report.png

Needs `pip install "sentei[dev]"` and Chromium (apt-get install chromium). Takes a few seconds.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from sentei.report.page import report

SIZE = {"width": 1240, "height": 1320}
COLOURS = 64
"""Enough for a page that is mostly text; keeps the file below 250 kB."""


def picture(folder: Path) -> bytes:
    """The top of a run's page as PNG."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as play:
        page_file = Path(place) / "report.html"
        page_file.write_text(report(folder), encoding="utf-8")
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport=SIZE, color_scheme="light")
        page.goto(page_file.as_uri())
        shown = Image.open(io.BytesIO(page.screenshot()))
        chromium.close()
    out = io.BytesIO()
    shown.convert("RGB").quantize(COLOURS).save(out, format="PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a finished run, or a folder of runs")
    parser.add_argument("out", type=Path, help="the PNG to write")
    given = parser.parse_args()
    given.out.write_bytes(picture(given.folder))
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
