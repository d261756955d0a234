-- Purpose: the images that need no look any more: a decision on them is in force, or the latest is a skip of this generation
--          or a later one; a skip of no generation is a decision taken back.
-- Inputs:  latest_reviews.
-- Grain:   one row per such image.
-- Parameters: $generation.
select image_id
from latest_reviews
where decision <> 'skip' or generation >= $generation;
