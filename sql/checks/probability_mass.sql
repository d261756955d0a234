-- Purpose: rows whose soft label does not sum to 1. Imports may be off by 1e-3, and rounding moves each probability by
--          2^-12 at most, or by 2^-6 of itself where that is less (curator/generations/softlabels.py). NaN and null are off too.
-- Inputs:  rows.
-- Grain:   one row per such row; none in a sound manifest.
select image_id, uri, label, mass
from (
    select
        image_id, uri, label, list_sum(top_probs)::DOUBLE + tail as mass,
        1e-3 + list_sum(list_transform(list_append(top_probs, tail), lambda p: least(p / 64, 1 / 4096))) as most
    from rows
)
where coalesce(not mass between 1 - most and 1 + most, true)
order by image_id;
