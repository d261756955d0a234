-- Purpose: the edges between nodes, in both directions, and of a node that has several images to itself.
-- Inputs:  members (see duplicate_members.sql), pairs (space, node, other, kind, distance: each pair once).
-- Grain:   one row per direction of a pair.
select space, node, other, kind, distance from pairs
union all
select space, other, node, kind, distance from pairs
union all
select space, node, node, space, 0::FLOAT
from members
where space in ('bytes', 'phash')
group by space, node
having count(*) > 1;
