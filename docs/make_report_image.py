"""Draws docs/images/report.png: the report of three parties that train a model.

``python docs/make_report_image.py`` runs the demo and takes the picture with a headless Chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FILE = Path(__file__).parent / "images" / "report.png"
WIDTH, HEIGHT = 1120, 1500
FRAME = 24
"""Pixels at the left and right edges of the page that the picture leaves out."""


def main() -> None:
    """Run the demo, take the picture."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("no chromium: run .ci/install-chromium")
    with tempfile.TemporaryDirectory() as directory:
        page, picture = Path(directory) / "report.html", Path(directory) / "report.png"
        demo = [sys.executable, "-m", "redislink", "demo", "--json", "--report", str(page)]
        subprocess.run(demo, check=True, stdout=subprocess.DEVNULL)
        # The name of a demo's session is random.
        page.write_text(re.sub(r"demo-[0-9a-f]{8}", "hospitals", page.read_text()))
        subprocess.run(
            [
                *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--hide-scrollbars", "--blink-settings=preferredColorScheme=1"),
                *(f"--user-data-dir={directory}/profile", f"--window-size={WIDTH},{HEIGHT}"),
                *(f"--screenshot={picture}", page.as_uri()),
            ],
            check=True,
            capture_output=True,
        )
        image = Image.open(picture).convert("RGB")
        image = image.crop((FRAME, 0, WIDTH - FRAME, HEIGHT))
        image.quantize(64, dither=Image.Dither.NONE).save(FILE, optimize=True)


if __name__ == "__main__":
    main()
