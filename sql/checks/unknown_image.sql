-- Purpose: rows whose image is not in the store.
-- Inputs:  rows, stored_images.
-- Grain:   one row per such row; none in a sound manifest.
select r.image_id, r.uri, r.label
from rows as r
anti join stored_images as i on i.image_id = r.image_id
order by r.image_id;
