-- Purpose: the images that a model is evaluated on.
-- Inputs:  stored_images.
-- Grain:   one row per image, ordered by image_id.
select image_id, uri, shard, byte_offset, byte_length, label::INT as label
from stored_images
where split = 'holdout' and status <> 'unreadable'
order by image_id;
