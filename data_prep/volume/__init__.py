"""One file of a volume -> slices on a millimetre grid."""
