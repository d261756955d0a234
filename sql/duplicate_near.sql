-- Purpose: the closest candidates of each picture: those that a hash or an embedding puts near it, before anybody looked.
-- Inputs:  members, edges (see duplicate_members.sql, duplicate_edges.sql).
-- Grain:   one row per picture, space and candidate. picture: the lowest image_id of those with its bytes. place: 1 is
--          the nearest of its space and split; the lower image_id of equals. One more than $most is given, to tell that
--          there are more.
-- Parameters: $most: candidates of a picture to look at, in each space and split.
with sides as (
    select distinct m.space, m.node, m.split, coalesce(b.node, m.image_id) as picture
    from members as m
    left join members as b on b.space = 'bytes' and b.image_id = m.image_id
    where m.space <> 'bytes'
),
numbered as (
    select space, node, split, picture, row_number() over (partition by space, node, split order by picture) as place
    from sides
),
close as (
    select
        s.picture, e.space, o.split, o.picture as candidate, min(e.distance) as distance,
        arg_min(e.kind, row(e.distance, e.kind = 'mirror')) as kind
    from (select distinct space, node, picture from sides) as s
    join edges as e on e.space = s.space and e.node = s.node
    -- no more of a node can be among the first; one of them may be the picture itself
    join numbered as o on o.space = e.space and o.node = e.other and o.place <= $most + 2
    where o.picture <> s.picture
    group by s.picture, e.space, o.split, o.picture
)
select
    picture, candidate, kind, distance,
    row_number() over (partition by picture, space, split order by distance, candidate) as place
from close
qualify place <= $most + 1;
