"""Reconstruction terms, one file each: one protocol (`base`), one registry (`registry`)."""
