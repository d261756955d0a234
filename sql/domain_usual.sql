-- Purpose: how uncertain a generation's teacher is of images that are known to be of its domain: the entropy that one in
--          twenty of them exceeds.
-- Inputs:  stored_labels.
-- Grain:   one row per split with trusted labels, the holdout first, which no teacher was trained on.
-- Parameters: $generation.
select split, count(*) as images, quantile_disc(entropy, 0.95) as entropy
from stored_labels
where generation = $generation and split in ('holdout', 'labeled')
group by split
order by split;
