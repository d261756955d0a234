-- Purpose: the holdout images of one class that a generation takes for another, the most confident mistakes first.
-- Inputs:  stored_labels, stored_images.
-- Grain:   one row per image.
-- Parameters: $generation, $truth, $given (class indexes), $limit, $offset.
select l.image_id, i.uri, i.shard, i.byte_offset, i.byte_length, l.confidence
from (
    select image_id, confidence from stored_labels
    where generation = $generation and label = $given and split = 'holdout'
) as l
join (
    select image_id, uri, shard, byte_offset, byte_length from stored_images where split = 'holdout' and label = $truth
) as i on i.image_id = l.image_id
order by l.confidence desc, l.image_id
limit $limit offset $offset;
