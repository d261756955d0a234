-- Purpose: the images that a generation gave another class than the one before it, or a confidence that is far off.
-- Inputs:  stored_changes, stored_classes (the tables' files).
-- Grain:   one row per image and generation.
select
    c.image_id, c.generation::INT as generation, c.split, c.uri, c.shard, c.byte_offset, c.byte_length,
    b.class_name as class_before, a.class_name as class_after, c.confidence_before, c.confidence_after, c.severity
from stored_changes as c
left join stored_classes as b on b.label = c.label_before
left join stored_classes as a on a.label = c.label_after;
