-- Purpose: how many images of the pool a generation puts into each class, and how sure it is of them.
-- Inputs:  stored_labels, stored_classes.
-- Grain:   one row per class of the store, by label; confidence is the mean, null without images.
-- Parameters: $generation.
with pool as (
    select
        label, count(*) as images,
        -- in whole billionths: the last digits of a sum of floats depend on the order of its parts
        sum((confidence::DOUBLE * 1e9)::BIGINT)::DOUBLE / 1e9 / count(*) as confidence
    from stored_labels
    where generation = $generation and split = 'unlabeled'
    group by label
)
select c.label::INT as label, c.class_name, coalesce(p.images, 0) as images, p.confidence
from stored_classes as c
left join pool as p on p.label = c.label
order by c.label;
