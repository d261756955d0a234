-- Purpose: how confident the teacher was of a set of images, in 50 steps of 0.02; 0.02 itself counts in the second step.
-- Inputs:  judged (confidence, copies).
-- Grain:   one row per step that holds an image, ordered; step counts from 0.
select
    -- in whole millionths, because 0.58 * 50 is not 29 in floating point
    least(round(confidence::double * 1000000)::bigint // 20000, 49)::int as step,
    count(*) as images,
    sum(copies)::bigint as rows
from judged
group by 1
order by 1;
