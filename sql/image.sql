-- Purpose: what the store knows of one image.
-- Inputs:  stored_images, stored_classes.
-- Grain:   one row, or none.
-- Parameters: $image_id.
select
    i.image_id, i.uri, i.shard, i.byte_offset, i.byte_length, i.split, c.class_name as trusted_class,
    i.width, i.height, i.content_hash, i.phash, i.status, i.problem, i.added_at
from stored_images as i
left join stored_classes as c on c.label = i.label
where i.image_id = $image_id;
