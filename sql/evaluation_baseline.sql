-- Purpose: a model's figures of one suite on given images, to compare another model's with.
-- Inputs:  stored_evaluations.
-- Grain:   one row per kind, level and measure, the newest.
-- Parameters: $model, $suite, $basis, $parameters (whose parameters the pictures were changed with; '' where none were).
select kind, level, measure, value
from stored_evaluations
where model = $model and suite = $suite and basis = $basis
  and coalesce(json_extract_string(options, '$.parameters'), '') = $parameters
qualify row_number() over (partition by kind, level, measure order by "at" desc, value) = 1
order by all;
