-- Purpose: one page of the images that people decided on, the newest decision first.
-- Inputs:  found (gallery.sql), latest_reviews.
-- Grain:   one row per image.
-- Parameters: $first (rows to pass over), $size.
select f.*
from found as f
join latest_reviews as r on r.image_id = f.image_id
order by r.decided_at desc, f.image_id
limit $size offset $first;
