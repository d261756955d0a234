-- Purpose: the pairs of pictures to look at, with what shows them to be near: a hash before an embedding.
-- Inputs:  near (see duplicate_near.sql).
-- Grain:   one row per pair; node is the lower image_id.
-- Parameters: $most, as for near.
select
    least(picture, candidate) as node,
    greatest(picture, candidate) as other,
    arg_min(kind, row(kind = 'embedding', distance, kind)) as kind,
    arg_min(distance, row(kind = 'embedding', distance, kind))::FLOAT as distance
from near
where place <= $most
group by node, other;
