"""Builds the documentation as a site, WORK/site: `make docs`.

The pages are copied to WORK/site-source as they lie in the repository, README and benchmarks
included, so that one relative link holds on GitHub and in the site.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
FOLDERS = ("docs", "benchmarks/results", "configs")


def lay_out(folder: Path) -> Path:
    """Copy pages, figures and the files they link to. Returns the configuration's path."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    pages.mkdir(parents=True)
    for name in PAGES:
        shutil.copy(ROOT / name, pages)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, pages / name, ignore=shutil.ignore_patterns("__pycache__"))
    for page in list(pages.rglob("*.md")):
        for link in re.findall(r"\]\(([\w./-]+)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if not target.is_relative_to(pages.resolve()) or target.exists():
                continue
            source = ROOT / target.relative_to(pages.resolve())
            if source.is_file():  # code that a page points to
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    return Path(shutil.copy(ROOT / "docs/zensical.toml", folder))


def main() -> int:
    """Returns zensical's exit code."""
    work = Path(os.environ.get("WORK") or ROOT / "work")
    config = lay_out(work / "site-source")
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "-f", config])
    if done.returncode == 0:
        shutil.rmtree(work / "site", ignore_errors=True)
        (config.parent / "html").rename(work / "site")
        print(f"open {work / 'site/index.html'} in a browser")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
