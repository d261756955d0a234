-- Purpose: images of the pool whose class is short and that were not selected.
-- Inputs:  said (stored_labels, or stored_browse, which is smaller and sorted by class), short_classes (label, gain), kept,
--          settled, holdout_twins.
-- Grain:   one row per image, the highest value first; see worklist.sql for the value.
-- Parameters: $generation, $label (only this class; null for all), $least (no lower value), $limit.
select
    l.image_id, l.label::INT as label, 'close call' as reason,
    l.confidence::DOUBLE * (1 - l.margin::DOUBLE) * s.gain as value, null::VARCHAR as detail, l.confidence, 0 as copies
from said as l
join short_classes as s on s.label = l.label
where l.generation = $generation and l.split = 'unlabeled'
  and l.confidence::DOUBLE * (1 - l.margin::DOUBLE) * s.gain >= $least and ($label::INT is null or l.label = $label)
  and l.image_id not in (select image_id from kept)
  and l.image_id not in (select image_id from settled)
  and l.image_id not in (select image_id from holdout_twins)
order by value desc, l.image_id
limit $limit;
