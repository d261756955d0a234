-- Purpose: images that repeat another one and the uri of that other one: leaks first, with the holdout image that they
--          show, then the groups.
-- Inputs:  stored_duplicates, stored_images.
-- Grain:   one row per image that has a twin.
-- Parameters: $leaks: whether to give leaks only.
select
    d.image_id, i.uri, i.split, d.kind, d.distance, t.image_id as twin, t.uri as twin_uri, t.split as twin_split,
    d.group_id, d.leak
from stored_duplicates as d
join stored_images as i on i.image_id = d.image_id
join stored_images as t on t.image_id = coalesce(d.holdout_twin, d.nearest)
where d.leak or not $leaks
order by d.leak desc, d.group_id, d.image_id;
