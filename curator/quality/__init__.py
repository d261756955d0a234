"""How good the data are: wrong labels, calibration, drift, audits."""
