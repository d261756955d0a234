-- Purpose: the images that two generations disagree on most: other classes first, those that both teachers were surest
--          of before the rest, then the confidences that moved furthest, see sql/changes.sql.
-- Inputs:  stored_changes, stored_classes.
-- Grain:   one row per image.
-- Parameters: $generation, $split, $label (in the class before or after; null for all), $limit.
with worst as (
    select * from stored_changes
    where generation = $generation and split = $split
      and ($label::INT is null or label_before = $label or label_after = $label)
    order by severity desc, image_id
    limit $limit
)
select
    w.image_id, w.uri, b.class_name as class_before, a.class_name as class_after,
    w.confidence_before, w.confidence_after, w.severity, w.shard, w.byte_offset, w.byte_length
from worst as w
join stored_classes as b on b.label = w.label_before
join stored_classes as a on a.label = w.label_after
order by w.severity desc, w.image_id;
