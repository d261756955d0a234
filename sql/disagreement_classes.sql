-- Purpose: what became of each class between two generations.
-- Inputs:  stored_drift, stored_classes.
-- Grain:   one row per class that either teacher used, the largest share of flips first. Only images count that both have
--          labeled. left_it went to other classes, most of them to mostly_to; came is from others. The confidences are
--          means, of the images that were in the class before, and of those that are in it now.
-- Parameters: $generation, $split.
with counted as (
    select * from stored_drift
    where generation = $generation and split = $split and label_before is not null and label_after is not null
),
earlier as (
    select
        label_before as label, sum(images)::BIGINT as before,
        coalesce(sum(images) filter (label_after <> label_before), 0)::BIGINT as left_it,
        -- whole numbers, because the last digits of a sum of floats depend on the order of its parts
        sum((images * confidence_before * 1e6)::BIGINT)::DOUBLE / 1e6 / sum(images) as confidence_before
    from counted
    group by 1
),
later as (
    select
        label_after as label, sum(images)::BIGINT as after,
        coalesce(sum(images) filter (label_after <> label_before), 0)::BIGINT as came,
        sum((images * confidence_after * 1e6)::BIGINT)::DOUBLE / 1e6 / sum(images) as confidence_after
    from counted
    group by 1
),
destinations as (
    select label_before as label, label_after, sum(images) as images
    from counted
    where label_before <> label_after
    group by 1, 2
),
mostly as (select label, arg_max(label_after, (images, -label_after)) as mostly_to from destinations group by 1)
select
    c.class_name, coalesce(e.before, 0) as before, coalesce(l.after, 0) as after,
    coalesce(e.left_it, 0) as left_it, coalesce(l.came, 0) as came,
    e.left_it / e.before as flipped, m.class_name as mostly_to,
    e.confidence_before, l.confidence_after
from earlier as e
full join later as l on l.label = e.label
join stored_classes as c on c.label = coalesce(e.label, l.label)
left join mostly on mostly.label = e.label
left join stored_classes as m on m.label = mostly.mostly_to
order by flipped desc nulls last, before desc, coalesce(e.label, l.label);
