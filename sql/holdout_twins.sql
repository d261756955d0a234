-- Purpose: images that must never be trained on because a holdout image has the same bytes.
-- Inputs:  stored_images. Images that were never scanned have no hash and cannot be found here.
-- Grain:   one row per image outside the holdout.
select image_id
from stored_images
where split <> 'holdout'
  and content_hash in (select content_hash from stored_images where split = 'holdout' and content_hash is not null);
