-- Purpose: which trusted class is taken for which on the holdout, in both generations, as a matrix of the classes that are
--          confused most.
-- Inputs:  stored_drift.
-- Grain:   one row per trusted class and other class that a teacher gave, both among the $most classes with the most
--          mistakes; the most mistakes of the later one first.
-- Parameters: $generation, $label (trusted or given; null for all), $most (classes).
with
judged as (
    select * from stored_drift
    where generation = $generation and truth is not null and label_before is not null and label_after is not null
),
given as (
    select truth, label_before as label, images as before, 0 as after from judged
    union all
    select truth, label_after, 0, images from judged
),
mistakes as (
    select truth::INT as truth, label::INT as label, sum(before)::BIGINT as before, sum(after)::BIGINT as after
    from given
    where truth <> label and ($label::INT is null or $label in (truth, label))
    group by truth, label
),
busy as (
    select label
    from (select truth as label, before + after as n from mistakes union all select label, before + after from mistakes)
    group by label
    order by sum(n) desc, label
    limit $most
)
select truth, label, before, after
from mistakes
where truth in (select label from busy) and label in (select label from busy)
order by after desc, before desc, truth, label;
