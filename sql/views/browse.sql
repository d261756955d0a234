-- Purpose: the labels of each generation sorted by split, class and confidence; made when it is published, or by
--          `curator index`.
-- Inputs:  stored_browse, stored_classes (the tables' files).
-- Grain:   one row per image and generation.
select
    b.image_id, b.generation::INT as generation, b.split, b.label::INT as label, c.class_name,
    b.confidence, b.margin, b.entropy, b.uri, b.shard, b.byte_offset, b.byte_length
from stored_browse as b
left join stored_classes as c using (label);
