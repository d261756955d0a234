-- Purpose: what stands in for the table `browse` where it was not made for a generation; slower, for labels lie in image
--          order.
-- Inputs:  stored_labels, stored_images.
-- Grain:   one row per image and generation.
select
    l.image_id, l.generation, l.split, l.label, l.confidence, l.margin, l.entropy,
    i.uri, i.shard, i.byte_offset, i.byte_length
from stored_labels as l
join stored_images as i on i.image_id = l.image_id;
