-- Purpose: the images that a model is evaluated on.
-- Inputs:  trusted.
-- Grain:   one row per image, ordered by image_id.
select image_id, uri, shard, byte_offset, byte_length, label
from trusted
where split = 'holdout' and status <> 'unreadable'
order by image_id;
