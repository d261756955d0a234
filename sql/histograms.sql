-- Purpose: how confident a generation's teacher was of each class, in 50 steps of 0.02, for the table `histograms`; 0.02
--          itself counts in the second step.
-- Inputs:  stored_labels.
-- Grain:   one row per split, class and step that holds an image, ordered; step counts from 0.
-- Parameters: $generation, $basis.
select
    $generation::SMALLINT as generation, split, label,
    -- in whole millionths, because 0.58 * 50 is not 29 in floating point
    least(round(confidence::DOUBLE * 1000000)::BIGINT // 20000, 49)::SMALLINT as step,
    count(*) as images,
    $basis::VARCHAR as basis
from stored_labels
where generation = $generation
group by all
order by split, label, step;
