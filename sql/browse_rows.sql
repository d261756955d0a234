-- Purpose: a generation's labels with what it takes to show the pictures, still in no order: joined and sorted in one go,
--          many labels need much more memory.
-- Inputs:  stored_labels, stored_images.
-- Grain:   one row per image.
-- Parameters: $generation.
select
    l.image_id, l.split, l.label, l.confidence, l.margin, l.entropy,
    i.uri, i.shard, i.byte_offset, i.byte_length
from (
    select image_id, split, label, confidence, margin, entropy from stored_labels where generation = $generation
) as l
join stored_images as i on i.image_id = l.image_id;
