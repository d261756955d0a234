-- Purpose: what `curator evaluate` found of each model, the newest of each figure.
-- Inputs:  stored_evaluations (the table's files).
-- Grain:   one row per model, suite, kind, level and measure.
select model, suite, kind, level, measure, value, low, high, images, seed, basis, options, "at"
from stored_evaluations
qualify row_number() over (partition by model, suite, kind, level, measure order by "at" desc, value) = 1;
