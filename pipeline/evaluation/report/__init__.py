"""The page of a scored run: what is gathered for it, how it is laid out, and its writing."""

REPORT = "report.html"
