-- Purpose: the images that training takes trusted labels from: the labeled split, without pictures that cannot be read
--          and without twins of holdout images.
-- Inputs:  stored_images, holdout_twins.
-- Grain:   one row per image, ordered by image_id so that the order does not depend on the import.
select image_id, uri, shard, byte_offset, byte_length, label::INT as label, status
from stored_images
where split = 'labeled'
  and status <> 'unreadable'
  and image_id not in (select image_id from holdout_twins)
order by image_id;
