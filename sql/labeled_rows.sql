-- Purpose: the images that training takes trusted labels from: the labeled split as people left it, without pictures that
--          cannot be read and without twins of holdout images.
-- Inputs:  trusted, holdout_twins.
-- Grain:   one row per image, ordered by image_id so that the order does not depend on the import. source is 'review'
--          where a review gave the class, else 'labeled'.
select image_id, uri, shard, byte_offset, byte_length, label, source, status
from trusted
where split = 'labeled'
  and status <> 'unreadable'
  and image_id not in (select image_id from holdout_twins)
order by image_id;
