-- Purpose: pairs of classes of which the list of changed images is longer or shorter than the comparison counts.
-- Inputs:  stored_changes, stored_drift, bases (family, generation, previous, basis).
-- Grain:   one row per later generation, class before and class after; none in a sound store.
-- Mend:    curator doctor --mend
with
kept as (
    select distinct b.generation, b.basis
    from bases as b
    join stored_drift as d on d.generation = b.generation and d.basis = b.basis
    where b.family = 'drift'
),
counted as (
    select generation, label_before, label_after, sum(images)::BIGINT as images
    from stored_drift
    where label_before <> label_after and (generation, basis) in (select (generation, basis) from kept)
    group by all
),
listed as (
    select generation, label_before, label_after, count(*) as images
    from stored_changes
    where label_before <> label_after and (generation, basis) in (select (generation, basis) from kept)
    group by all
)
select generation, label_before, label_after, c.images as counted, l.images as listed
from counted as c
full join listed as l using (generation, label_before, label_after)
where c.images is distinct from l.images
order by generation, label_before, label_after;
