-- Purpose: every image the store knows, in every split.
-- Inputs:  stored_images, stored_classes (the tables' files).
-- Grain:   one row per image.
select
    i.image_id, i.uri, i.shard, i.byte_offset, i.byte_length, i.split,
    i.label::INT as label, c.class_name,
    i.width, i.height, i.content_hash, i.phash, i.status, i.problem, i.added_at
from stored_images as i
left join stored_classes as c using (label);
