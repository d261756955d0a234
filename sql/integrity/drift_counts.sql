-- Purpose: classes of which the comparison of two generations counts other images than have labels. A comparison that was
--          made from other labels than there are now is made again at the next question, and not looked at.
-- Inputs:  stored_drift, stored_labels, bases (family, generation, previous, basis).
-- Grain:   one row per later generation, side and class that differs; none in a sound store.
-- Mend:    curator doctor --mend
with
kept as (
    select distinct b.generation, b.previous, b.basis
    from bases as b
    join stored_drift as d on d.generation = b.generation and d.basis = b.basis
    where b.family = 'drift'
),
given as (
    select k.generation, side.name as side, l.label, count(*) as images
    from kept as k
    join (values ('before'), ('after')) as side(name) on true
    join stored_labels as l on l.generation = if(side.name = 'before', k.previous, k.generation)
    group by all
),
counted as (
    select d.generation, side.name as side, if(side.name = 'before', label_before, label_after) as label,
        sum(d.images)::BIGINT as images
    from stored_drift as d
    join (values ('before'), ('after')) as side(name) on true
    where (d.generation, d.basis) in (select (generation, basis) from kept)
    group by all
)
select generation, side, label, g.images as labels, c.images as counted
from given as g
full join (from counted where label is not null) as c using (generation, side, label)
where g.images is distinct from c.images
order by generation, side, label;
