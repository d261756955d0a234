-- Purpose: from which class to which images went between two generations, as a matrix of the classes that changed most.
-- Inputs:  stored_drift.
-- Grain:   one row per class before and class after that differ, both among the $most classes with the most images that
--          came or went; the most images first.
-- Parameters: $generation, $split, $label (of both or either; null for all), $most (classes).
with
flips as (
    select label_before::INT as label_before, label_after::INT as label_after, sum(images)::BIGINT as images
    from stored_drift
    where generation = $generation and split = $split and label_before <> label_after
      and ($label::INT is null or $label in (label_before, label_after))
    group by label_before, label_after
),
busy as (
    select label
    from (select label_before as label, images from flips union all select label_after, images from flips)
    group by label
    order by sum(images) desc, label
    limit $most
)
select label_before, label_after, images
from flips
where label_before in (select label from busy) and label_after in (select label from busy)
order by images desc, label_before, label_after;
