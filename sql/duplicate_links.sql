-- Purpose: which images belong into one group: those of a node, and of nodes joined by an edge, on one side of the
--          holdout, so that no holdout image joins two others to a group.
-- Inputs:  members, edges (see duplicate_members.sql, duplicate_edges.sql).
-- Grain:   one row per link; a holds the higher image_id.
with sides as (
    select space, node, split = 'holdout' as held, min(image_id) as first from members group by all
)
select m.image_id as a, s.first as b
from members as m
join sides as s on s.space = m.space and s.node = m.node and s.held = (m.split = 'holdout')
where m.image_id <> s.first
union all
select greatest(s.first, t.first), least(s.first, t.first)
from edges as e
join sides as s on s.space = e.space and s.node = e.node
join sides as t on t.space = e.space and t.node = e.other and t.held = s.held
where e.node < e.other and s.first <> t.first;
