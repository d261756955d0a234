-- Purpose: the temperature that counts for a generation: the newest fit of the model that labeled it.
-- Inputs:  stored_calibrations.
-- Grain:   one row, or none where nothing was fitted.
-- Parameters: $generation, $model.
select model, generation::INT as generation, temperature, nll_before, nll_after, ece_before, ece_after, images, fitted_at
from stored_calibrations
where generation = $generation and model = $model
order by fitted_at desc, temperature
limit 1;
