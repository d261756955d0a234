-- Purpose: what looking at the pictures changed.
-- Inputs:  near, candidates (see duplicate_near.sql, duplicate_candidates.sql), pairs (those of them that were kept),
--          members (see duplicate_members.sql).
-- Grain:   one row. cleared: images that have candidates and no twin.
-- Parameters: $most, as for near.
with candidate as (select node as image_id from candidates union select other from candidates),
twin as (
    select node as image_id from pairs
    union
    select other from pairs
    union
    select image_id from members where space = 'bytes'
)
select
    (select count(*) from candidate where image_id not in (select image_id from twin)) as cleared,
    (select count(distinct picture) from near where place > $most) as crowded;
