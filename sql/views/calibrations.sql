-- Purpose: the temperatures that correct the confidences of models, every fit of them.
-- Inputs:  stored_calibrations (the table's files).
-- Grain:   one row per fit; the newest of a model counts, see sql/calibration.sql.
select model, generation::INT as generation, temperature, nll_before, nll_after, ece_before, ece_after, images, fitted_at
from stored_calibrations;
