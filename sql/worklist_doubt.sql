-- Purpose: images of the manifest of which the teacher was not sure.
-- Inputs:  kept, settled.
-- Grain:   one row per image, the highest value first; see worklist.sql for the value.
-- Parameters: $generation, $label (only this class; null for all), $least (no lower value), $limit.
select
    image_id, label::INT as label, 'doubt' as reason, (1 - confidence::DOUBLE) * copies as value, null::VARCHAR as detail,
    confidence, copies
from kept
where image_id not in (select image_id from settled)
  and (1 - confidence::DOUBLE) * copies >= $least and ($label::INT is null or label = $label)
order by value desc, image_id
limit $limit;
