-- Purpose: the images that a generation's teacher has not labeled yet, split by split, in the order in which they lie
--          on the disk.
-- Inputs:  stored_images, stored_labels, staged (image_id of labels written but not yet published).
-- Grain:   one row per image.
-- Parameters: $generation, $splits.
select image_id, uri, shard, byte_offset, byte_length, split
from stored_images
where list_contains($splits, split)
  and status <> 'unreadable'
  and image_id not in (select image_id from stored_labels where generation = $generation)
  and image_id not in (select image_id from staged)
order by split, shard, byte_offset, uri;
