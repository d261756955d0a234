-- Purpose: images outside the holdout that are like one of its images.
-- Inputs:  stored_duplicates, stored_images, stored_labels, kept, settled.
-- Grain:   one row per image, the highest value first; see worklist.sql for the value.
-- Parameters: $generation, $label (only this class; null for all), $least (no lower value), $limit.
select
    d.image_id, coalesce(i.label, l.label)::INT as label, 'leak' as reason, 20::DOUBLE as value,
    format('like the holdout image {} ({})', d.holdout_twin, d.kind) as detail, l.confidence, k.copies
from stored_duplicates as d
join stored_images as i on i.image_id = d.image_id
left join stored_labels as l on l.image_id = d.image_id and l.generation = $generation
left join kept as k on k.image_id = d.image_id
where d.leak and d.image_id not in (select image_id from settled)
  and 20 >= $least and ($label::INT is null or coalesce(i.label, l.label) = $label)
order by d.image_id
limit $limit;
