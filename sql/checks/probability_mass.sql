-- Purpose: rows whose soft label does not sum to 1. Imports may be off by 1e-3, and rounding the kept probabilities to
--          10 mantissa bits moves the sum by less than 5e-4; 2e-3 has room for both. NaN and null are off too.
-- Inputs:  rows.
-- Grain:   one row per such row; none in a sound manifest.
select image_id, uri, label, mass
from (select image_id, uri, label, list_sum(top_probs)::DOUBLE + tail as mass from rows)
where coalesce(not mass between 1 - 2e-3 and 1 + 2e-3, true)
order by image_id;
