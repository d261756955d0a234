-- Purpose: the closest twin of each image, and whether it shows a holdout image or repeats a labeled one. The same
--          bytes come before any hash, hashes before embeddings, then the smaller distance, then the lower image_id.
-- Inputs:  members, edges (see duplicate_members.sql, duplicate_edges.sql).
-- Grain:   one row per image that has a twin.
with nodes as (  -- two of each, so that an image finds another one than itself
    select
        space, node, min(image_id, 2) as images, min(image_id) filter (split = 'holdout') as holdout,
        min(image_id, 2) filter (split = 'labeled') as labeled
    from members
    group by space, node
),
twins as (
    select
        m.image_id, e.kind, e.distance,
        case e.kind when 'bytes' then 0 when 'embedding' then 2 else 1 end as place,
        list_filter(n.images, lambda other: other <> m.image_id)[1] as twin,
        case when m.split <> 'holdout' then n.holdout end as holdout,
        list_filter(n.labeled, lambda other: other <> m.image_id)[1] as labeled
    from members as m
    join edges as e on e.space = m.space and e.node = m.node
    join nodes as n on n.space = e.space and n.node = e.other
)
select
    image_id,
    arg_min(twin, row(place, distance, twin)) as nearest,
    arg_min(kind, row(place, distance, twin)) as kind,
    arg_min(distance, row(place, distance, twin))::FLOAT as distance,
    arg_min(holdout, row(place, distance, holdout)) filter (holdout is not null) as holdout_twin,
    count(labeled) > 0 as labeled_twin
from twins
where twin is not null
group by image_id;
