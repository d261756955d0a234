-- Purpose: what a policy returned: the range of its scores, and rows that cannot be used.
-- Inputs:  policy_rows (a policy's answer, kept in a file).
-- Grain:   one row.
-- Parameters: $classes.
select
    min(score) as low, max(score) as high,
    count(*) filter (image_id is null or label is null or confidence is null or score is null or weight is null) as nulls,
    -- differences of scores must not overflow; NaN is above every number
    count(*) filter (abs(score) > 1e30 or not isfinite(weight)) as not_finite,
    count(*) filter (weight not between 0 and 1e6) as off,
    count(*) filter (label not between 0 and $classes - 1) as outside
from policy_rows;
