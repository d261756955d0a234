"""Figures of a model: accuracy, calibration, robustness."""
