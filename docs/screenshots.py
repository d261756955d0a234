"""Makes the pictures of the docs: the demo's store in two generations, and Chromium in front of its pages.

    python docs/screenshots.py [--demo DIR]

--demo names a folder that `curator demo` has filled; without it the demo is run in a temporary one. A copy is used.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import CHROMIUM, Tab, serve  # noqa: E402

from curator.storage.store import Store  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
CURATOR = Path(sys.executable).with_name("curator")
QUERY = """select class_name, avg(confidence) as confidence, count(*) as images
from labels where generation = 1 group by all order by 1"""
# Name of the picture, the page, dark or not.
PAGES = (
    ("overview", "", False),
    ("classes", "classes", False),
    ("gallery", "gallery?class=7", False),
    ("image", "image?image_id={image}", False),
    ("review", "review", False),
    ("disagreement", "disagreement", True),
    ("calibration", "calibration", False),
    ("manifests", "manifests", False),
    ("sql", "sql?query={query}", True),
)


def main() -> None:
    """Makes them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--demo", type=Path)
    chosen = options.parse_args()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        demo = Path(folder) / "demo"
        if chosen.demo is None:
            run("demo", demo)
        else:
            shutil.copytree(chosen.demo, demo)
        store = demo / "store"
        for command in (
            ("label", "--model", "student"),
            ("build-manifest", "g1-300", "--per-class", "300", "--min-confidence", "0.8"),
            ("quality", "calibration"),
            ("index",),
        ):
            run(*command, "--store", store)
        image = Store(store).rows("select image_id from labels where generation = 1 order by margin limit 1")[0][
            "image_id"
        ]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with serve(store) as url:
            for name, page, dark in PAGES:
                tab = Tab(browser, url, height=820, dark=dark).open(page.format(image=image, query=quote(QUERY)))
                if name == "sql":
                    tab.page.get_by_role("button", name="Run").click()
                    tab.settle()
                tab.page.wait_for_timeout(1000)  # charts and tables draw themselves after the script
                tab.page.screenshot(path=str(PICTURES / f"{name}.png"))
                tab.page.close()
        browser.close()


def run(*arguments: object) -> None:
    """Runs a command of the tool."""
    subprocess.run([str(CURATOR), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
