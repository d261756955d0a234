-- Purpose: classes of which the counts of confidences for the app are others than those of the labels.
-- Inputs:  stored_histograms, stored_labels, bases (as in browse_missing.sql).
-- Grain:   one row per generation, split and class that differs; none in a sound store.
-- Mend:    curator doctor --mend
with
kept as (
    select distinct b.generation, b.basis
    from bases as b
    join stored_histograms as h on h.generation = b.generation and h.basis = b.basis
    where b.family = 'browse'
),
given as (
    select generation, split, label, count(*) as images
    from stored_labels
    where generation in (select generation from kept)
    group by all
),
counted as (
    select generation, split, label, sum(images)::BIGINT as images
    from stored_histograms
    where (generation, basis) in (select (generation, basis) from kept)
    group by all
)
select generation, split, label, g.images as labels, c.images as counted
from given as g
full join counted as c using (generation, split, label)
where g.images is distinct from c.images
order by generation, split, label;
