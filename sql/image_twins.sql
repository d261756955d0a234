-- Purpose: the images that one image repeats, as the newest scan of `curator quality duplicates` found them.
-- Inputs:  stored_duplicates, stored_images.
-- Grain:   one row per twin: the closest first, then the holdout image that it shows, then the rest of its group.
-- Parameters: $image_id, $limit.
with own as (
    select * from stored_duplicates where image_id = $image_id
),
twins as (
    select nearest as image_id, 'nearest' as twin, kind, distance from own
    union all
    select holdout_twin, 'holdout', null, null from own where leak and holdout_twin <> nearest
    union all
    select d.image_id, 'group', null, null
    from stored_duplicates as d
    join own as o on o.group_id = d.group_id
    where d.image_id not in (o.image_id, o.nearest) and d.image_id is distinct from o.holdout_twin
    order by image_id
    limit $limit
)
select t.image_id, t.twin, t.kind, t.distance, i.split, i.uri, i.shard, i.byte_offset, i.byte_length
from twins as t
join stored_images as i on i.image_id = t.image_id
order by array_position(['nearest', 'holdout', 'group'], t.twin), t.image_id
limit $limit;
