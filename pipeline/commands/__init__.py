"""What the command line does with one run: train, evaluate, export, draw its calibration."""
