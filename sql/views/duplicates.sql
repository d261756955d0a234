-- Purpose: the images that repeat another one, as the newest scan found them, with their uris.
-- Inputs:  stored_duplicates, stored_images (the tables' files).
-- Grain:   one row per image that has a twin.
select
    d.image_id, i.uri, i.split, d.group_id, d.nearest, d.kind, d.distance, d.leak, d.holdout_twin, d.labeled_twin,
    d.scan, d.found_at
from stored_duplicates as d
join stored_images as i on i.image_id = d.image_id;
