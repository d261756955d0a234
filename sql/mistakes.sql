-- Purpose: which trusted class is taken for which on the holdout, by the teachers of two generations.
-- Inputs:  stored_drift.
-- Grain:   one row per trusted class and other class that a teacher gave; how many images before and after.
-- Parameters: $generation, $label (trusted or given; null for all).
with
judged as (
    select * from stored_drift
    where generation = $generation and truth is not null and label_before is not null and label_after is not null
),
given as (
    select truth, label_before as label, images as before, 0 as after from judged
    union all
    select truth, label_after, 0, images from judged
)
select truth::INT as truth, label::INT as label, sum(before)::BIGINT as before, sum(after)::BIGINT as after
from given
where truth <> label and ($label::INT is null or $label in (truth, label))
group by truth, label;
