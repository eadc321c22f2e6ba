"""Writes the page of a scored run: one file, whatever it shows inside it."""

from pathlib import Path

from data_prep import page_templates
from pipeline.evaluation.report import REPORT
from pipeline.evaluation.report.page import Page
from pipeline.files import atomic_file


def write_report(page: Page) -> Path:
    """Write the page into its folder, atomically, and return the file.

    The figures that it shows must have been written before.
    """
    path = page.folder / REPORT
    template = page_templates("pipeline.evaluation.report").get_template(REPORT)
    with atomic_file(path) as stream:
        for piece in template.generate(page=page, about=page.about):
            stream.write(piece.encode())
    return path
