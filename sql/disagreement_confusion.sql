-- Purpose: the confusion on the holdout in both generations: which class is taken for which, how often before and now.
-- Inputs:  stored_drift, stored_classes.
-- Grain:   one row per trusted class and other class that a teacher gave, the most frequent now first.
-- Parameters: $generation, $label (trusted or given; null for all), $limit.
with judged as (
    select * from stored_drift
    where generation = $generation and truth is not null and label_before is not null and label_after is not null
),
given as (
    select truth, label_before as label, images as before, 0 as after from judged
    union all
    select truth, label_after, 0, images from judged
),
confused as (
    select truth, label, sum(before)::BIGINT as before, sum(after)::BIGINT as after
    from given
    where truth <> label and ($label::INT is null or $label in (truth, label))
    group by truth, label
    order by after desc, before desc, truth, label
    limit $limit
)
select t.class_name as truth, g.class_name as taken_for, c.before, c.after
from confused as c
join stored_classes as t on t.label = c.truth
join stored_classes as g on g.label = c.label
order by c.after desc, c.before desc, c.truth, c.label;
