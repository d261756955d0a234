-- Purpose: the confusion between two generations: from which class to which the most images went.
-- Inputs:  stored_drift, stored_classes.
-- Grain:   one row per class before and class after that differ, the most images first.
-- Parameters: $generation, $split, $label (of both or either; null for all), $limit.
with flips as (
    select
        label_before, label_after, sum(images)::BIGINT as images,
        sum((images * confidence_before * 1e6)::BIGINT)::DOUBLE / 1e6 / sum(images) as confidence_before,
        sum((images * confidence_after * 1e6)::BIGINT)::DOUBLE / 1e6 / sum(images) as confidence_after
    from stored_drift
    where generation = $generation and split = $split and label_before <> label_after
      and ($label::INT is null or $label in (label_before, label_after))
    group by label_before, label_after
    order by images desc, label_before, label_after
    limit $limit
)
select b.class_name as class_before, a.class_name as class_after, f.images, f.confidence_before, f.confidence_after
from flips as f
join stored_classes as b on b.label = f.label_before
join stored_classes as a on a.label = f.label_after
order by f.images desc, f.label_before, f.label_after;
