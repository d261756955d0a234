-- Purpose: the rank of an image among those that the policy lets into its class, and how many these are.
-- Inputs:  eligible.
-- Grain:   one row.
-- Parameters: $image_id, $label, $score.
select
    count(*) filter (score > $score::FLOAT or score = $score::FLOAT and image_id <= $image_id) as rank,
    count(*) as of_class
from eligible
where label = $label;
